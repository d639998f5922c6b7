"""Parts of a page: whatever they are given, it stays text."""

from __future__ import annotations

from html.parser import HTMLParser

from made_profiles import planted

from mm_lens.drawing import comparison, components, curves, page

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
    for html in (page.topic(BAD, BAD, BAD, ""), page.provenance({"name": BAD})):
        found = read(html)
        assert "script" not in [tag for tag, _ in found.tags]
        assert "alert" in found.text


def test_a_document_is_whole_and_loads_nothing():
    found = read(page.document(BAD, "<p>body</p>"))
    assert [tag for tag, _ in found.tags].count("script") == 1  # what draws the charts
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


def test_every_style_of_a_model_has_a_marker():
    """A seventh model begins again; the fourth used to end in a KeyError."""
    styles = [*curves.STYLES.values(), *comparison.STYLES, *components_styles()]
    assert {marker for _, marker, _ in styles} <= page.SYMBOLS.keys()
    assert {dash for _, _, dash in styles} <= page.DASHES.keys()


def components_styles():
    return components._styles([str(i) for i in range(21)]).values()


def test_points_with_a_warning_are_hollow():
    profile = planted()
    profile.table.loc[profile.table.layer == 2, "warning"] = "few tokens"
    figure = page.side_by_side(
        curves.look(profile, "anisotropy"),
        [curves.Panel("residual", curves.curves(profile, "anisotropy", "residual"))],
    )
    (visual, text) = (trace for trace in figure["data"] if "name" in trace)
    for trace in (visual, text):
        assert [
            x for x, open_ in zip(trace["x"], trace["marker"]["open"], strict=True) if open_
        ] == [2]
