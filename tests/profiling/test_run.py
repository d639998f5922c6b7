"""Profiles against plain loops over the native model, and what must hold for any data set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from made_data import make_data, quick
from tiny import random_image, tiny_llava_next

import mm_lens
from mm_lens import InputError
from mm_lens.metrics import Tokens
from mm_lens.metrics.cka import cka_estimate, paired_means
from mm_lens.metrics.gap import gap_estimate, integration_estimate
from mm_lens.profiling.result import COLUMNS
from mm_lens.profiling.states import state_names

# ---- the table ----


def test_table_has_every_cell_once(model):
    table = quick(model, make_data(), metrics=None).table
    assert tuple(table.columns) == COLUMNS
    place = ["stream", "modality", "layer", "metric"]
    assert not table.duplicated(place).any()
    names = state_names(model.cfg.n_layers)
    presets = {"honest", "paper"}
    chosen = [m for m in mm_lens.metrics.METRICS.values() if m.presets & presets]
    assert {*table.metric} == {metric.name for metric in chosen}
    for metric in chosen:
        layers = range(metric.arity - 1, model.cfg.n_layers + 1)
        expected = {
            (s, m, n)
            for s in ("residual", "main")
            for m in ("visual", "text", "all")
            for n in layers
        }
        rows = table[table.metric == metric.name]
        assert set(rows[place[:3]].itertuples(index=False, name=None)) == expected
    assert [names[layer] for layer in table.layer] == list(table.hook)
    assert table.value.notna().mean() > 0.8


def plain_r2(x, y):
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    rest = y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
    return 1 - (rest.square().sum() / y.square().sum()).item()


@torch.no_grad()
def test_linearity_stands_at_the_later_of_two_native_states(model):
    inputs = model.prepare(
        ["What is it?", "And this?"], [random_image(40, 57), random_image(60, 30)]
    )
    native = tiny_llava_next()[0]
    native.set_attn_implementation("sdpa")
    positions = (inputs.attention_mask.cumsum(1) - 1).clamp(min=0)
    states = native(**inputs, position_ids=positions, output_hidden_states=True).hidden_states
    visual = inputs.input_ids == native.config.image_token_id
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names(["resid_pre", "resid_post"]))
    table = quick(cache).table
    for layer in (1, 2):
        row = table[(table.layer == layer) & (table.metric == "linearity_paper")]
        value = row[row.modality == "visual"].value.item()
        expected = plain_r2(states[layer - 1][visual], states[layer][visual])
        assert value == pytest.approx(expected, abs=1e-9)


def test_same_seed_same_table(model):
    tables = [
        quick(model, make_data(), metrics=None, streams=["main"], modalities=["visual"]).table
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_batch_size_moves_values_by_rounding_only(model):
    """Rows are padded to the longest of their batch, and attention sums over the padding."""
    tables = [quick(model, make_data(12), batch_size=size).table for size in (1, 5, 12)]
    for table in tables[1:]:
        np.testing.assert_array_equal(table.n_tokens, tables[0].n_tokens)
        np.testing.assert_allclose(table.value, tables[0].value, rtol=0, atol=1e-5)


def test_dimension_rests_on_equal_numbers(model):
    data = make_data(12, text_only=())
    names = ["dimension_mle", "dimension_paper", "mean_cosine", "anisotropy"]
    profile = quick(model, data, tokens=10**4, metrics=names)
    numbers = profile.table.groupby(["metric", "modality"]).n_tokens.unique()
    counts = profile.provenance["tokens"]["sampled"]
    assert counts["visual"] > counts["text"] > 0
    assert counts["all"] == counts["visual"] + counts["text"]
    for modality in ("visual", "text", "all"):
        assert max(numbers["dimension_mle", modality]) <= counts["text"]  # without copies
        assert numbers["mean_cosine", modality].tolist() == [counts[modality]]
        # The paper takes all tokens, however many each modality has.
        assert numbers["dimension_paper", modality].tolist() == [counts[modality]]
        assert numbers["anisotropy", modality].tolist() == [counts[modality]]


def test_data_without_images(model):
    table = quick(model, make_data(4, range(4)), metrics=None, streams=["main"]).table
    visual, text, both = (table[table.modality == m] for m in ("visual", "text", "all"))
    assert visual.value.isna().all()
    assert set(visual.warning) == {"no visual tokens in the data"}
    np.testing.assert_array_equal(text.value, both.value)


def test_too_few_tokens_are_warned_of_not_fatal(model):
    table = quick(model, make_data(1), metrics=None, tokens=1).table
    assert table.value.isna().all()
    assert (table.warning != "").all()


# ---- data that cannot be used ----


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"metrics": ["nope"]}, "nope"),
        ({"metrics": None, "presets": ["best"]}, "best"),
        ({"metrics": None, "presets": []}, "No metric"),
        ({"streams": ["residual", "residual"]}, "twice"),
        ({"samples": 0}, "samples=0"),
        ({"tokens": 0}, "tokens=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"tokens": 10**12}, "GiB"),
    ],
)
def test_wrong_arguments_are_named(model, wrong, message):
    with pytest.raises(InputError, match=message):
        quick(model, make_data(2), **wrong)


def test_model_and_data_go_together(model):
    with pytest.raises(InputError, match="needs data"):
        quick(model)
    with pytest.raises(InputError, match="needs a model"):
        quick("demo/llava-next", make_data(2))


def test_whatever_load_takes_can_be_profiled(model):
    """Names, dictionaries and tuples, as samples of the same ids would be."""
    pictures = [random_image(20 + i, 30, i) for i in range(4)]
    samples = [mm_lens.data.Sample(str(i), "What?", p, None) for i, p in enumerate(pictures)]
    expected = quick(model, samples, streams=["residual"])
    for data in (
        [{"image": picture, "text": "What?"} for picture in pictures],
        [(picture, "What?") for picture in pictures],
    ):
        found = quick(model, data, streams=["residual"])
        pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)
    named = quick(model, "easy-vqa", streams=["residual"], samples=2).provenance["data"]
    assert (named["name"], named["n_samples"]) == ("easy-vqa test", 2)


# ---- between the modalities ----


def test_rows_between_modalities_are_the_functions_of_the_cached_states(model, tmp_path):
    data = make_data(8, text_only=(4,))
    given = {"metrics": None, "presets": ["between"], "tokens": 2000, "streams": ["residual"]}
    found = quick(model, data, **given)
    assert {*found.table.modality} == {"visual-text"}
    assert len(found.table) == 5 * (model.cfg.n_layers + 1)
    parts = {"visual": [], "text": []}
    for number, sample in enumerate(data):
        inputs = model.prepare(sample.text, sample.image)
        _, cache = model.run_with_cache(inputs, names_filter="blocks.1.hook_resid_post")
        for modality, held in parts.items():
            mask = inputs.layout.mask(modality)[0]
            held += [(number, x) for x in cache["blocks.1.hook_resid_post"][0, mask]]
    sides = []
    for held in parts.values():
        number = torch.tensor([number for number, _ in held])
        sides.append(Tokens(torch.stack([x for _, x in held]), number, number, number))
    expected = {
        "modality_gap": gap_estimate(*sides).value,
        "integration_distance": integration_estimate(*sides).value,
        "modality_cka": cka_estimate(*paired_means(*sides)).value,
    }
    for metric, value in expected.items():
        row = found.table.query(f"layer == 2 and metric == '{metric}'").iloc[0]
        assert row.value == pytest.approx(value, rel=1e-4)
    files = quick(model, data, run_dir=tmp_path / "run", **given)
    assert files.table.equals(found.table)
    found.save(tmp_path / "one")
    assert mm_lens.Profile.load(tmp_path / "one").table.equals(found.table)


def test_what_compares_modalities_needs_both(model):
    inputs = model.prepare(["What is it?"], [random_image(20, 30)])
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_post"))
    for source in ((model, make_data(3)), (cache,)):
        with pytest.raises(InputError, match="compares visual and text tokens: name both"):
            quick(*source, metrics=["modality_gap"], modalities=["visual"])
    table = quick(model, make_data(3, text_only=(0, 1, 2)), metrics=["modality_gap"]).table
    assert (table.warning == "no visual tokens in the data").all()
