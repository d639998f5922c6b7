"""`mm-lens explore` shows what `mm_lens.looking` and `mm_lens.causal` give, on one page."""

from __future__ import annotations

import pytest
from painted import data_of, frame_of

from mm_lens.cli import commands
from mm_lens.cli.samples import intervening, opened
from mm_lens.looking import norms


def test_one_page_has_all(bridges, pictures, tmp_path, capsys, monkeypatch):
    bridge = bridges["sdpa"]
    monkeypatch.setattr(opened, "load_model", lambda name, **options: bridge)
    answers = iter([("b", 1), ("a", 0)])
    monkeypatch.setattr(intervening, "_answer_of", lambda *given: next(answers))
    page = tmp_path / "page.html"
    given = ["explore", pictures[0], "What is it?", "--model", "org/tiny", "--words", "a"]
    assert commands.run([*given, "--other", pictures[1], "--out", str(page)]) == 0
    told = capsys.readouterr().out
    assert f"puts {pictures[1]} ('b') into the run of {pictures[0]}" in told
    data = data_of(frame_of(page.read_text("utf-8")))
    views = {view["label"]: view for view in [data, *data["more"]]}
    assert [*views] == [
        "probability of “a”",
        "probability of the top word",
        "attention of last, mean of 4 heads",
        *(f"attention of last, head {k}" for k in range(4)),
        "norm of the state",
        "effect on b over a",
    ]
    inputs = bridge.prepare("What is it?", pictures[0])
    size = norms(bridge, inputs, "visual")[1, 0, inputs.layout.positions("base")[0]]
    drawn = views["norm of the state"]["parts"][0]["values"][1]
    assert drawn == pytest.approx(size.tolist(), rel=1e-3)


def test_the_page_has_to_be_named(pictures, capsys):
    assert commands.run(["explore", pictures[0], "What?", "--model", "org/tiny"]) == 2
    assert "--out" in capsys.readouterr().err
