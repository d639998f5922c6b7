"""Hooks and heads by name, and what is refused, with the reason."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import load_tiny
from made_data import make_data, quick
from made_hooks import states_at

import mm_lens
from mm_lens import InputError


def test_each_head_is_its_part_of_z(model):
    data = make_data(12, text_only=())
    names = ["participation_ratio", "dimensions_95", "effective_rank"]
    table = quick(
        model, data, hooks=["z", "k"], heads=True, metrics=names, tokens=10**4, streams=["residual"]
    ).table
    width = model.cfg.d_head
    heads = table[table["head"] >= 0]
    assert set(heads[heads.component == "z"]["head"]) == set(range(model.cfg.n_heads))
    assert set(heads[heads.component == "k"]["head"]) == {0, 1}  # two heads of keys
    assert (heads.value.dropna() <= width + 1e-9).all()
    np.testing.assert_allclose(heads.n_tokens / heads.n_over_d, width)
    states = states_at(model, data, ["z"])
    tokens = states.tokens.tokens("residual", 1, "text")
    x = tokens.x.unflatten(1, (model.cfg.n_heads, width))[:, 2]
    one = mm_lens.metrics.Tokens(x.contiguous(), tokens.sample, tokens.position, tokens.token_id)
    row = heads[
        (heads.hook == "blocks.1.attn.hook_z")
        & (heads["head"] == 2)
        & (heads.modality == "text")
        & (heads.metric == "participation_ratio")
    ]
    expected = mm_lens.metrics.METRICS["participation_ratio"].compute(one).value
    # The same rows in float32 products, which may be cut in another place.
    assert row.value.item() == pytest.approx(expected, rel=1e-7)


def test_names_patterns_and_functions_name_one_thing(model):
    options = {"metrics": ["anisotropy"], "streams": ["residual"]}
    tables = [
        quick(model, make_data(3), hooks=hooks, **options).table
        for hooks in (
            ["z"],
            "blocks.*.attn.hook_z",
            ["blocks.0.attn.hook_z", "blocks.2.attn.hook_z", "blocks.1.visual.hook_z"],
            mm_lens.names("z"),
            lambda name: name.endswith("attn.hook_z") and name.startswith("blocks"),
            mm_lens.names("z", modality="visual"),
        )
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hooks": ["nope"]}, "No hook point is called 'nope'"),
        ({"hooks": []}, "No hook is asked for"),
        ({"hooks": ["*.nope"]}, "No hook point matches"),
        ({"hooks": ["embed.hook_in"]}, "no vector per token"),
        ({"hooks": ["blocks.0.attn.hook_rot_q"]}, "never fires in this model"),
        ({"hooks": ["blocks.0.attn.hook_pattern"]}, "no token axis"),
        ({"hooks": ["vision_encoder.post_layernorm.hook_out"]}, "no vector per token"),
        ({"hooks": ["unembed.hook_out"]}, "no token axis"),
        ({"hooks": ["attn_out"], "heads": True}, "has heads"),
        ({"hooks": ["z"], "heads": [4]}, "heads are 0 to 3"),
        ({"pairs": ["everything"]}, "No pairs are called 'everything'"),
        ({"pairs": [("z", "attn_out", "q")]}, "is no pair"),
        ({"pairs": [("states", "attn_out")]}, "not in the same blocks"),
        ({"hooks": ["tower"], "modalities": ["text"]}, "patches, which are visual tokens"),
    ],
)
def test_what_cannot_be_profiled_is_named(model, wrong, message):
    with pytest.raises(InputError, match=message):
        quick(model, make_data(2), **wrong)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_attention_patterns_have_no_token_axis():
    eager = load_tiny(attention="eager", check=False)
    with pytest.raises(InputError, match="no token axis"):
        quick(eager, make_data(2), hooks=["blocks.0.attn.hook_pattern"])
    table = quick(eager, make_data(4), hooks=["z"], heads=True, metrics=["anisotropy"]).table
    assert set(table["head"]) == {-1, 0, 1, 2, 3}
