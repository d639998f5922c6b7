"""The suite finds what is planted, and says what came of each check."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_families import build

import mm_lens
from mm_lens import InputError
from mm_lens.check import run_suite
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
    assert set(verdicts(run_suite(native, model, names, sample=True)).values()) == {"fails"}


def test_an_edit_that_is_lost_is_found(pair):
    native, model = pair
    model.blocks[2].mlp.hook_out.add_perma_hook(lambda x, hook: x.detach().clone())
    assert verdicts(run_suite(native, model, ["gradient"], sample=True)) == {"gradient": "fails"}


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
