"""The public API is what is listed in ``public_api.txt``, and changes knowingly.

Versions are semantic: to take a line away, or to change one so that a caller breaks, is
for a major version (before 1.0, a minor one); to add one is for a minor version.
``python tests/test_public_api.py --write`` makes the list anew: look at the difference.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

PACKAGE = "trio_hyperpool"
SUBMODULES = ("aio", "arrow", "telemetry", "testing")
NOT_CALLED = ("Connector", "HyperConnection", "Lease", "Pool")
"""Classes whose objects are made by the package alone."""
STARS: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}
LIST = Path(__file__).with_name("public_api.txt")
CHANGED = (
    "The public API is not what tests/public_api.txt lists. Lines that go or change are "
    "for a major version (before 1.0, a minor one), new ones for a minor version; the "
    "changelog names both. If that is meant: python tests/test_public_api.py --write"
)


def main() -> str:
    """List everything public, module by module."""
    modules = [PACKAGE, *(f"{PACKAGE}.{name}" for name in SUBMODULES)]
    modules = [name for name in modules if importlib.util.find_spec(name) is not None]
    return "\n".join(line for name in modules for line in module_lines(name)) + "\n"


def module_lines(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]
    yield f"[{name}]"
    for public in sorted(names):
        yield from lines(public, getattr(module, public))
    yield ""


def lines(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, type):
        yield from class_lines(name, value)
    elif inspect.isroutine(value):
        yield function_line(name, value)
    else:  # a pytest fixture
        yield f"{name}: {type(value).__name__}"


def class_lines(name: str, cls: type[Any]) -> Iterator[str]:
    bases = [base.__name__ for base in cls.__bases__ if base is not object]
    yield f"class {name}({', '.join(base for base in bases if base[0] != '_')})"
    if issubclass(cls, enum.Enum):
        yield from (f"    {one.name} = {one.value!r}" for one in cls)
        return
    members: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if owner.__module__.partition(".")[0] == PACKAGE:
            members.update(vars(owner))
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            members.pop(field.name, None)
            if not field.name.startswith("_"):
                yield f"    {field.name}{how_given(field)}"
    elif isinstance(members.get("__init__"), FunctionType) and name not in NOT_CALLED:
        yield "    " + function_line("__init__", members["__init__"])
    for member, value in sorted(members.items()):
        if not member.startswith("_"):
            yield from member_lines(member, value)


def member_lines(name: str, value: object) -> Iterator[str]:
    if isinstance(value, (staticmethod, classmethod)):
        yield f"    {type(value).__name__} {function_line(name, value.__func__)}"
    elif isinstance(value, FunctionType):
        yield "    " + function_line(name, value)
    elif isinstance(value, property):
        yield f"    property {name}"


def how_given(field: dataclasses.Field[Any]) -> str:
    default = ""
    if field.default is not dataclasses.MISSING:
        default = f" = {shown(field.default)}"
    elif field.default_factory is not dataclasses.MISSING:
        default = " = ..."
    return default + (" (keyword only)" if field.kw_only else "")


def function_line(name: str, function: Any) -> str:
    """Names, kinds and defaults: types may widen, and pyright looks after them."""
    parts: list[str] = []
    before = None
    for parameter in inspect.signature(function).parameters.values():
        if before is parameter.POSITIONAL_ONLY is not parameter.kind:
            parts.append("/")
        if parameter.kind is parameter.KEYWORD_ONLY is not before and (
            before is not parameter.VAR_POSITIONAL
        ):
            parts.append("*")
        before = parameter.kind
        default = parameter.default
        parts.append(
            STARS.get(parameter.kind, "")
            + parameter.name
            + ("" if default is parameter.empty else f"={shown(default)}")
        )
    if before is inspect.Parameter.POSITIONAL_ONLY:
        parts.append("/")
    kind = "async def" if inspect.iscoroutinefunction(function) else "def"
    return f"{kind} {name}({', '.join(parts)})"


def shown(value: object) -> str:
    if isinstance(value, enum.Enum):
        return str(value)
    plain = isinstance(value, (str, int, float, tuple)) or value is None
    text = repr(value) if plain else "..."
    return text if len(text) <= 40 else "..."  # not the wording of a message


def test_the_public_api_is_the_one_that_is_listed() -> None:
    # In a process of its own, as importing `aio` changes asyncio for all of this one.
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(importlib.import_module(PACKAGE).__path__[0]).parent),
    }
    done = subprocess.run(
        [sys.executable, __file__],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == LIST.read_text().splitlines(), CHANGED


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        LIST.write_text(main())
    else:
        sys.stdout.write(main())
