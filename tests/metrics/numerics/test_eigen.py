"""The largest eigenvalue against the full decomposition."""

from __future__ import annotations

import pytest
import torch
from made_tokens import normal, rotation

from mm_lens.metrics.numerics import eigen


def spectrum(d: int, kind: str) -> torch.Tensor:
    return {
        "dominant": torch.cat([torch.ones(d - 1), torch.tensor([50.0])]),
        "decaying": torch.arange(1, d + 1.0) ** -1,
        "rank one": torch.cat([torch.zeros(d - 1), torch.tensor([3.0])]),
        "near": torch.cat([torch.linspace(0, 0.99, d - 1), torch.tensor([1.0])]),
    }[kind].double()


@pytest.mark.parametrize("kind", ["dominant", "decaying", "rank one", "near"])
@pytest.mark.parametrize("d", [5, eigen._SMALL + 60])
def test_value_and_vector_are_those_planted(d, kind):
    values, q = spectrum(d, kind), rotation(0, d)
    value, vector = eigen.largest(q @ torch.diag(values) @ q.T)
    assert value.item() == pytest.approx(values.max().item(), rel=1e-12)
    assert abs(torch.dot(vector, q[:, values.argmax()]).item()) == pytest.approx(1, abs=1e-6)


def test_noise_without_a_gap_equals_the_full_decomposition():
    x = normal(0, 600, eigen._SMALL + 60)
    a = x.T @ x
    value, vector = eigen.largest(a)
    assert value.item() == pytest.approx(torch.linalg.eigvalsh(a)[-1].item(), rel=1e-12)
    assert (a @ vector - value * vector).norm() < 1e-5 * value


def test_zero_and_the_identity_have_no_direction_but_a_value():
    d = eigen._SMALL + 8
    assert eigen.largest(torch.zeros(d, d).double())[0] == 0
    assert eigen.largest(torch.eye(d).double())[0].item() == pytest.approx(1, abs=1e-12)
