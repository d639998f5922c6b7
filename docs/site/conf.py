"""How Sphinx makes the site of the pages that `docs/site/build.py` has laid out."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

project = "mm_lens"
copyright = "the mm_lens authors, MIT licence"

extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton"]
exclude_patterns: list[str] = []
root_doc = "index"

myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_dmath_allow_space = False
myst_dmath_allow_digits = False
myst_heading_anchors = 4
# Shown as they were committed: the tests run them.
nb_execution_mode = "off"
nb_merge_streams = True

python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
copybutton_exclude = ".linenos, .gp, .go"

pygments_dark_style = "one-dark"
html_theme = "furo"
html_title = "mm_lens"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
# An argument that is called as members of two classes are is no broken link.
suppress_warnings = ["ref.python"]
html_theme_options = {"navigation_with_keys": True}
# Blocks without a language are what a terminal or a file shows.
highlight_language = "text"


def render_inline(translator: Any, node: nodes.math) -> None:
    """A formula in a line."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def render_block(translator: Any, node: nodes.math_block) -> None:
    """A formula of its own."""
    translator.body.append(
        f'<div class="math">{convert(" ".join(node.astext().split()), display="block")}</div>'
    )
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Formulas as MathML: browsers draw it without a script from the network."""
    app.add_html_math_renderer("mathml", (render_inline, None), (render_block, None))
