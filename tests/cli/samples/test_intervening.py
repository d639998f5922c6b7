"""`mm-lens patch` and `knockout` say what the functions of `mm_lens.causal` give."""

from __future__ import annotations

import pytest
from painted import data_of, frame_of

import mm_lens as package
from mm_lens.causal import knockout_table, patching
from mm_lens.cli import commands
from mm_lens.looking.logit_lens import first_token

pytestmark = pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")


def test_patch(mm_lens, bridges, pictures):
    bridge = bridges["sdpa"]
    clean, corrupted = (bridge.prepare("What is it?", picture) for picture in pictures)
    a, b = (first_token(bridge, word) for word in "ab")
    _, cache = bridge.run_with_cache(clean, names_filter=package.names("resid_pre"))
    want = patching.get_act_patch_resid_pre(
        bridge,
        corrupted,
        cache,
        lambda logits: logits[:, -1, a] - logits[:, -1, b],
        axis="modality",
        layers=[0, 2],
        progress=False,
    )
    found, text, page = mm_lens(
        *("patch", "--other", pictures[1], "--axis", "modality", "--layers", "0,2"),
        *("--answer", "a", "--instead", "b"),
    )
    assert (found["answer"], found["instead"]) == ("a", "b")
    assert found["baseline"] == pytest.approx(float(want.baseline), abs=1e-4)
    effects = [row["effect"] for row in found["patches"]]
    assert effects == pytest.approx(want.effect().flatten().tolist(), abs=1e-4)
    assert want.strongest(1)[0][0] in text
    assert page.count("<img alt=") == 1
    assert page.count('<img class="photo"') == 2  # what is put in, and what is run
    assert f"put in: &#x27;a&#x27; to {pictures[0]}" in page
    assert "<iframe" not in page  # a modality is no place


def test_patches_of_places_are_shown_on_the_picture(mm_lens, pictures):
    given = ["--other", pictures[1], "--axis", "tile", "--layers", "0,1"]
    _, _, page = mm_lens("patch", *given, "--answer", "a", "--instead", "b")
    data = data_of(frame_of(page))
    assert data["label"] == "effect on a over b"
    assert data["layers"] == ["layer 0", "layer 1"]
    assert page.count("<img alt=") == 1  # and side by side


def test_answers_that_begin_alike(pictures, mm_lens, capsys):
    given = ["patch", pictures[0], "What?", "--model", "org/tiny", "--other", pictures[1]]
    assert commands.run([*given, "--answer", "a", "--instead", "a"]) == 1
    assert "begin with the same token" in capsys.readouterr().err
    assert commands.run([*given[:-1], "no-such.png"]) == 2
    assert "Invalid value for '--other'" in capsys.readouterr().err


def test_knockout(mm_lens, bridges, pictures):
    bridge = bridges["sdpa"]
    inputs = bridge.prepare("What is it?", pictures[0])
    token = bridge.ask(inputs, max_new_tokens=1).token_ids[0]
    want = knockout_table(
        bridge,
        [(inputs, lambda logits: logits[:, -1].log_softmax(-1)[:, token])],
        [("visual", "last")],
        window=2,
        progress=False,
    )
    found, text, page = mm_lens("knockout", "--edges", "visual:last", "--window", "2")
    assert [row["effect"] for row in found["edges"]] == pytest.approx(
        want.effect.tolist(), abs=1e-4
    )
    assert found["edges"][0]["edge"] == "visual → last"
    assert "layers 0–1, visual → last:" in text
    assert page.count("<img alt=") == 1


@pytest.mark.parametrize("edges", ["visual", "visual:", ","])
def test_edges_are_pairs(pictures, edges, capsys):
    given = ["knockout", pictures[0], "What?", "--model", "org/tiny", "--edges", edges]
    assert commands.run(given) == 2
    assert "'--edges'" in capsys.readouterr().err
