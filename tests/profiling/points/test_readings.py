"""What states are read as, against the native model's own modules."""

from __future__ import annotations

import pytest
import torch
from conftest import load_tiny
from made_data import make_data
from tiny import random_image

import mm_lens
from mm_lens import MMLensError
from mm_lens.profiling.points import readings
from mm_lens.profiling.points.readings import Readout


@pytest.fixture(scope="module")
def data():
    return make_data(5, text_only=(4,))


def plain(native, inputs):
    """Entropy, divergence from the end and rank of each position, by state."""
    with torch.no_grad():
        found = native(**inputs.native, output_hidden_states=True)
        norm = native.model.language_model.norm
        states = [*map(norm, found.hidden_states[:-1]), found.hidden_states[-1]]
        logs = [native.lm_head(x)[0].double().log_softmax(-1) for x in states]
    end = found.logits[0].double().log_softmax(-1)
    best = end.argmax(-1, keepdim=True)
    return [
        torch.stack(
            [
                -(x.exp() * x).sum(-1),
                (end.exp() * (end - x)).sum(-1),
                (x > x.gather(-1, best)).sum(-1).double(),
            ]
        )
        for x in logs
    ]


def test_rows_of_a_profile_and_of_its_samples_are_those_of_the_native_model(model, native, data):
    given = {"presets": ["lens"], "tokens": 2000, "batch_size": 2, "progress": False}
    profile = mm_lens.profile(model, data, per_sample=True, **given)
    assert {*profile.table.stream} == {"residual"}
    assert len(profile.table) == 3 * 3 * (model.cfg.n_layers + 1)
    each = profile.samples.query("stream == 'residual'")
    assert profile.samples.query("stream == 'main'").lens_entropy.isna().all()
    held = {"visual": [], "text": []}
    for index, sample in enumerate(data):
        inputs = model.prepare(sample.text, sample.image)
        found = plain(native, inputs)
        for modality, parts in held.items():
            mask = inputs.layout.mask(modality)[0]
            if not mask.any():
                continue
            parts.append([numbers[:, mask] for numbers in found])
            rows = each[(each["index"] == index) & (each.modality == modality)]
            for row in rows.itertuples():
                expected = float(found[row.layer][0, mask].mean())
                assert row.lens_entropy == pytest.approx(expected, rel=1e-5)
    for modality, parts in held.items():
        for layer in range(model.cfg.n_layers + 1):
            whole = torch.cat([part[layer] for part in parts], 1).mean(1)
            for metric, expected in zip(
                ("lens_entropy", "lens_kl", "lens_rank"), whole, strict=True
            ):
                row = profile.table.query(
                    f"modality == '{modality}' and layer == {layer} and metric == '{metric}'"
                ).iloc[0]
                assert row.value == pytest.approx(float(expected), rel=1e-4, abs=1e-6)
                assert row.n_over_d == row.n_tokens / model.cfg.d_model


def test_the_last_state_is_at_hand_in_every_pass_and_whatever_is_asked_for(model, data, tmp_path):
    given = {"metrics": ["lens_kl"], "tokens": 400, "progress": False, "streams": ["residual"]}
    whole = mm_lens.profile(model, data, **given)
    size = 400 * 24 * 4 * 2 / 2**30  # the states of one hook
    several = mm_lens.profile(model, data, budget=3.1 * size, **given)
    assert several.provenance["memory"]["passes"] > 1
    assert several.table.equals(whole.table)
    one = mm_lens.profile(model, data, hooks=["blocks.0.hook_resid_post"], **given)
    assert one.table.hook.unique().tolist() == ["blocks.0.hook_resid_post"]
    assert one.table.value.tolist() == whole.table.query("layer == 1").value.tolist()


def test_a_cache_without_its_last_state_says_so(model):
    inputs = model.prepare(["What is it?"], [random_image(20, 30)])
    names = "blocks.0.hook_resid_post"
    _, cache = model.run_with_cache(inputs, names_filter=names)
    table = mm_lens.profile(cache, metrics=["lens_entropy"], progress=False).table
    assert table.value.isna().all()
    assert table.warning.str.contains("the last state, which is not there").all()


def test_a_model_that_is_read_otherwise_is_refused(monkeypatch):
    model = load_tiny(check=False)
    monkeypatch.setattr(readings, "read_log_probs", lambda model, x: torch.zeros(len(x), 113))
    with pytest.raises(MMLensError, match="a logit lens is not defined"):
        Readout(model)
