"""Scripts of the project as modules: they are in no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load(script: str) -> ModuleType:
    """Run a script of the project, which finds itself not to be the main one.

    Args:
        script: its path from the project's root.
    """
    path = ROOT / script
    name = f"script_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for where they are
    spec.loader.exec_module(module)
    return module
