"""Logits of some positions are those of all, at these positions."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from native_attention import prepare
from tiny import random_image

from mm_lens import InputError
from mm_lens.causal import Answers, patching
from mm_lens.causal.ablation import ablation_table
from mm_lens.causal.knockout import knockout_table
from mm_lens.looking import norms, visual_logit_lens
from mm_lens.looking.attention import attention_map
from mm_lens.model.running.logits import Kept
from mm_lens.model.running.rerun import Rerun

pytestmark = pytest.mark.filterwarnings("ignore:.*give no interval")


def close(found, want):
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


def answers_of(model, inputs):
    return Answers(model, inputs, ["a", "b"], right="a", tokens=[20, 30])


@pytest.fixture
def widths(model, monkeypatch):
    """Positions whose logits are computed, pass by pass."""
    found = []
    handle = model.unembed.register_forward_pre_hook(lambda m, args: found.append(args[0].shape[1]))
    yield found
    handle.remove()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llava-next", "omnifusion"], indirect=True)
def test_kept_logits_are_the_same(model, side):
    """But for rounding, since fewer rows may be summed in another order; also of copies."""
    inputs = prepare(model, side)
    at = torch.tensor([5, int(inputs.attention_mask[1].argmax()), inputs.layout.shape[1] - 1])
    rows = torch.arange(3)
    with torch.no_grad():
        whole = model(inputs)
    kept = Kept(model, at)
    with torch.no_grad():
        close(kept.of(model(inputs, **kept.options))[:, 0], whole[rows, at])
    some, every = Rerun(model, inputs, [1], at=at), Rerun(model, inputs, [1])
    close(some.logits[:, 0], whole[rows, at])
    hooks = [("blocks.1.visual.hook_resid_pre", lambda x, hook: x.flip(1))]
    for one, other in zip(some.run(1, 2, hooks), every.run(1, 2, hooks), strict=True):
        close(one[:, 0], other[rows, at])
    assert some.difference(1) <= 1e-5


def opaque(answers):
    """The same metrics, of which nobody can tell what they read."""
    return {name: (lambda logits, m=metric: m(logits)) for name, metric in answers.metrics.items()}


def with_images(model, side):
    texts = ["What is it?", "A picture here.", "And what is this one?"]
    return model.prepare(texts, [random_image(31, 57, i) for i in range(3)], padding_side=side)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tables_and_sweeps_read_what_metrics_say(model, widths, side):
    inputs = with_images(model, side)
    n, answers = inputs.layout.shape[1], answers_of(model, inputs)
    read = len(answers.last.unique())
    assert read < n

    def of(metrics):
        samples = [(inputs, metrics)]
        _, cache = model.run_with_cache(inputs, names_filter="blocks.1.hook_resid_pre")
        widths.clear()
        tables = [
            knockout_table(model, samples, [("text", "last")], keep_self=True, progress=False),
            ablation_table(model, samples, ["text"], progress=False),
        ]
        sweep = patching.get_act_patch_resid_pre(
            model, inputs, cache, metrics, axis="modality", layers=[1], progress=False
        )
        return tables, sweep.values, set(widths)

    tables, values, asked = of(answers.metrics)
    assert asked == {read}
    whole_tables, whole_values, all_asked = of(opaque(answers))
    assert all_asked == {n}
    for found, want in zip(tables, whole_tables, strict=True):
        pd.testing.assert_frame_equal(found, want, rtol=0, atol=1e-5)
    close(values, whole_values)


def test_lenses_and_maps_read_little(model, widths):
    inputs = prepare(model, "left")
    norms(model, inputs)
    attention_map(model, inputs)
    assert widths == [1, 1]
    visual_logit_lens(model, inputs, layers=[1])
    assert 2 <= widths[2] <= 3  # the first image token of each row that has one


def test_answers_of_other_inputs_are_refused_as_before(model):
    inputs, other = with_images(model, "left"), model.prepare(["Eh"] * 3, None)
    _, cache = model.run_with_cache(inputs, names_filter="blocks.1.hook_resid_pre")
    with pytest.raises(InputError, match="These answers are of inputs of shape"):
        patching.get_act_patch_resid_pre(
            model,
            inputs,
            cache,
            answers_of(model, other).logit_diff,
            axis="modality",
            layers=[1],
            progress=False,
        )
