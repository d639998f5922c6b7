"""Leading directions and massive tokens, taken away."""

from __future__ import annotations

import pytest
import torch
from made_questions import run_replaced

from mm_lens import InputError, MMLensWarning
from mm_lens.replacing import fit_subspaces, removal_table
from mm_lens.replacing.removing import make_removal
from mm_lens.replacing.subspaces import Subspace


@pytest.fixture
def subspace():
    eye = torch.eye(4, dtype=torch.float64)
    return Subspace(eye[0], torch.full((4,), 0.5, dtype=torch.float64), eye[[2, 0, 1, 3]], {}, 9)


def test_the_leading_direction_is_flat_and_the_rest_as_it_was(subspace):
    rows = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    got = make_removal(subspace, "leading direction")(rows)
    assert got[..., 2].abs().max() < 1e-6  # the mean along it is 0
    assert (got - rows)[..., [0, 1, 3]].abs().max() < 1e-6
    other = make_removal(subspace, "random direction", seed=3)(rows)
    moved = (other - rows).flatten(0, 1).double()
    assert torch.linalg.matrix_rank(moved, atol=1e-5) == 1
    assert float((moved[0] / moved[0].norm())[2].abs()) < 0.99


def test_massive_tokens_get_the_mean_of_ordinary_ones(subspace):
    rows = torch.ones(2, 9, 4)
    rows[0, 3] = 50
    rows[1, 6:] = 0  # padding
    got = make_removal(subspace, "massive tokens")(rows)
    changed = (got != rows).any(-1)
    assert changed.nonzero().tolist() == [[0, 3]]
    assert got[0, 3].tolist() == [0.5] * 4
    other = make_removal(subspace, "ordinary tokens")(rows)
    changed = (other != rows).any(-1)
    assert changed.sum(1).tolist() == [1, 0]
    assert not changed[0, 3]
    assert torch.equal(other, make_removal(subspace, "ordinary tokens")(rows))


@pytest.mark.every_family
def test_a_table_equals_native_hooks(model, native, samples, others):
    subspaces = fit_subspaces(model, others, layers=[1])
    with pytest.warns(MMLensWarning, match="No visual token is massive"):
        table = removal_table(model, samples, subspaces, progress=False)
    table = table.set_index(["what", "metric"])
    assert table.loc["massive tokens", "effect"].abs().max() < 1e-5
    assert (table["massive"] == 0).all()
    mean, unit = subspaces.layers[1].mean.float(), subspaces.layers[1].directions[0].float()

    def edit(x, y):
        return y - ((y - mean) @ unit)[..., None] * unit

    found = [
        run_replaced(native, inputs, {0: edit})[0, -1].log_softmax(-1)[
            answers.tokens[answers.right[0]]
        ]
        for inputs, answers in samples
    ]
    value = table.loc[("leading direction", "log_probability"), "value"]
    assert value == pytest.approx(float(torch.stack(found).mean()), abs=1e-4)
    with pytest.raises(InputError, match="what is out of"):
        removal_table(model, samples, subspaces, what=[], progress=False)
