"""Sphinx configuration. The build reads nothing from the network."""

import importlib.metadata
import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

project = "ssmreduce"
author = "the ssmreduce developers"
project_copyright = f"2026, {author}"
release = importlib.metadata.version(project)
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "numpydoc",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
default_role = "py:obj"

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc prints types where the docstring states them, with shapes
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # the class template lists members itself
numpydoc_class_members_toctree = False

html_theme = "furo"
html_title = f"{project} {release}"


INLINE_LITERAL = re.compile(r"(``.+?``|`[^`]*`)")


def escape_bars(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Take ``|x|`` in the prose of a docstring for an absolute value, not a substitution."""
    block: int | None = None  # indentation of the line that opened a literal or math block
    doctest = False
    for i, line in enumerate(lines):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        doctest = bool(text) and (doctest or text.startswith(">>>"))
        if block is not None and text and indent <= block:
            block = None
        if block is None and not doctest:
            parts = INLINE_LITERAL.split(line)
            parts[::2] = [re.sub(r"(?<!\\)\|", r"\\|", part) for part in parts[::2]]
            lines[i] = "".join(parts)
            if text.endswith("::"):
                block = indent


def compare_api_page(app: Sphinx) -> None:
    """Warn where the API page and ``ssmreduce.__all__`` differ."""
    import ssmreduce

    page = (Path(app.srcdir) / "api.rst").read_text(encoding="utf-8")
    listed = set(re.findall(r"^   (\w+)$", page, flags=re.MULTILINE))
    public = {name for name in ssmreduce.__all__ if not name.startswith("_")}
    for name in sorted(public - listed):
        logging.getLogger(__name__).warning("public name missing from api.rst: %s", name)
    for name in sorted(listed - public):
        logging.getLogger(__name__).warning("api.rst lists what is not public: %s", name)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", escape_bars, priority=900)  # after numpydoc
    app.connect("builder-inited", compare_api_page)
