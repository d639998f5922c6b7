"""Bounds for chat templates: programs that come with a model, run in Jinja's sandbox.

The sandbox keeps a template from everything but its messages, and not from running for ever, or
from making a text that fills the memory. Steps are counted, not seconds: a template that renders on
one machine renders on every other.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FrameType
from typing import Any

MAX_STEPS = 200_000
"""Most lines of a compiled template that one rendering may take; a long conversation takes some
thousand."""
MAX_FACTOR = 16
"""Most that a template may multiply by: texts grow by it in one step."""
MAX_TEXT = 10**7
"""Most characters of a text that a template may keep."""

_WIDE = re.compile(r"[%:<>^.]\d{6}")  # the width of a format
_COMPILED = "<template>"  # what Jinja calls the file of a template made from a text


class TemplateError(ValueError):
    """A template goes beyond its bounds."""


def check_source(source: str) -> None:
    """Refuse what makes a large number or text in one step: Jinja works it out when it compiles.

    Raises:
        TemplateError: a power, a number of more than five digits, a product with more than
            `MAX_FACTOR`, or a format of more than five digits.
    """
    if complaint := _find_large(source):
        raise TemplateError(complaint)


@lru_cache(maxsize=8)
def _find_large(source: str) -> str:
    """What is too large in a template; "" if nothing is. To parse one takes longer than to render
    it, and every prompt is rendered by the same."""
    from jinja2 import Environment, TemplateSyntaxError, nodes

    tags = re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source)  # of transformers, not of Jinja
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(tags)
    except (TemplateSyntaxError, RecursionError):
        return ""  # rendering will say it
    found = ""
    for node in tree.find_all((nodes.Pow, nodes.Mul, nodes.Const, nodes.TemplateData)):
        if isinstance(node, nodes.Pow):
            found = "a power"
        elif isinstance(node, nodes.Mul):
            factors = [side.value for side in (node.left, node.right) if type(side) is nodes.Const]
            small = [n for n in factors if isinstance(n, (int, float)) and abs(n) <= MAX_FACTOR]
            found = "" if small else f"a product with more than {MAX_FACTOR}"
        elif isinstance(node, nodes.Const) and isinstance(node.value, (int, float)):
            found = "a number of more than five digits" if abs(node.value) >= 10**5 else ""
        elif isinstance(node, nodes.Const) and _WIDE.search(str(node.value)):
            found = "a format of more than five digits"
        if found:
            return f"line {node.lineno} has {found}, which no prompt needs"
    return ""


@contextmanager
def bounded() -> Iterator[None]:
    """In this block, and this thread, every template that is rendered is counted with.

    Raises:
        TemplateError: it takes more than `MAX_STEPS`, or keeps a text of more than `MAX_TEXT`.
    """
    steps, before = 0, sys.gettrace()

    def step(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > MAX_STEPS:
            raise TemplateError(
                f"it takes more than {MAX_STEPS:,} steps (mm_lens.data.templates.MAX_STEPS)"
            )
        if any(_size(value) > MAX_TEXT for value in frame.f_locals.values()):
            raise TemplateError(
                f"it makes more than {MAX_TEXT:,} characters (mm_lens.data.templates.MAX_TEXT)"
            )
        return step

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        return step if frame.f_code.co_filename == _COMPILED else None

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


def _size(value: Any) -> int:
    """Length of a text or list, or of the longest in a namespace of Jinja's."""
    if isinstance(value, (str, list, tuple)):
        return len(value)
    held = getattr(value, "_Namespace__attrs", None)
    if type(held) is dict:
        return max((len(x) for x in held.values() if isinstance(x, (str, list, tuple))), default=0)
    return 0
