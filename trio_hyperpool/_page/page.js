"use strict";
(() => {
  const record = JSON.parse(document.getElementById("record").textContent);
  const svg = document.getElementById("lanes");
  const tip = document.getElementById("tip");
  const GUTTER = 118, RIGHT = 12, AXIS = 24, LANE = 30, SHORTEST = 1e-6;
  const end = Math.max(record.lasts, SHORTEST);
  // Of the whole height of a lane, where a kind begins, and how much of it it takes.
  const PLACE = { connection: [0.12, 0.76], hook: [0.3, 0.64] };
  const view = { from: 0, to: end };
  const margin = end * 0.01;
  let shown = []; // what the elements' data-shown are the numbers of
  let frame = null;

  const element = (name, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const duration = (seconds) => {
    for (const [unit, size] of [["s", 1], ["ms", 1e-3]])
      if (seconds >= size) return `${Number((seconds / size).toPrecision(3))} ${unit}`;
    return `${Number((seconds / 1e-6).toPrecision(3))} µs`;
  };

  // From top to bottom, what has a place of its own.
  const bands = [];
  let bottom = AXIS;
  const band = (kind, height, more) => {
    bands.push({ kind, top: bottom, height, ...more });
    bottom += height;
  };
  record.pools.forEach((pool, number) => {
    const top = bottom;
    if (record.pools.length > 1) band("pool", 26, { label: pool.name });
    if (pool.queue.length) {
      const most = Math.max(...pool.waiting.map(([, tasks]) => tasks), 0);
      band("level", 44, { label: "waiting", note: `at most ${most}`, pool, most });
      band("queue", Math.min(Math.max(pool.rows * 14, 20), 160) + 6, { label: "queue", pool, number });
    }
    pool.lanes.forEach((lane, i) => band("lane", LANE, { label: `lane ${i + 1}`, lane, number }));
    bands.push({ kind: "marks", top, height: bottom - top, pool });
  });
  svg.setAttribute("height", bottom + 4);

  let width = 1; // of what stands for the time shown
  const x = (time) => GUTTER + ((time - view.from) / (view.to - view.from)) * width;
  const timeAt = (pixel) => view.from + ((pixel - GUTTER) / width) * (view.to - view.from);
  const inside = (pixel) => Math.min(Math.max(pixel, GUTTER), GUTTER + width);

  const axis = (into) => {
    const rough = ((view.to - view.from) * 110) / width;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((size) => size >= rough);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    for (let n = Math.ceil(view.from / step); n * step <= view.to; n++) {
      const at = x(n * step);
      into.append(
        element("line", { class: "rule", x1: at, x2: at, y1: AXIS - 4, y2: bottom }),
        element("text", { class: "tick", x: at, y: 14 }, `${(n * step).toFixed(digits)} s`),
      );
    }
  };

  // Slices too short to be seen apart become one.
  const slices = (into, all, pool, place) => {
    const last = new Map();
    for (const slice of all) {
      if (slice.to < view.from || slice.from > view.to) continue;
      const [top, height] = place(slice);
      const left = inside(x(slice.from));
      const right = Math.max(inside(x(slice.to)), left + 1.5);
      const row = `${slice.kind} ${top}`;
      const before = last.get(row);
      if (before && right - left < 3 && left - before.right < 1) {
        before.right = Math.max(before.right, right);
        before.rect.setAttribute("width", before.right - before.left);
        shown[before.rect.dataset.shown].push(slice);
        continue;
      }
      const rect = element("rect", {
        class: `slice ${slice.error === null ? slice.kind : "bad"}${slice.over ? "" : " open"}`,
        x: left, y: top, width: right - left, height, rx: Math.min(3, (right - left) / 3, height / 3),
        "data-shown": shown.push([slice]) - 1, "data-kind": slice.kind,
        "data-lease": "lease" in slice.details ? `${pool}.${slice.details.lease}` : "",
      });
      into.append(rect);
      last.set(row, right - left < 3 ? { rect, left, right } : undefined);
      const words = slice.error === null ? slice.name : `${slice.name}: ${slice.error}`;
      const letters = Math.floor((right - left - 10) / 6.2);
      if (slice.kind !== "connection" && height > 11 && letters > 3)
        into.append(element(
          "text", { class: "inside", x: left + 6, y: top + height / 2 + 4 },
          words.length > letters ? `${words.slice(0, letters - 1)}…` : words,
        ));
    }
  };

  const marks = (into, all, top) => {
    for (const mark of all) {
      if (mark.at < view.from || mark.at > view.to) continue;
      const at = x(mark.at);
      into.append(element("path", {
        class: `mark ${mark.kind}`, d: `M${at - 5} ${top}h10l-5 8z`,
        "data-shown": shown.push([mark]) - 1, "data-kind": mark.kind,
      }));
    }
  };

  const level = (into, { pool, top, height, most }) => {
    const y = (tasks) => top + height - 2 - (tasks / Math.max(most, 1)) * (height - 12);
    const before = pool.waiting.findLast(([at]) => at < view.from)?.[1] ?? 0;
    let path = `M${GUTTER} ${y(0)}V${y(before)}`;
    for (const [at, tasks] of pool.waiting)
      if (at >= view.from && at <= view.to) path += `H${x(at)}V${y(tasks)}`;
    into.append(element("path", { class: "level", d: `${path}H${inside(x(Math.min(end, view.to)))}V${y(0)}Z` }));
  };

  const hide = () => {
    tip.hidden = true;
    for (const lit of svg.querySelectorAll(".lit")) lit.classList.remove("lit");
  };

  const draw = () => {
    frame = null;
    hide();
    width = Math.max(svg.clientWidth - GUTTER - RIGHT, 1);
    shown = [];
    const all = document.createDocumentFragment();
    axis(all);
    for (const one of bands) {
      const { kind, top, height, label, note } = one;
      if (kind === "marks") {
        for (const { at } of one.pool.marks)
          if (at >= view.from && at <= view.to)
            all.append(element("line", { class: "closing", x1: x(at), x2: x(at), y1: top, y2: top + height }));
        continue;
      }
      all.append(element("text", { class: `label ${kind === "pool" ? kind : ""}`, x: 2, y: top + Math.min(height / 2 + 4, 20) }, label));
      if (note) all.append(element("text", { x: 2, y: top + 36 }, note));
      all.append(element("line", { class: "rule", x1: 0, x2: GUTTER + width, y1: top, y2: top }));
      if (kind === "level") level(all, one);
      if (kind === "queue") {
        const row = (height - 6) / one.pool.rows;
        slices(all, one.pool.queue, one.number, (wait) => [top + 3 + wait.row * row, row * (row > 3 ? 0.88 : 1)]);
      }
      if (kind === "lane") {
        slices(all, one.lane.slices, one.number, (slice) => {
          const [from, part] = PLACE[slice.kind] ?? [0.12, 0.76];
          return [top + from * height, part * height];
        });
        marks(all, one.lane.marks, top);
      }
    }
    svg.replaceChildren(all);
    document.getElementById("span").textContent = `${duration(view.to - view.from)} shown`;
  };

  const show = (from, to) => {
    const least = -margin, most = end + margin;
    const span = Math.min(Math.max(to - from, SHORTEST), most - least);
    const middle = (from + to) / 2;
    view.from = Math.min(Math.max(middle - span / 2, least), most - span);
    view.to = view.from + span;
    frame ??= requestAnimationFrame(draw); // however often the wheel turns meanwhile
  };
  const zoom = (factor, around = (view.from + view.to) / 2) =>
    show(around - (around - view.from) * factor, around + (view.to - around) * factor);
  const move = (part) => {
    const by = (view.to - view.from) * part;
    show(view.from + by, view.to + by);
  };
  const all = () => show(-margin, end + margin);

  const line = (name, text, className) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  const tell = (event) => {
    const target = event.target.closest("[data-shown]");
    hide();
    if (!target) return;
    const about = shown[target.dataset.shown];
    const [first] = about;
    const facts = document.createElement("dl");
    const fact = (key, value) => facts.append(line("dt", key), line("dd", value));
    tip.replaceChildren(line("b", about.length > 1 ? `${about.length} × ${first.kind}` : first.name));
    if (about.length > 1) {
      fact("in all", duration(about.reduce((sum, { from, to }) => sum + to - from, 0)));
      fact("", "zoom in to see each");
    } else {
      if (first.error) tip.append(line("span", first.error, "error"));
      if ("at" in first) fact("at", `${first.at.toFixed(6)} s`);
      else {
        fact("what", first.kind);
        fact(first.over ? "duration" : "so far", duration(first.to - first.from));
        fact("from", `${first.from.toFixed(6)} s`);
      }
      for (const [key, value] of Object.entries(first.details ?? {})) fact(key, value);
      const lease = target.dataset.lease;
      if (lease)
        for (const same of svg.querySelectorAll(`[data-lease="${lease}"]`)) same.classList.add("lit");
    }
    tip.append(facts);
    tip.hidden = false;
    const { width: wide, height: high } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(Math.min(event.clientX + 14, innerWidth - wide - 8), 8)}px`;
    const below = event.clientY + 16;
    tip.style.top = `${below + high > innerHeight ? event.clientY - high - 10 : below}px`;
  };

  let dragged = null;
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    dragged = event.clientX;
    svg.setPointerCapture(event.pointerId);
    svg.classList.add("moving");
  });
  svg.addEventListener("pointermove", (event) => {
    if (dragged === null) return tell(event);
    move((dragged - event.clientX) / width);
    dragged = event.clientX;
  });
  const drop = () => {
    dragged = null;
    svg.classList.remove("moving");
  };
  svg.addEventListener("pointerup", drop);
  svg.addEventListener("pointercancel", drop);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("wheel", (event) => {
    const pixel = event.clientX - svg.getBoundingClientRect().left;
    if (pixel < GUTTER) return; // there the wheel scrolls the page
    event.preventDefault();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) move(event.deltaX / width);
    else zoom(1.0015 ** event.deltaY, timeAt(pixel));
  }, { passive: false });
  svg.addEventListener("dblclick", (event) =>
    zoom(0.4, timeAt(event.clientX - svg.getBoundingClientRect().left)));
  const keys = {
    "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), "0": all,
    ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2),
  };
  svg.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  document.getElementById("in").addEventListener("click", keys["+"]);
  document.getElementById("out").addEventListener("click", keys["-"]);
  document.getElementById("all").addEventListener("click", all);
  new ResizeObserver(draw).observe(svg);
  all();
})();
