"""Profiles of caches, whatever they hold."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from made_data import make_data, quick
from made_hooks import LANGUAGE
from tiny import random_image

import mm_lens
from mm_lens import InputError


@pytest.fixture(scope="module")
def inputs(model):
    return model.prepare(
        ["What is it?", "Here is none.", "And this?"],
        [random_image(31, 57), None, random_image(8, 40)],
    )


def test_cache_of_components_has_a_row_for_each(model, inputs):
    names = mm_lens.names(["attn_out", "mlp_out", "z"])
    _, cache = model.run_with_cache(inputs, names_filter=names)
    table = quick(cache, metrics=["anisotropy", "linearity_paper"]).table
    rows = table[table.metric == "anisotropy"]
    assert set(rows.component) == {"attn_out", "mlp_out", "z"}
    assert len(rows) == 3 * 3 * 3
    pairs = set(table[table.metric == "linearity_paper"].source)
    assert pairs == {f"blocks.{b}.attn.hook_z" for b in range(3)}


def test_unfiltered_cache_has_every_component_once(model, inputs):
    _, cache = model.run_with_cache(inputs)
    table = quick(cache, metrics=["anisotropy"], modalities=["visual"]).table
    assert not table.duplicated(["hook", "modality", "metric"]).any()
    components = table.groupby("component").hook.count().to_dict()
    expected = dict.fromkeys(LANGUAGE, 3) | {"ln_final": 1, "resid_pre": 1}
    assert {k: v for k, v in components.items() if k in expected} == expected
    assert {"projector_in", "projector_out", "tower.z", "tower.resid_post"} <= components.keys()
    # What enters a block is what left the one before: one state, one row.
    assert set(table[table.component == "resid_pre"].layer) == {0}


def test_cache_of_views_is_that_of_the_full_stream(model, inputs):
    hooks = ["z", "mlp_out", "pre"]
    tables = []
    for modality in (None, ["visual", "text"]):
        _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names(hooks, modality))
        tables.append(quick(cache, heads=True).table)
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("z", "text"))
    assert set(quick(cache).table.modality) == {"text"}


def test_cache_of_one_head(model, inputs):
    name = "blocks.1.attn.hook_z"
    _, cache = model.run_with_cache(inputs, names_filter=name)
    table = quick(cache, heads=[2], metrics=["anisotropy"]).table
    assert set(table["head"]) == {-1, 2}
    cache.cache_dict[name] = cache.cache_dict[name][:, :, 2]
    with pytest.raises(InputError, match="heads=") as error:
        quick(cache)
    assert "\n" not in str(error.value)


def test_cache_of_text_alone(model):
    inputs = model.prepare(["No picture here.", "Nor here."], [None, None])
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names(["mlp_out", "z"]))
    table = quick(cache, metrics=["anisotropy"]).table
    assert table[table.modality == "text"].value.notna().all()
    assert set(table[table.modality == "visual"].warning) == {"no visual tokens in the data"}


def test_cache_without_what_is_asked_for(model, inputs):
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("z"))
    with pytest.raises(InputError, match=r"does not hold blocks\.0\.hook_mlp_out"):
        quick(cache, hooks=["mlp_out"])
    _, cache = model.run_with_cache(inputs, names_filter=lambda name: name == "embed.hook_in")
    with pytest.raises(InputError, match="holds no states of tokens"):
        quick(cache)


def test_a_row_of_the_table_in_one_line(model, inputs):
    names = mm_lens.names("mlp_out", ["visual", "text"])
    _, views = model.run_with_cache(inputs, names_filter=names)
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("mlp_out"))
    assert torch.equal(cache.tokens("mlp_out", 1, "text").x, views.tokens("mlp_out", 1, "text").x)
    found = mm_lens.metrics.METRICS["dimension_mle"].compute(cache.tokens("mlp_out", 2, "visual"))
    row = quick(cache, metrics=["dimension_mle"], modalities=["visual"]).table
    row = row[row.hook == "blocks.2.hook_mlp_out"]
    assert found.n_tokens == row.n_tokens.item()
    assert found.value == row.value.item()
    tokens = cache.tokens("mlp_out", 2, "visual")
    rows = views["mlp_out", 2, "visual"][inputs.layout.valid("visual")]
    assert sorted(map(bytes, tokens.x.numpy())) == sorted(map(bytes, rows.numpy()))
    z = model.run_with_cache(inputs, names_filter=mm_lens.names("z"))[1].tokens("z", 0)
    assert z.x.shape == (int(inputs.layout.mask("all").sum()), 24)


def test_earlier_profiles_are_read_as_states(model, tmp_path):
    p = quick(model, make_data(4))
    p.save(tmp_path / "run")
    (tmp_path / "run" / "SHA256SUMS").unlink()  # earlier versions wrote none
    old = pd.read_parquet(tmp_path / "run" / "profile.parquet")
    old.drop(columns=["component", "head", "source"]).to_parquet(
        tmp_path / "run" / "profile.parquet"
    )
    found = mm_lens.Profile.load(tmp_path / "run")
    pd.testing.assert_frame_equal(found.table, p.table, check_exact=True)
    json.dumps(found.provenance)
