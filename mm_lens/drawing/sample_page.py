"""A page about one picture and one question: what was run on what, in words, then figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from mm_lens._notebook import Html, embed_figure, make_table
from mm_lens.drawing.explorer import encode_image

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
       color: light-dark(#222, #ddd); background: light-dark(#fff, #1b1b1b); }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin: 2em 0 .4em; }
img { background: #fff; max-width: 100%; height: auto; } pre { white-space: pre-wrap; }
iframe { max-width: 100%; } section { overflow-x: auto; }
@media (max-width: 700px) {
  section img { max-width: none !important; width: 640px; }
  section:has(img):not(:has(.photo)) h2::after { content: " (wider than the screen: scroll ↔)";
    font: .8em system-ui, sans-serif; opacity: .75; }
}
.pictures { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; flex: 1 1 130px; max-width: 260px; }
section img.photo { width: 100% !important; image-rendering: pixelated; }
figcaption { overflow-wrap: anywhere; }
table { overflow-wrap: anywhere; } summary { cursor: pointer; }
th, td { text-align: left; vertical-align: top; padding-right: 1em; }
"""
SCRIPT = """
addEventListener("message", event => {
  for (const frame of document.querySelectorAll("iframe"))
    if (frame.contentWindow === event.source && event.data.explorerHeight > 0)
      frame.style.height = event.data.explorerHeight + "px";
});
"""
"""Gives the frame of an explorer the height that it asks for."""
FEW = 4
"""Lines of a result that stand above the figures; more are folded below them."""


def make_page(
    title: str, about: Mapping[str, object], lines: Sequence[str], parts: Mapping[str, Any]
) -> str:
    """A whole page that needs no network.

    Args:
        title: what was done.
        about: what it was done on.
        lines: the result in words.
        parts: figures, objects that notebooks show, or `Html`, by their headings.
    """
    said = "\n".join(lines)
    shown = "\n".join(
        f"<section><h2>{escape(name)}</h2>{_show(name, part)}</section>"
        for name, part in parts.items()
    )
    words = f"<pre>{escape(said)}</pre>"
    if len(lines) > FEW:
        shown += f"<details><summary>In words</summary>{words}</details>"
        words = ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{make_table(['', ''], about.items())}"
        f"{words}{shown}</main><script>{SCRIPT}</script></body></html>\n"
    )


def show_pictures(pictures: Mapping[str, Image.Image]) -> Html:
    """Pictures side by side, as large as a page has room for, with what they are below them."""
    figures = "".join(
        f'<figure><img class="photo" alt="{escape(name)}" src="{encode_image(picture)}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, picture in pictures.items()
    )
    return Html(f'<div class="pictures">{figures}</div>')


def _show(name: str, part: Any) -> str:
    if isinstance(part, Html):
        return str(part)
    if hasattr(part, "savefig"):
        return str(embed_figure(part, name))
    html: str = part._repr_html_()
    return html
