"""How Sphinx builds the documentation."""

from __future__ import annotations

import builtins
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import trio_hyperpool

project = "trio-hyperpool"
author = copyright = f"the {project} authors"  # noqa: A001
version = release = version_of(project)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib_trio",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

# Our own names must resolve. Those of others would need their inventories, and a build
# fetches nothing.
nitpick_ignore_regex = [
    ("py:.*", r"(asyncio|collections|contextlib|datetime|decimal|enum|math|os)\..*"),
    ("py:.*", r"(pathlib|types|typing|uuid)\..*"),
    ("py:.*", r"(opentelemetry|psycopg|pyarrow|trio)\..*"),
    ("py:.*", "|".join(dir(builtins))),
    # What stands for any type, and for the fields of PoolConfig.
    ("py:class", r"(trio_hyperpool\.\w+\.)?(ConnectionT|DriverT|PoolOptions|ResultT)"),
    # Aliases, and what a public class has from a private one.
    (
        "py:class",
        r"Hook|MeterProvider|PasswordSource|Path|TracerProvider|trio_hyperpool\._driver\..*",
    ),
]


def find_attributes_where_they_are_defined() -> None:
    """Let the package have the docstrings of attributes that its modules have.

    Sphinx looks for them in the file of a class's ``__module__``, and that of a
    public name is the package.
    """
    package = ModuleAnalyzer.for_module("trio_hyperpool")
    package.analyze()
    for path in Path(trio_hyperpool.__file__).parent.glob("_*.py"):
        if not path.stem.startswith("__"):
            module = ModuleAnalyzer.for_module(f"trio_hyperpool.{path.stem}")
            module.analyze()
            package.attr_docs.update(module.attr_docs)
            package.tagorder.update(module.tagorder)


def keep_the_colon(
    _app: Sphinx, what: str, _name: str, _of: object, _options: object, lines: list[str]
) -> None:
    """Keep napoleon from taking what stands before a colon for an attribute's type.

    It looks at the first line; an escaped line break is one that prints nothing.
    """
    if what in {"attribute", "property"}:
        lines.insert(0, "\\")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    find_attributes_where_they_are_defined()
    app.connect("autodoc-process-docstring", keep_the_colon, priority=400)
