"""A pass that is run again from a block on gives the logits of a whole native pass."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, load_tiny
from native_runs import layers_of, run_native
from tiny import random_image

from mm_lens.model.running.rerun import Rerun

pytestmark = pytest.mark.every_family


@pytest.fixture(scope="module")
def exact(family):
    return load_tiny(family, torch.float64, check=False)


@pytest.fixture(scope="module")
def exact_native(family):
    return FAMILIES[family]()[0].double()


@pytest.fixture(scope="module", params=["left", "right"])
def inputs(request, exact):
    rows = ["What is it?", "Why?"], [random_image(31, 57), None]
    return exact.prepare(*rows, padding_side=request.param)


def scaled(factor):
    """A hook that multiplies, and another one for the native layer."""

    def native(module, args, out):
        return (out[0] * factor, *out[1:]) if isinstance(out, tuple) else out * factor

    return lambda x, hook: x * factor, native


def test_every_layer_gives_the_native_logits(exact, exact_native, inputs):
    again = Rerun(exact, inputs, range(exact.cfg.n_layers))
    expected, real = run_native(exact_native, inputs), inputs.attention_mask.bool()
    torch.testing.assert_close(again.logits[real], expected[real], rtol=0, atol=1e-10)
    for layer in range(exact.cfg.n_layers):
        for copy in again.run(layer, copies=3):
            torch.testing.assert_close(copy[real], expected[real], rtol=0, atol=1e-10)


def test_hooks_of_every_run_and_of_one_equal_native_hooks(exact, exact_native, inputs):
    (ours, native), real = scaled(0.5), inputs.attention_mask.bool()
    always = [("blocks.0.hook_resid_post", ours)]
    again = Rerun(exact, inputs, [1], hooks=always)
    (found,) = again.run(1, 1, [("blocks.1.hook_resid_post", ours)])
    handles = [layers_of(exact_native)[i].register_forward_hook(native) for i in (0, 1)]
    expected = run_native(exact_native, inputs)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-10)


def test_copies_stand_one_after_the_other_for_hooks_per_modality(exact, inputs):
    again = Rerun(exact, inputs, [1])
    seen = []
    again.run(1, 3, [("blocks.1.visual.hook_resid_pre", lambda x, hook: seen.append(x))])
    (rows,) = seen
    assert len(rows) == 3 * len(inputs.input_ids)
    assert torch.equal(rows[:2], rows[2:4])
    assert exact.context.explicit is None


def test_blocks_are_whole_again_after_an_error(exact, inputs):
    again = Rerun(exact, inputs, [2])

    def fails(tensor, hook):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        again.run(2, 1, [("blocks.2.hook_resid_pre", fails)])
    assert torch.equal(exact(inputs), again.logits)
