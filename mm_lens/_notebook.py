"""What notebooks show of an object: small tables and thumbnails, as HTML."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from typing import Any

from PIL import Image

THUMBNAIL = 72
"""Longest side of a thumbnail in pixels."""


class Html(str):
    """Text that is HTML already."""


def make_table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """An HTML table; every entry but `Html` is escaped."""
    top = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    first = f"<tr>{top}</tr>" if any(head) else ""
    return f"<table>{title}{first}{body}</table>"


def make_thumbnails(pictures: Iterable[Image.Image]) -> Html:
    """Small copies of pictures, side by side."""
    return Html(" ".join(map(_thumbnail, pictures)))


def embed_figure(figure: Any, about: str) -> Html:
    """A matplotlib figure as a picture in a page, with what it shows in words.

    Args:
        figure: with `savefig`.
        about: for those who cannot see it.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Html(_picture(buffer.getvalue(), about, 'style="max-width:100%"'))


def embed_json(data: object) -> str:
    """JSON to stand inside a script: no text in it can end the script or begin a comment."""
    return json.dumps(data).replace("<", "\\u003c")


def _cell(entry: object) -> str:
    content = entry if isinstance(entry, Html) else escape(str(entry))
    return f'<td style="text-align:left">{content}</td>'


def _thumbnail(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    small.save(buffer, format="png")
    about = f"picture of {picture.width}×{picture.height} pixels"
    return _picture(buffer.getvalue(), about, f'title="{about}"')


def _picture(png: bytes, about: str, rest: str) -> str:
    encoded = base64.b64encode(png).decode()
    return f'<img alt="{escape(about)}" {rest} src="data:image/png;base64,{encoded}">'
