"""Ablations against native hooks."""

from __future__ import annotations

import pytest
import torch
from causal_cases import IMAGES, PROMPTS
from native_runs import metric, run_native
from tiny import random_image

import mm_lens
from mm_lens import InputError
from mm_lens.causal.ablation import (
    ablation_hooks,
    ablation_table,
    mean_activation,
    mean_embedding_hooks,
)
from mm_lens.layout.matching import match_positions

pytestmark = pytest.mark.every_family


@torch.no_grad()
def test_ablations_equal_native_hooks(model, native, family):
    inputs, other = (model.prepare("Eh?", image) for image in IMAGES)
    group, layer = "visual", 1
    mask = inputs.layout.mask(group)
    block = native.model.language_model.layers[layer]

    def outputs(x):
        held = []
        handle = block.register_forward_hook(
            lambda m, a, out: held.append(out[0] if isinstance(out, tuple) else out)
        )
        run_native(native, x)
        handle.remove()
        return held[0]

    mine, theirs = outputs(inputs), outputs(other)
    both = torch.cat([x[y.layout.mask(group)] for x, y in ((mine, inputs), (theirs, other))])
    means = mean_activation(model, [inputs, other], group, layers=[layer])
    assert (means[layer] - both.mean(0)).abs().max() < 1e-5
    _, donor = model.run_with_cache(other, names_filter=mm_lens.names("resid_post"))
    match = match_positions(inputs.layout, other.layout)
    values = {
        "zero": torch.zeros_like(mine),
        "mean": both.mean(0).expand_as(mine),
        "resample": theirs[0, match[0].clamp(min=0)][None],
    }
    for how, value in values.items():
        needed = {"zero": {}, "mean": {"means": means}, "resample": {"donor": donor}}[how]
        hooks = ablation_hooks(model, inputs, group, layers=[layer], how=how, **needed)
        got = metric(model.run_with_hooks(inputs, fwd_hooks=hooks))

        def edit(m, a, out, value=value):
            new = torch.where(mask[..., None], value, out[0] if isinstance(out, tuple) else out)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        handle = block.register_forward_hook(edit)
        want = metric(run_native(native, inputs))
        handle.remove()
        assert (got - want).abs().max() < 1e-5


def test_ablation_table(model):
    inputs = [model.prepare("Eh?", random_image(31, 57, seed)) for seed in range(4)]
    samples = [(x, metric) for x in inputs]
    options = {"layers": [2]}
    for how in ("zero", "mean", "resample"):
        table = ablation_table(
            model, samples, ["visual", "last"], how=how, hook="resid_post", progress=False
        )
        assert list(table["group"].unique()) == ["visual", "last"]
        again = ablation_table(
            model, samples, ["visual", "last"], how=how, hook="resid_post", progress=False
        )
        assert again.equals(table)
        # After the last block only the last position reaches the answer.
        late = table[table["first_layer"] == 2].set_index("group")
        assert abs(late.loc["visual", "effect"]) < 1e-5
        # A derangement of donors may leave the mean alone, but not every sample.
        assert late.loc["last", "high"] - late.loc["last", "low"] > 1e-2
    with torch.no_grad():
        hooks = ablation_hooks(model, inputs[0], "last", **options)
        want = metric(model.run_with_hooks(inputs[0], fwd_hooks=hooks))
    assert want.item() == pytest.approx(0, abs=1e-6)
    for change, complaint in (
        ({"how": "mean"}, "means="),
        ({"how": "resample"}, "donor="),
        ({"group": "image 3"}, "no position"),
        ({"layers": []}, "no layer"),
        ({"layers": [3]}, "no layer 3"),
    ):
        with pytest.raises(InputError, match=complaint):
            ablation_hooks(model, inputs[0], **{"group": "visual", **options, **change})
    with pytest.raises(InputError, match="no layer"):
        mean_activation(model, inputs, "visual", layers=[])
    with pytest.raises(InputError, match="named twice"):  # its states would count twice
        mean_activation(model, inputs, "visual", layers=[2, -1])


@torch.no_grad()
def test_a_mean_of_another_shape_is_refused(model):
    inputs = model.prepare("Eh?", IMAGES[0])
    for hooks in (
        ablation_hooks(model, inputs, "visual", layers=[0], how="mean", means={0: torch.zeros(1)}),
        mean_embedding_hooks(inputs, torch.zeros(1)),
    ):
        with pytest.raises(InputError, match=r"\(1,\).*\(24,\)"):
            model.run_with_hooks(inputs, fwd_hooks=hooks)
    with pytest.raises(InputError, match="no position in 'image 3'"):
        mean_embedding_hooks(inputs, torch.zeros(24), "image 3")


def test_ablation_table_runs_several_groups_in_one_pass(model):
    inputs = [model.prepare(PROMPTS, [random_image(31, 57, k), IMAGES[1]]) for k in (0, 5)]
    samples = [(x, metric) for x in inputs]
    passes = []
    handle = model.original_model.register_forward_pre_hook(lambda *_: passes.append(1))
    groups = ["visual", "text", "last", "base"]
    for how in ("zero", "mean", "resample"):
        found, ran = [], []
        for batch_size in (1, 4):
            passes.clear()
            options = {"batch_size": batch_size, "progress": False, "n_resamples": 10}
            table = ablation_table(model, samples, groups, how=how, window=2, **options)
            found.append(torch.tensor(table["value"].to_numpy()))
            ran.append(len(passes))
        assert (found[0] - found[1]).abs().max() < 1e-5
        # two samples × two windows, of four groups each
        assert ran[0] - ran[1] == 2 * 2 * (4 - 1)
    handle.remove()
