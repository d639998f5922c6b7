"""What objects show of themselves, in a terminal and in a notebook: short, with what matters."""

from __future__ import annotations

from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from made_profiles import planted
from tiny import random_image

import mm_lens
from mm_lens._notebook import Html, make_table
from mm_lens.causal.effects import EffectTable
from mm_lens.data.datasets import ImageFolder


class Text(HTMLParser):
    """The text of a page whose tags are closed in the right order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def shown(thing) -> str:
    return " ".join(Text(thing._repr_html_()).words)


def test_a_table_escapes_what_is_not_html():
    page = Text(make_table(["a"], [["<b>"], [Html("<i>x</i>")]], caption="1 < 2"))
    assert page.words == ["1 < 2", "a", "<b>", "x"]


def test_a_layout_and_inputs(model, batch):
    assert repr(batch.layout).count("\n") == 4
    assert "2 overview" not in repr(batch)
    assert "57×31 px" in repr(batch)
    assert "57×31 px" in repr(batch.layout)
    counts = [str(n) for n in batch.layout.counts("visual").tolist()]
    for thing in (batch, batch.layout):
        words = shown(thing).split()
        assert all(n in words for n in counts)
    assert Text(batch._repr_html_()).tags.count("img") == 3
    many = batch.layout.repeat(30)
    assert "… 82 more rows" in repr(many)
    assert len(repr(many).splitlines()) < 15
    assert many.describe().count("\n") == 89


def test_a_report_counts_hook_points_and_does_not_list_them():
    report = mm_lens.model.Report(max_logit_difference=2e-6, dead_hooks=("blocks.0.x",) * 56)
    report.add("warning", "a <thing>")
    assert "56 hook points never fire" in repr(report)
    assert "blocks.0.x" not in repr(report)
    assert len(repr(report).splitlines()) == 2
    assert "a <thing>" in shown(report)
    assert "not checked" in repr(mm_lens.model.Report())


def test_answers(model, batch):
    one = mm_lens.Answers(model, batch, "abc", "a", "b", tokens=[7, 8, 9])
    assert repr(one) == "Answers(a, b, c: a rather than b in 3 rows)"
    each = mm_lens.Answers(model, batch, "abc", ["a", "b", "c"], tokens=[7, 8, 9])
    assert "b rather than the mean of the others; c rather" in repr(each)
    words = shown(each)
    assert "the mean of the others" in words
    assert "c 9" in words


def test_a_data_set_shows_its_first_samples_also_where_one_is_damaged(tmp_path):
    for i in range(7):
        random_image(9, 11, i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    data = ImageFolder(tmp_path, question="What is <this>?")
    assert repr(data) == f"ImageFolder({tmp_path.name!r}: 7 samples, 7 images, 0 answers)"
    page = Text(data._repr_html_())
    assert page.tags.count("img") == 4
    assert "cannot be decoded" in " ".join(page.words)
    assert page.words.count("What is <this>?") == 5


def test_a_profile_shows_three_layers_of_what_stands_for_its_kind():
    depth = {"dimension": lambda d: 10 + 90 * d}
    profile = planted("org/model", shapes=depth, n_layers=8)
    text = repr(profile)
    assert text.startswith("Profile of org/model on data (500 samples)")
    assert len(text.splitlines()) < 14
    line = next(line for line in text.splitlines() if "Intrinsic dimension" in line)
    assert line.count("10 · 55 · 100") == 2  # visual and text
    assert "0 with a warning" in text
    assert "10 · 55 · 100" in shown(profile)


def test_effects_stand_with_their_intervals():
    rows = [{"group": f"g{i}", "effect": 0.5, "low": 0.25, "high": 0.75, "n": 9} for i in range(30)]
    rows[1] |= {"low": float("nan"), "high": float("nan")}
    table = EffectTable(rows)
    lines = repr(table).splitlines()
    assert lines[1].split() == ["g0", "0.5", "[0.25,", "0.75]", "9"]
    assert lines[2].split() == ["g1", "0.5", "9"]
    assert lines[-1] == "… 10 more rows"
    assert "0.5 [0.25, 0.75]" in shown(table)
    assert isinstance(table[table.n > 3], EffectTable)
    pd.testing.assert_frame_equal(pd.DataFrame(table), pd.DataFrame(rows))
    assert "group" in repr(table[["group", "n"]])


@pytest.mark.parametrize("name", ["effect", "low"])
def test_a_part_of_an_effect_table_is_shown_too(name):
    assert name in repr(EffectTable({name: [1.0], "n": [2]}))


def test_a_comparison_is_its_findings():
    found = mm_lens.compare(planted("a"), planted("b", seed=1))
    assert "a and b on data" in repr(found)
    assert "Highly linear" in shown(found)
    assert torch.tensor(found.findings.value.to_numpy()).isfinite().any()
