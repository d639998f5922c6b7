"""What is taken out, and what is read, by plain hooks on the native model."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES
from native_runs import native_patched, native_states

from mm_lens.recipes.objects import ablate_objects, compare_lenses, name_objects


def test_ablation_is_that_of_native_runs(model, asked):
    native = FAMILIES["llava-next"]()[0]
    states = [native_states(native, q.inputs.native, 0)[0] for q in asked]
    visual = [q.inputs.layout.mask("visual") for q in asked]
    mean = torch.cat([x[m] for x, m in zip(states, visual, strict=True)]).mean(0)
    found = ablate_objects(model, asked, 0)
    for k, question in enumerate(asked):
        native_logits = native_patched(
            native, question.inputs.native, 0, question.thing, mean.expand_as(states[k])
        )
        after = float(question.answers.probability(native_logits)[0])
        row = found.table.iloc[k]
        assert row["probability"] - row["drop_thing"] == pytest.approx(after, abs=1e-4)
        assert row["tokens"] == int(question.thing.sum())
    per_picture = (
        (found.table["drop_thing"] - found.table["drop_others"])
        .groupby([q.picture for q in asked])
        .mean()
    )
    assert found.value == pytest.approx(per_picture.mean())
    assert found.low <= found.value <= found.high


def test_words_of_the_thing(model, asked):
    """The mean over other answers is taken out: of the contrast of a word, nothing is left."""
    found = name_objects(model, asked, 0)
    assert len(found.table) == 6
    assert found.low <= found.value <= found.high


def test_both_lenses_read_shares(model, asked):
    table = compare_lenses(model, asked, 0).table
    assert table[["latent", "logit"]].min().min() >= 0
    assert table[["latent", "logit"]].max().max() <= 1
    assert table["latent"].max() > 0
