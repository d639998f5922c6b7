"""What a move brings to its targets, against loops."""

from __future__ import annotations

import pytest
import torch
from tiny import random_image

import mm_lens
from mm_lens import HookError, InputError
from mm_lens.causal.transfer import Move, patch, read_clean


@pytest.fixture
def move():
    row = torch.tensor([0, 0, 1])
    return Move(row, target=torch.tensor([1, 3, 0]), source=torch.tensor([2, 0, 4]))


CLEAN = torch.arange(2 * 5 * 2 * 3.0).reshape(2, 5, 2, 3)  # [batch, pos, head, d]


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("head", [None, 1])
def test_each_copy_of_the_batch_gets_its_own_part(move, head, grad):
    other = Move(torch.tensor([1]), torch.tensor([2]), torch.tensor([2]))
    tensor = -torch.rand(3 * 2, 5, 2, 3) - 1
    expected = tensor.clone()
    for j, part in ((0, move), (2, other)):
        for row, target, source in zip(part.row, part.target, part.source, strict=True):
            if head is None:
                expected[j * 2 + row, target] = CLEAN[row, source]
            else:
                expected[j * 2 + row, target, head] = CLEAN[row, source, head]
    nothing = Move(*(torch.zeros(0, dtype=torch.long),) * 3)
    given = tensor.clone().requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        found = patch(given, None, [(move, head), (nothing, head), (other, head)], CLEAN, 2)
    assert torch.equal(found, expected)
    assert (found is given) == (not grad)  # in place but where there are gradients


def test_a_mean_is_that_of_the_positions_named(move):
    move.groups = [
        (torch.tensor([0, 1]), torch.tensor([0, 1, 4]), 0),
        (torch.tensor([2]), torch.tensor([3]), 1),
    ]
    mean = (CLEAN[0, 0] + CLEAN[0, 1] + CLEAN[0, 4]) / 3
    torch.testing.assert_close(move.values(CLEAN), torch.stack([mean, mean, CLEAN[1, 3]]))


def test_only_a_whole_activation_is_read(model):
    inputs = model.prepare("What is it?", random_image(9, 9))
    name = "blocks.0.hook_resid_pre"
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_pre", layers=[0]))
    assert torch.equal(read_clean(cache, name), cache[name])
    with pytest.raises(HookError, match=r"does not hold blocks\.1\.hook_resid_pre"):
        read_clean(cache, "blocks.1.hook_resid_pre")
    _, cut = model.run_with_cache(inputs, names_filter=name, pos_slice=slice(0, 3))
    with pytest.raises(InputError, match="without pos_slice"):
        read_clean(cut, name)
