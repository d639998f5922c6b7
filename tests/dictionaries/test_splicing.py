"""Coders in the model, against plain forward hooks on the native model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from native_runs import layers_of, run_native
from native_writing import block_edited, native_greedy
from tiny import random_image

from mm_lens import HookError, InputError
from mm_lens.dictionaries import load_coder, splice_hooks
from mm_lens.dictionaries.splicing import check_coder

pytestmark = pytest.mark.every_family
FILES = Path(__file__).parents[1] / "outside" / "sae"


@pytest.fixture(scope="module")
def inputs(model):
    return model.prepare(["Eh?", "No!"], [random_image(12, 12, 1), random_image(12, 12, 2)])


@pytest.fixture(scope="module")
def coder():
    return load_coder(FILES / "jumprelu")


def off(features):
    features[:, :20] = 0
    return features


@torch.no_grad()
def test_in_a_pass(model, native, inputs, coder):
    plain = model(inputs)
    same = splice_hooks(model, inputs, coder, "visual", layer=1)
    assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=same), plain)
    mask = inputs.layout.mask("visual")

    def replaced(states):
        new = coder.decode(coder.encode(states))
        return torch.where(mask[..., None], new, states)

    def edited(states):
        found = coder.encode(states)
        less = found.clone()
        less[..., :20] = 0
        new = states + coder.decode(less) - coder.decode(found)
        return torch.where(mask[..., None], new, states)

    for options, edit in (({"error": False}, replaced), ({"edit": off}, edited)):
        hooks = splice_hooks(model, inputs, coder, "visual", layer=1, **options)
        with block_edited(native, 1, edit):
            want = run_native(native, inputs.native)
        got = model.run_with_hooks(inputs, fwd_hooks=hooks)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        assert (got - plain).abs().max() > 1e-2


@torch.no_grad()
def test_a_transcoder_reads_at_one_place_and_writes_at_another(model, native, inputs):
    coder = load_coder(FILES / "skip")
    hooks = splice_hooks(
        model, inputs, coder, "all", layer=1, hook="ln2.hook_out", write="mlp_out", error=False
    )
    handle = layers_of(native)[1].mlp.register_forward_hook(
        lambda m, args, out: coder.decode(coder.encode(args[0]), args[0])
    )
    want = run_native(native, inputs.native)
    handle.remove()
    got = model.run_with_hooks(inputs, fwd_hooks=hooks)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_while_it_writes(model, native, inputs, coder):
    def edit(states):
        here = torch.nn.functional.pad(
            inputs.layout.mask("text"), (0, states.shape[1] - inputs.layout.shape[1]), value=True
        )
        return torch.where(here[..., None], coder.decode(coder.encode(states)), states)

    want, _ = native_greedy(native, inputs, 3, lambda total: block_edited(native, 1, edit))
    hooks = splice_hooks(model, inputs, coder, "text", layer=1, error=False)
    with model.hooks(fwd_hooks=hooks):
        got = model.generate(
            inputs,
            max_new_tokens=3,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            return_type="tokens",
            suppress_tokens=[*range(90, model.cfg.d_vocab)],
        )
    assert torch.equal(got[:, -3:], want)


def test_what_cannot_be_spliced_is_refused(model, inputs, coder):
    calls = (
        ({"layer": 1, "hook": "no"}, HookError, "no hook point 'no'"),
        ({"layer": 1, "write": "ln2.hook_out"}, HookError, "No hook point is called"),
        ({"layer": 1, "group": "tile 9"}, InputError, "to splice a coder into"),
    )
    for options, kind, told in calls:
        with pytest.raises(kind, match=told):
            splice_hooks(model, inputs, coder, **options)
    with pytest.raises(InputError, match="coder is what load_coder returned"):
        check_coder("coder")
    hooks = splice_hooks(model, inputs, coder, layer=1, hook="pre")
    with pytest.raises(InputError, match="does not take activations of 44"):
        model.run_with_hooks(inputs, fwd_hooks=hooks)
