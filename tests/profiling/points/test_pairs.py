"""Linearity of what to what: any two hooks of the same tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from made_data import make_data, quick
from made_hooks import states_at, two_of

import mm_lens
from mm_lens.profiling.collecting.token_sample import PATCH


def linear(table, hook, source):
    rows = table[(table.hook == hook) & (table.source == source)]
    return rows.set_index(["modality", "metric"]).value


@pytest.mark.parametrize("family", FAMILIES)
def test_output_of_attention_is_linear_in_z_exactly(family):
    model, _ = two_of(family, torch.float64)
    data = make_data(12, text_only=(4,))
    metrics = [m for m in mm_lens.metrics.METRICS if m.startswith("linearity")]
    for stream in ("residual", "main"):
        table = quick(
            model,
            data,
            hooks=["attn_out"],
            pairs=["output"],
            metrics=metrics,
            tokens=10**4,
            streams=[stream],
        ).table
        assert (table.source != "").all()
        assert set(table.component) == {"attn_out"}
        for b in range(model.cfg.n_layers):
            found = linear(table, f"blocks.{b}.hook_attn_out", f"blocks.{b}.attn.hook_z")
            for metric in ("linearity_paper", "linearity_adjusted", "linearity_heldout"):
                for modality in ("visual", "text", "all"):
                    assert found[modality, metric] == pytest.approx(1, abs=1e-9)


def test_the_identity_is_linear(model):
    hook = "blocks.1.mlp.hook_pre"
    data = make_data(12, text_only=())
    table = quick(
        model,
        data,
        hooks=[hook],
        pairs=[(hook, hook)],
        tokens=400,
        streams=["residual"],
        metrics=["linearity_paper", "linearity_heldout", "linearity_update_paper"],
    ).table
    found = linear(table, hook, hook)
    assert found["visual", "linearity_paper"] == pytest.approx(1, abs=1e-12)
    assert found["visual", "linearity_heldout"] == pytest.approx(1, abs=1e-9)
    update = table[table.metric == "linearity_update_paper"]
    assert update.warning.str.startswith("the update is the same for all tokens").all()


@torch.no_grad()
def test_hooks_of_different_width_have_states_but_no_update(model):
    data = make_data(12, text_only=())
    metrics = ["linearity_paper", "linearity_heldout", "linearity_update_paper"]
    table = quick(
        model,
        data,
        hooks=["projector_out"],
        pairs=["projector", ("ln2", "pre")],
        tokens=10**4,
        metrics=metrics,
        streams=["residual"],
    ).table
    states = states_at(model, data, ["projector_in", "projector_out"])
    x, y = (states.tokens.tokens("residual", i, PATCH).x.double() for i in (0, 1))
    x, y = x - x.mean(0), y - y.mean(0)
    left = y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
    found = table[table.hook == "vision_projector.hook_out"].set_index("metric")
    assert found.value["linearity_paper"] == pytest.approx(
        1 - float(left.square().sum() / y.square().sum()), abs=1e-9
    )
    assert found.chance["linearity_paper"] == pytest.approx(20 / (len(x) - 1))
    assert found.value["linearity_heldout"] < found.value["linearity_paper"]
    assert found.low["linearity_heldout"] < found.high["linearity_heldout"]
    assert found.warning["linearity_update_paper"] == (
        "hooks of different width (20 and 24) have no update"
    )
    # The MLP's inside is linear in its normalised input: one matrix.
    inside = table[(table.component == "pre") & (table.metric == "linearity_paper")]
    np.testing.assert_allclose(inside.value, 1, atol=1e-6)


def test_what_a_component_adds_is_the_difference_of_states():
    model, _ = two_of("llava-next", torch.float64)
    hooks = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    states = states_at(model, make_data(6), hooks)
    x = {p.hook: states.tokens.tokens("residual", i, "all") for i, p in enumerate(states.points)}
    names = ["anisotropy", "participation_ratio"]
    for b in range(model.cfg.n_layers):
        for out, before, after in (
            ("attn_out", "resid_pre", "resid_mid"),
            ("mlp_out", "resid_mid", "resid_post"),
        ):
            added = x[f"blocks.{b}.hook_{out}"]
            tokens = [x[f"blocks.{b}.hook_{name}"] for name in (before, after)]
            difference = mm_lens.metrics.Tokens(
                tokens[1].x - tokens[0].x, added.sample, added.position, added.token_id
            )
            for metric in names:
                both = [
                    mm_lens.metrics.METRICS[metric].compute(t).value for t in (added, difference)
                ]
                assert both[0] == pytest.approx(both[1], rel=1e-9)


def test_residual_stream_to_each_head(model):
    table = quick(
        model,
        make_data(12, text_only=()),
        hooks=["z"],
        heads=[0, 3],
        pairs=["heads"],
        metrics=["linearity_paper"],
        tokens=10**4,
        streams=["residual"],
    ).table
    places = {(row.hook, row.head, row.source) for row in table.itertuples()}
    assert places == {
        (f"blocks.{b}.attn.hook_z", head, f"blocks.{b}.hook_resid_pre")
        for b in range(model.cfg.n_layers)
        for head in (-1, 0, 3)
    }


def test_known_pairs_among_the_hooks_come_by_themselves(model):
    table = quick(
        model,
        make_data(4),
        hooks=["states", "attn_out", "z", "tower"],
        streams=["residual"],
        metrics=["linearity_paper"],
        modalities=["visual"],
    ).table
    pairs = {(row.source, row.hook) for row in table.itertuples()}
    tower = "vision_encoder.encoder_layers"
    assert pairs == {
        *((f"blocks.{b}.attn.hook_z", f"blocks.{b}.hook_attn_out") for b in range(3)),
        ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"),
        ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post"),
        (f"{tower}.0.hook_in", f"{tower}.0.hook_out"),
        (f"{tower}.0.hook_out", f"{tower}.1.hook_out"),
        (f"{tower}.1.hook_out", f"{tower}.2.hook_out"),
    }
