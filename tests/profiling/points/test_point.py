"""Every hook is what the native model has there, and stands at its layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES
from made_data import make_data, plain_mixed_key, quick
from made_hooks import LANGUAGE, native_batches, states_at, two_of
from made_tokens import in_float64, microscope
from skdim.id import TwoNN

from mm_lens.profiling.collecting.token_sample import PATCH, digest


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_at_every_hook_of_a_block_equal_the_native_models(family, side):
    model, native = two_of(family)
    model.processor.tokenizer.padding_side = side
    data = make_data(6, text_only=(4,))
    states = states_at(model, data, LANGUAGE)
    truth = {point.hook: [] for point in states.points}
    for rows, inputs, held in native_batches(model, native, data):
        for row, sample in enumerate(rows):
            attended = inputs.attention_mask[row].nonzero().squeeze(1).tolist()
            for position, place in enumerate(attended):
                key = plain_mixed_key(digest(sample.id), position, 0)
                visual = int(inputs.input_ids[row, place]) == model.family.image_token_id
                for name, found in truth.items():
                    found.append((key, visual, held[name][row, place]))
    for index, point in enumerate(states.points):
        ordered = sorted(truth[point.hook], key=lambda entry: entry[0])
        for modality, wanted in (("visual", [True]), ("text", [False]), ("all", [True, False])):
            tokens = states.tokens.tokens("residual", index, modality)
            rows = [vector for _, visual, vector in ordered if visual in wanted]
            assert torch.equal(tokens.x, torch.stack(rows)), point.hook
    assert {point.component for point in states.points} == {*LANGUAGE}


def test_main_stream_is_that_of_the_block_without_skips(model):
    """Without skip connections, what attention gives is what the MLP gets."""
    states = states_at(
        model, make_data(4), ["attn_out", "resid_mid", "mlp_out", "resid_post"], streams=("main",)
    )
    found = {p.hook: states.tokens.tokens("main", i, "all").x for i, p in enumerate(states.points)}
    for b in range(model.cfg.n_layers):
        block = f"blocks.{b}.hook"
        assert torch.equal(found[f"{block}_attn_out"], found[f"{block}_resid_mid"])
        assert torch.equal(found[f"{block}_mlp_out"], found[f"{block}_resid_post"])


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_metrics_at_hooks_equal_llm_microscope_and_scikit_dimension(family):
    model, _ = two_of(family, torch.float64)
    data = make_data(6, text_only=())
    hooks = ["z", "mlp_out", "ln2", "projector_out"]
    names = ["dimension_paper", "dimension_fit90", "anisotropy", "linearity_paper"]
    options = {"metrics": names, "streams": ["residual"], "modalities": ["visual"]}
    pairs = [("resid_mid", "mlp_out")]
    table = quick(
        model, data, hooks=hooks, pairs=pairs, batch_size=3, tokens=10**4, **options
    ).table
    states = states_at(model, data, [*hooks, "resid_mid"])
    index = {point.hook: i for i, point in enumerate(states.points)}
    # The paper's definition takes all tokens, others as many at every hook.
    counts = states.tokens
    fewest = min(counts.count(PATCH if p.tower else "visual") for p in states.points)
    for point in states.points:
        group = PATCH if point.tower else "visual"
        x = states.tokens.tokens("residual", index[point.hook], group).x
        rows = table[(table.hook == point.hook) & (table.source == "")].set_index("metric").value
        if point.component == "resid_mid":
            assert rows.empty  # only the end of a pair
            continue
        with in_float64():
            peer = microscope()
            expected = peer.intrinsic_dimension(x, "cpu")
            assert rows["anisotropy"] == pytest.approx(peer.calculate_anisotropy_torch(x), rel=1e-9)
        assert rows["dimension_paper"] == pytest.approx(expected, rel=1e-6)
        unique = np.unique(x[:fewest].numpy(), axis=0)
        assert rows["dimension_fit90"] == pytest.approx(TwoNN().fit(unique).dimension_, rel=1e-6)
    for b in range(model.cfg.n_layers):
        target, source = f"blocks.{b}.hook_mlp_out", f"blocks.{b}.hook_resid_mid"
        row = table[(table.hook == target) & (table.source == source)]
        a, c = (states.tokens.tokens("residual", index[n], "visual").x for n in (source, target))
        with in_float64():
            expected = microscope().procrustes_similarity(a, c)
        assert row.value.item() == pytest.approx(expected, abs=1e-9)


def test_layer_is_the_state_that_a_hook_leads_to(model):
    table = quick(
        model,
        make_data(3),
        hooks=["resid_pre", "attn_out", "ln_final", "tower.z"],
        metrics=["anisotropy"],
        streams=["residual"],
    ).table
    found = table.groupby("component").layer.unique().map(list).to_dict()
    assert found == {
        "resid_pre": [0, 1, 2],
        "attn_out": [1, 2, 3],
        "ln_final": [3],
        "tower.z": [1, 2, 3, 4],
    }


def test_hooks_beside_the_states_leave_them_as_they_are(model):
    data = make_data(9)
    alone = quick(model, data)
    beside = quick(
        model,
        data,
        hooks=["states", "z", "pre", "ln_final"],
        heads=True,
        pairs=["states", "components"],
    )
    table = beside.table[
        beside.table.hook.isin(alone.table.hook) & (beside.table.source.isin(alone.table.source))
    ]
    pd.testing.assert_frame_equal(table.reset_index(drop=True), alone.table, check_exact=True)
