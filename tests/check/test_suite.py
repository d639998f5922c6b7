"""The suite finds what is planted, and says what came of each check."""

from __future__ import annotations

import contextlib
import dataclasses

import pandas as pd
import pytest
import torch
from tiny_families import build

import mm_lens
from mm_lens import InputError
from mm_lens.check import run_suite, suite
from mm_lens.check.runs import kill_and_resume
from mm_lens.check.subject import TEXTS, Fault, Subject, picture
from mm_lens.layout.tiles import Tile, whole


@pytest.fixture
def pair():
    native, _ = build("qwen2.5-vl")
    wrapped, processor = build("qwen2.5-vl")
    return native, mm_lens.load(hf_model=wrapped, processor=processor, check=False)


def verdicts(table):
    return {outcome.check: outcome.verdict for outcome in table.outcomes}


def test_places_are_not_believed(pair, monkeypatch):
    """Rows for columns, boxes shifted by a token or too narrow: painting finds each."""
    native, model = pair
    kind = type(model.family)
    right = kind.tiles

    def wrong(change):
        def tiles(self, size, inputs, k):
            (tile,) = right(self, size, inputs, k)
            return [change(tile, size)]

        return tiles

    changes = {
        "turned": lambda tile, size: Tile(tile.cols, tile.rows, whole(size)),
        "shifted": lambda tile, size: dataclasses.replace(
            tile, rect=(-size[1] / tile.cols, 0, size[1] * (1 - 1 / tile.cols), size[0])
        ),
        "cropped": lambda tile, size: dataclasses.replace(
            tile, rect=(size[1] / 4, size[0] / 4, size[1] * 3 / 4, size[0] * 3 / 4)
        ),
    }
    assert verdicts(run_suite(native, model, ["places"], sample=True)) == {"places": "holds"}
    for name, change in changes.items():
        monkeypatch.setattr(kind, "tiles", wrong(change))
        table = run_suite(native, model, ["places"], sample=True)
        assert verdicts(table) == {"places": "fails"}, name


def test_other_weights_are_found(pair):
    native, model = pair
    with torch.no_grad():
        native.model.language_model.layers[2].mlp.down_proj.weight.mul_(1.01)
    names = ["text only", "one image", "left padding", "read", "gradient"]
    names += ["patching", "ablation", "knock-out", "patterns"]
    assert set(verdicts(run_suite(native, model, names, sample=True)).values()) == {"fails"}


def test_an_edit_that_is_lost_is_found(pair):
    native, model = pair
    model.blocks[2].mlp.hook_out.add_perma_hook(lambda x, hook: x.detach().clone())
    assert verdicts(run_suite(native, model, ["gradient"], sample=True)) == {"gradient": "fails"}


def test_other_words_are_found(pair):
    native, model = pair
    model.blocks[2].mlp.hook_out.add_perma_hook(lambda x, hook: -x)
    names = ["generation", "beams", "sampling", "generation with hooks"]
    assert set(verdicts(run_suite(native, model, names, sample=True)).values()) == {"fails"}


@pytest.mark.parametrize(
    ("kept", "more", "told"),
    [(True, 0, ""), (True, 1, "has other values"), (False, 0, "3 passes when it was resumed")],
)
def test_a_run_that_goes_on_wrongly_is_found(pair, tmp_path, kept, more, told):
    """To other values, or from the beginning."""
    subject = Subject(*pair)
    inputs = subject.prepare(TEXTS[:1], [picture(0)])

    def run(path):
        done = int(path.read_text()) if kept and path.exists() else 0
        for k in range(done, 3):
            subject.model(inputs)
            path.write_text(str(k + 1))
        return pd.DataFrame([3 + more * done])

    with pytest.raises(Fault, match=told) if told else contextlib.nullcontext():
        kill_and_resume(subject, run, tmp_path / "run")


def test_a_check_leaves_nothing_behind(pair, monkeypatch):
    native, model = pair

    def hook(subject):
        subject.native.model.register_forward_hook(lambda *_: None)

    def attach(subject):
        subject.model.add_hook("blocks.0.visual.hook_resid_post", lambda x, hook: None)

    def train(subject):
        subject.model.blocks[1].mlp.train()

    for check, trace in (
        (hook, "forward hooks of model"),
        (attach, "fwd hooks of"),
        (train, "training mode of"),
    ):
        monkeypatch.setitem(suite.CHECKS, "one image", check)
        assert f"leaves another {trace}" in repr(run_suite(native, model, ["one image"])), trace


def test_a_tower_may_have_any_name(pair):
    native, model = pair
    model.adapter.component_mapping.pop("vision_encoder")
    assert verdicts(run_suite(native, model, ["places"], sample=True)) == {"places": "holds"}


def test_an_exception_must_be_one(pair, monkeypatch):
    native, model = pair
    monkeypatch.setattr(type(model.family), "exceptions", {"one image": "for no reason at all"})
    table = run_suite(native, model, ["one image"], sample=True)
    assert not table.ok
    assert "but holds: for no reason" in repr(table)
    with torch.no_grad():
        native.lm_head.weight.mul_(2)
    table = run_suite(native, model, ["one image"], sample=True)
    assert table.ok
    assert verdicts(table) == {"one image": "exception"}


def test_unknown_checks_are_refused(pair):
    with pytest.raises(InputError, match="No check is called 'colours'"):
        run_suite(*pair, ["colours"])
