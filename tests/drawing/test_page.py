"""Parts of a page: whatever they are given, it stays text."""

from __future__ import annotations

from html.parser import HTMLParser

from made_profiles import planted

from mm_lens.drawing import curves, page

BAD = '<script>alert("x")</script> & co'


class Reader(HTMLParser):
    """The tags of a page, and its text outside of scripts."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def test_titles_and_entries_cannot_become_tags():
    for html in (page.links({"a": BAD}), page.provenance({"name": BAD})):
        found = read(html)
        assert "script" not in [tag for tag, _ in found.tags]
        assert "alert" in found.text
    assert [a["href"] for tag, a in read(page.links({"a": "A", "b": "B"})).tags if tag == "a"] == [
        "#a",
        "#b",
    ]


def test_a_document_is_whole_and_loads_nothing():
    found = read(page.document(BAD, "<p>body</p>"))
    assert [tag for tag, _ in found.tags].count("script") == 1  # plotly itself
    assert not [a for _, a in found.tags if "src" in a or str(a.get("href", "")).startswith("http")]


def test_panels_hold_the_values_of_the_table():
    profile = planted()
    metric = "anisotropy"
    drawn = {stream: curves.curves(profile, metric, stream) for stream in ("residual", "main")}
    panels = [curves.Panel(stream, found) for stream, found in drawn.items()]
    figure = page.side_by_side(curves.look(profile, metric), panels)
    named = [trace for trace in figure["data"] if trace.get("name")]
    held = [list(trace["y"]) for trace in figure["data"]]
    for found in drawn.values():
        for curve in found:
            values = curve.rows.value.to_list()
            assert any(list(map(float, y)) == values for y in held if len(y) == len(values))
    assert named
