"""CKA against the published matrix formula, plain loops and planted relations."""

import math

import numpy as np
import pytest
import torch
from made_tokens import clustered, normal, rotation, tokens_of

from mm_lens.errors import InputError
from mm_lens.metrics import METRICS, Tokens
from mm_lens.metrics.cka import cka, cka_estimate, cka_matrix, paired_means, sample_means
from mm_lens.metrics.tokens import join_modalities


def published(x: torch.Tensor, y: torch.Tensor) -> float:
    """Song et al. 2012, equation 5, with n × n matrices in numpy."""

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        n = len(a)
        k, m, one = a @ a.T, b @ b.T, np.ones(n)
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        both = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + both - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3))

    a, b = x.numpy(), y.numpy()
    return float(hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)))


@pytest.mark.parametrize(("n", "c", "d"), [(60, 20, 30), (300, 5, 8), (100, 3, 80), (4, 6, 6)])
def test_equals_the_published_formula(n, c, d):
    x = normal(n, n, c) + 3
    y = torch.cat([x, normal(1, n, d)], 1)
    assert cka(x, y) == pytest.approx(published(x, y), rel=1e-9)


def test_a_matrix_holds_every_pair():
    states = [normal(0, 80, 10), normal(0, 80, 10)[:, :4], normal(2, 80, 30).float()]
    found = cka_matrix(states)
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found.diagonal(), torch.ones(3).double())
    assert float(found[0, 2]) == pytest.approx(cka(states[0], states[2]), rel=1e-12)


def test_rotation_scale_and_translation_do_not_matter():
    x, y = normal(0, 90, 12), normal(0, 90, 12)[:, :5]
    turned = x @ rotation(1, 12) * 7 + 100
    assert cka(turned, y) == pytest.approx(cka(x, y), rel=1e-9)
    assert cka(x, turned) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("n", [50, 400])
def test_unrelated_states_score_zero_on_average(n):
    """The plain form scores over one half here."""
    scores = [cka(normal(s, n, 100), normal(s + 99, n, 100)) for s in range(20)]
    assert abs(np.mean(scores)) < 4 * np.std(scores) / 20**0.5 + 1e-3
    assert abs(np.mean(scores)) < 0.02


def test_interval_covers_a_planted_value():
    def relation(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = normal(seed, n, 4)
        return x, torch.cat([x[:, :2], normal(seed + 50, n, 2)], 1)

    truth = 0.5  # two of four directions of equal variance are shared: 2 / sqrt(4 · 4)
    hits = 0
    for seed in range(20):
        x, y = relation(seed, 600)
        found = cka_estimate(tokens_of(x, 60), tokens_of(y, 60))
        hits += found.low <= truth <= found.high
        assert len(found.replicates.values) == 16
    assert hits >= 16


def test_degenerate_input_gives_nan_with_a_reason():
    few, same = tokens_of(normal(0, 3, 2)), tokens_of(torch.ones(20, 2).double())
    assert "fewer than 4" in cka_estimate(few, few).warning
    found = cka_estimate(same, tokens_of(normal(0, 20, 2)))
    assert math.isnan(found.value)
    assert "same state" in found.warning
    with pytest.raises(InputError, match="same tokens"):
        cka_matrix([normal(0, 8, 2), normal(0, 9, 2)])
    with pytest.raises(InputError, match="paired_means"):
        cka_estimate(tokens_of(normal(0, 20, 2), 5), tokens_of(normal(0, 20, 2), 4))


def test_rows_that_are_not_finite_are_dropped_and_counted():
    x, y = normal(0, 80, 4), normal(0, 80, 4)[:, :2]
    expected = cka_estimate(tokens_of(x[2:]), tokens_of(y[2:])).value
    x[0, 1], y[1, 0] = torch.inf, torch.nan
    found = cka_estimate(tokens_of(x), tokens_of(y))
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert found.warning == "2 of 80 tokens not finite, dropped"


def test_sample_means_pair_the_modalities():
    x = clustered(0, 400, 6, 40, 0.9)
    visual = tokens_of(x[:240], 40)
    text = tokens_of(x[240:] @ rotation(2, 6), 40)
    text = text.take(text.sample != 7)
    a, b = paired_means(visual, text)
    assert a.sample.tolist() == b.sample.tolist() == [s for s in range(40) if s != 7]
    torch.testing.assert_close(a.x[7], visual.x[visual.sample == 8].mean(0))
    assert len(sample_means(visual)) == 40
    assert cka_estimate(a, b).value > 0.8
    shuffled = Tokens(b.x.flip(0), b.sample, b.position, b.token_id)
    assert cka_estimate(a, shuffled).value < 0.3


def test_the_metric_of_a_profile_is_that_of_the_paired_means():
    n, samples = 400, 40
    shared = normal(0, samples, 6)
    sample = torch.arange(n) % samples
    visual = Tokens(shared[sample] + 0.1 * normal(1, n, 6), sample, sample, sample)
    text = Tokens(shared[sample] @ rotation(2, 6) + 0.1 * normal(3, n, 6), sample, sample, sample)
    both = join_modalities(visual, text)
    found = METRICS["modality_cka"].compute(both, seed=1)
    assert found == cka_estimate(*paired_means(visual, text), 1)
    assert found.value > 0.95  # one arrangement, turned
    assert found.n_tokens == samples
    few = join_modalities(visual.take(torch.arange(120)), text)
    assert "means of 3 tokens of a sample" in METRICS["modality_cka"].compute(few).warning
