"""How Sphinx builds the documentation."""

from __future__ import annotations

import builtins
from importlib.metadata import version as version_of

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
napoleon_numpy_docstring = False

# Our own names must resolve. Those of others would need their inventories, and a build
# fetches nothing.
nitpick_ignore_regex = [
    ("py:.*", r"(asyncio|collections|contextlib|enum|os|typing|types)\..*"),
    ("py:.*", r"(psycopg|pyarrow|trio)\..*"),
    ("py:.*", "|".join(dir(builtins))),
]
