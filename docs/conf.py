"""Sphinx's settings of the documentation: ``make docs``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bilevel_gym
from docs import docstrings, environment_pages

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "bilevel-gym"
author = "the bilevel-gym authors"
version = release = bilevel_gym.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax in the built site: it needs no network
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
nitpicky = False  # docstrings name types of other projects, for which no inventory is fetched

linkcheck_timeout = 20  # make linkcheck, on request: a build asks nothing of other sites
linkcheck_retries = 2
linkcheck_anchors = False  # many sites make theirs by script

html_theme = "furo"
html_title = f"bilevel-gym {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

add_module_names = False  # most names are imported from a package above their module
autodoc_inherit_docstrings = False  # not Gymnasium's own text
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"show-inheritance": True, "exclude-members": "optimizer_class"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 90


def add_results(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the results under their list, which the benchmarks write, in its order."""
    if docname == "results/README":
        pages = [page for page in re.findall(r"^- .*?\]\((\w+)\.md\)", source[0], re.MULTILINE) if page != "standing"]
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", "", *pages, "```", ""])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", environment_pages.write)
    app.connect("source-read", add_results)
    app.connect("autodoc-process-docstring", docstrings.to_rst, priority=100)  # before napoleon, at 500
    return {"parallel_read_safe": False}
