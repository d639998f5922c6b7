"""A chat template that never ends, or fills the memory, is stopped; others render as ever."""

from __future__ import annotations

import sys
import threading

import pytest
from tiny import CHAT_TEMPLATE
from transformers.utils.chat_template_utils import _compile_jinja_template

from mm_lens.data import templates
from mm_lens.data.templates import TemplateError, bounded, check_source

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]


def render(source, messages=MESSAGES):
    check_source(source)
    with bounded():
        return _compile_jinja_template(source).render(messages=messages)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        (
            "{% set s = namespace(x='xxxxxxxx') %}"
            "{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
            "characters",
        ),
        ("{% set x = 'a'.ljust(99999) %}" + "{% set x = x ~ x ~ x ~ x %}\n" * 60, "characters"),
        ("{{ 'a' * 99999999999 }}", "a product with more than 16|a number"),
        ("{% set n = 5000 %}{{ 'a' * n * n * n }}", "a product with more than 16"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", "a power"),
        ("{{ 'a'.center(99999999999) }}", "a number of more than five digits"),
        ("{{ '%99999999999d' % 1 }}", "a format of more than five digits"),
        ("{% generation %}{{ 2 ** 99999 }}{% endgeneration %}", "a power"),
    ],
)
def test_what_would_never_end_is_stopped(monkeypatch, source, told):
    monkeypatch.setattr(templates, "MAX_STEPS", 5_000)
    with pytest.raises(TemplateError, match=told):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        CHAT_TEMPLATE,
        "{% generation %}{{ messages[0].content[0].text }}{% endgeneration %}",
        "{% for m in messages %}{{ ' ' * 4 }}{{ loop.index * 2 }}{{ m | tojson(indent=2) }}"
        "{% endfor %}",
    ],
)
def test_templates_render_as_without_bounds(source):
    assert render(source) == _compile_jinja_template(source).render(messages=MESSAGES)


def test_long_conversations_are_no_loops():
    messages = MESSAGES * 2_000
    expected = _compile_jinja_template(CHAT_TEMPLATE).render(messages=messages)
    assert render(CHAT_TEMPLATE, messages) == expected


def test_a_debugger_and_other_threads_are_left_alone(monkeypatch):
    monkeypatch.setattr(templates, "MAX_STEPS", 5)
    seen = []

    def trace(frame, event, argument):
        return None

    other = threading.Thread(
        target=lambda: seen.append(_compile_jinja_template(CHAT_TEMPLATE).render(messages=MESSAGES))
    )
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(TemplateError), bounded():  # noqa: PT012
            other.start()
            other.join()
            _compile_jinja_template(CHAT_TEMPLATE).render(messages=MESSAGES)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert "What is it?" in seen[0]


def test_a_template_is_parsed_once(monkeypatch):
    """And refused each time."""
    import jinja2

    parsed, parse = [], jinja2.Environment.parse
    monkeypatch.setattr(
        jinja2.Environment, "parse", lambda self, text: (parsed.append(1), parse(self, text))[1]
    )
    for _ in range(3):
        templates.check_source("{{ 'once' }}")
        with pytest.raises(templates.TemplateError, match="a power"):
            templates.check_source("{{ 2 ** 3 }}")
    assert len(parsed) == 2
