"""Sphinx configuration. The build reads nothing from the network, unless it links to other projects."""

import base64
import importlib.metadata
import json
import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

project = "ssmreduce"
author = "the ssmreduce developers"
project_copyright = f"2026, {author}"
release = importlib.metadata.version(project)
version = release

extensions = [
    "myst_nb",  # pages from notebooks
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

nb_execution_mode = "off"  # notebooks hold their outputs; CI runs them
myst_enable_extensions = ["dollarmath"]

if {"READTHEDOCS", "SSMREDUCE_INTERSPHINX"} & set(os.environ):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "scipy": ("https://docs.scipy.org/doc/scipy", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
    }

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


def copy_notebooks(app: Sphinx) -> None:
    """Bring the notebooks from beside this folder under it, each with its last picture, for the gallery."""
    folder = Path(app.srcdir) / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in sorted(Path(app.srcdir).parent.glob("notebooks/*.ipynb")):
        shutil.copy2(path, folder)
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        pictures = [data["image/png"] for data in outputs if "image/png" in data]
        if not pictures:
            raise ExtensionError(
                f"{path.name} has no picture for the gallery; run it, and save it."
            )
        picture = pictures[-1]
        (folder / f"{path.stem}.png").write_bytes(base64.b64decode(picture))


def copy_linked(app: Sphinx, exception: Exception | None) -> None:
    """Bring files that pages include and also link to, where a code host resolves no include."""
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir) / "examples"
        target.mkdir(exist_ok=True)
        for path in Path(app.srcdir).glob("examples/*.py"):
            shutil.copy2(path, target)
        for path in Path(app.srcdir).glob("*_table.txt"):
            shutil.copy2(path, app.outdir)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", escape_bars, priority=900)  # after numpydoc
    app.connect("builder-inited", compare_api_page)
    app.connect("builder-inited", copy_notebooks)
    app.connect("build-finished", copy_linked)
