"""Recipes about heads: which are chosen, and what is said where there is nothing."""

from __future__ import annotations

import math

import pytest
import torch

from mm_lens.heads import head_scores
from mm_lens.recipes.looks import cut_sinks, localise, look_relatively


def test_heads_are_chosen_on_other_pictures_than_they_are_scored_on(model, asked):
    found = localise(model, asked, 0)
    named = found.note.removeprefix("chosen heads: ").split(", ")
    assert len(named) == 3
    table = found.table
    heads = table.groupby(["layer", "head"])["image"].mean()
    assert len(heads) == model.cfg.n_heads * 3
    one = head_scores(model, asked[0].inputs, asked[0].thing)
    mine = table[table["question"] == 0].reset_index(drop=True)
    assert mine["overlap"].equals(one["overlap"])
    assert math.isnan(localise(model, asked[:1], 0).value)


def test_relative_attention_and_no_sinks(model, asked):
    found = look_relatively(model, asked[:3], 0)
    assert found.table["log_ratio"].notna().all()
    assert found.value == pytest.approx(found.table["log_ratio"].mean())
    none = cut_sinks(model, asked[:1], 0)
    assert math.isnan(none.value)
    assert "No image token is a sink" in none.note
    assert torch.is_grad_enabled()
