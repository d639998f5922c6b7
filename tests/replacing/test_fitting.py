"""What is fitted on: whose states, and of which pictures."""

from __future__ import annotations

import pytest
import torch
from made_questions import ask
from native_runs import native_states
from tiny import random_image

from mm_lens import InputError
from mm_lens.replacing.fitting import picture_sums, read_states, require_others

NAME = "blocks.1.hook_resid_pre"


def test_states_are_those_of_the_native_model(model, native):
    both = model.prepare(["Eh?", "None."], [random_image(31, 57, 3), None])
    without = model.prepare("None.", None)
    ((inputs, mask, states),) = read_states(model, [both, without], "visual", [NAME])
    assert inputs is both
    assert mask.sum(1).tolist()[1] == 0
    want, _ = native_states(native, both, 1)
    assert (states[NAME] - want)[mask].abs().max() < 1e-5
    with pytest.raises(InputError, match="is one of visual, text"):
        next(read_states(model, [both], "newline", [NAME]))


def test_pictures_are_told_apart_by_their_pixels(model):
    first, second = (model.prepare("Eh?", random_image(31, 57, seed)) for seed in (0, 1))
    again = model.prepare("Another question?", random_image(31, 57, 0))
    assert picture_sums(first) == picture_sums(again) != picture_sums(second)
    assert picture_sums(model.prepare("None.", None)) == frozenset()
    samples = ask(model, [1, 0])
    with pytest.raises(InputError, match="The picture of sample 1"):
        require_others(picture_sums(first), samples)
    require_others(picture_sums(first), samples[:1])
    assert torch.is_grad_enabled()
