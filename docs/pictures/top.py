"""Makes the pictures of ``top``: ``nox -s pictures``."""

from __future__ import annotations

from pathlib import Path

import trio

from trio_hyperpool._scene import scene
from trio_hyperpool._top import look_once, save

HERE = Path(__file__).parent


async def main() -> None:
    """Play the scene, and draw it in the moments that tell most."""
    async with scene() as path:

        async def draw(name: str, at: float) -> None:
            await trio.sleep_until(began_at + at)
            views = await look_once([path], lambda _line: None)
            save(views, HERE / f"{name}.svg")

        began_at = trio.current_time()
        await draw("top-crowd", 22.2)
        await draw("top-server-gone", 25.6)


trio.run(main)
