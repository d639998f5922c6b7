"""Counts of directions against closed forms, numpy's SVD and differences."""

import numpy as np
import pytest
import torch
from made_tokens import normal, rotation, tokens_of

from mm_lens.metrics import METRICS, evaluate
from mm_lens.metrics.spectrum import dimensions_for, effective_rank, participation_ratio

NAMES = ["participation_ratio", "effective_rank", "dimensions_95"]


@pytest.mark.parametrize(("n", "d"), [(300, 12), (20, 40)])
def test_counts_equal_numpys_svd(n, d):
    x = normal(n, n, d) * torch.logspace(0, -1, d).double() + 5
    found = evaluate(tokens_of(x), None, NAMES)
    s = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False)
    q = s[s > 1e-9 * s[0]] / s.sum()
    assert found["participation_ratio"].value == pytest.approx(
        (s**2).sum() ** 2 / (s**4).sum(), rel=1e-10
    )
    assert found["effective_rank"].value == pytest.approx(np.exp(-(q * np.log(q)).sum()), rel=1e-6)
    assert found["dimensions_95"].value == 1 + int(((s**2).cumsum() < 0.95 * (s**2).sum()).sum())


def test_equal_directions_are_counted():
    q = torch.linalg.qr(normal(0, 100, 5) - normal(0, 100, 5).mean(0))[0]
    q = torch.linalg.qr(q - q.mean(0))[0]
    found = evaluate(tokens_of(q @ rotation(1, 9)[:5]), None, NAMES)
    for name, truth in zip(NAMES, (5, 5, 5), strict=True):
        assert found[name].value == pytest.approx(truth, rel=1e-6)


def test_chance_is_what_isotropic_noise_scores():
    for n, d in ((400, 100), (60, 90)):
        found = METRICS["participation_ratio"].compute(tokens_of(normal(0, n, d)))
        assert found.value == pytest.approx(found.chance, rel=0.03)


def test_a_massive_token_leaves_one_direction():
    x = normal(0, 500, 20)
    x[0] *= 1e6
    for estimate in evaluate(tokens_of(x), None, NAMES).values():
        assert estimate.value == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["participation_ratio", "effective_rank"])
def test_the_error_is_that_of_leaving_samples_out(name):
    """The influence function against a plain jackknife over samples."""
    x = normal(1, 400, 6) * torch.linspace(1, 2, 6).double()
    count = {"participation_ratio": participation_ratio, "effective_rank": effective_rank}[name]
    found = METRICS[name].compute(tokens_of(x, 40))
    refits = []
    for s in range(40):
        kept = x[torch.arange(400) % 40 != s]
        values = torch.linalg.eigvalsh(torch.cov(kept.T))
        refits.append(float(count(values)))
    error = np.std(refits) * 39**0.5
    assert (found.high - found.low) / 2 == pytest.approx(2.02 * error, rel=0.05)


def test_eigenvalues_given_in_any_order():
    values = torch.tensor([1.0, 16, 9]).double()
    assert dimensions_for(values, 0.6) == 1
    assert dimensions_for(values, 0.95) == 2
    assert float(effective_rank(torch.ones(7).double())) == pytest.approx(7)
    assert float(participation_ratio(values)) == pytest.approx(26**2 / 338)
