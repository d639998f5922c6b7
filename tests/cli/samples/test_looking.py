"""`mm-lens lens` and `attention` say what the functions of `mm_lens.looking` give."""

from __future__ import annotations

import pytest
from painted import data_of, frame_of

from mm_lens.cli import commands
from mm_lens.looking import attention_map, visual_logit_lens


def test_lens(mm_lens, bridges, pictures):
    inputs = bridges["sdpa"].prepare("What is it?", pictures[0])
    lens = visual_logit_lens(bridges["sdpa"], inputs, layers=[0, -1], targets=["a"])
    found, text, page = mm_lens("lens", "--words", "a", "--layers", "0,-1")
    assert [row["layer"] for row in found["layers"]] == [0, 3]
    values = lens.targets["a"][1, 0]
    told = found["layers"][1]["words"]["a"]
    assert told["mean"] == pytest.approx(float(values.nanmean()))
    assert told["max"] == pytest.approx(float(values.nan_to_num(-1).max()))
    words = [position[0] for position in lens.words()[0] if position]
    first, count = found["layers"][0]["top_words"][0]
    assert words.count(first) == count
    assert "layer 3: top words" in text
    assert "“a” on the picture" in page
    assert "<iframe" in page


def test_attention(mm_lens, bridges, pictures):
    inputs = bridges["eager"].prepare("What is it?", pictures[0])
    weights = attention_map(bridges["eager"], inputs, layers=[2, 0])[:, :, 0].nansum(-1)
    found, text, page = mm_lens("attention", "--layers", "2,0")
    assert [row["block"] for row in found["blocks"]] == [2, 0]
    assert found["blocks"][0]["heads"] == pytest.approx(weights[0].tolist())
    assert found["blocks"][1]["image_share"] == pytest.approx(float(weights[1].mean()))
    assert f"most of head {int(weights[0].argmax())}" in text
    data = data_of(frame_of(page))
    heads = [view["label"] for view in data["more"]]
    assert heads == [f"attention of last, head {k}" for k in range(4)]


def test_layers_are_numbers(pictures, capsys):
    given = ["lens", pictures[0], "What?", "--model", "org/tiny", "--layers", "all"]
    assert commands.run(given) == 2
    assert "no numbers of layers" in capsys.readouterr().err
