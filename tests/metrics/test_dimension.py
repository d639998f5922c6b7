"""TwoNN against llm-microscope, scikit-dimension and data of known dimension."""

import math
import warnings

import numpy as np
import pytest
import torch
from made_tokens import in_float64, manifold, microscope, normal, tokens_of
from skdim.id import TwoNN

from mm_lens.metrics import METRICS, Tokens, evaluate, sampling_key
from mm_lens.metrics.dimension import Neighbourhood
from mm_lens.metrics.numerics import neighbours


def value(name: str, tokens: Tokens, seed: int = 0) -> float:
    return METRICS[name].compute(tokens, seed=seed).value


def with_copies(x: torch.Tensor, copies: int) -> torch.Tensor:
    """Some rows many times, some rows twice, in random order."""
    x = torch.cat([x, x[:1].repeat(copies, 1), x[: len(x) // 4]])
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(5))]


INPUTS = {
    "gaussian": normal(0, 600, 20) * torch.linspace(0.1, 3, 20).double() + 4,
    "float32": (normal(1, 500, 30) @ normal(2, 30, 30)).float(),
    "half precision": normal(3, 400, 12).half(),
    "copies": with_copies(manifold(4, 400, 10), 100),
    "massive token": torch.cat([normal(6, 1, 16) * 1e4, normal(7, 400, 16)]),
    "near-copies": torch.cat([normal(8, 300, 16), normal(8, 300, 16)[:50] + 1e-6]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_paper_equals_llm_microscope(name):
    x = INPUTS[name]
    with in_float64():
        peer = microscope().intrinsic_dimension(x.double(), "cpu")
    assert value("dimension_paper", tokens_of(x)) == pytest.approx(peer, rel=1e-8)


def test_distances_equal_the_peers_loop():
    x = INPUTS["gaussian"]
    points = Neighbourhood(tokens_of(x), 0)
    z = x - x.mean(0)
    z = z / (z * z).sum(1).sqrt().mean()
    for i in range(0, len(x), 7):
        distance = torch.nn.functional.pairwise_distance(z[i, None], z, eps=0)
        r1, r2 = distance[distance > 0].sort().values[:2]
        assert abs(points.neighbours.r1[i] - r1) <= 1e-12
        assert abs(points.neighbours.r2[i] - r2) <= 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_mle_and_fit90_equal_scikit_dimension(seed):
    tokens = tokens_of(manifold(seed, 501, 5))
    points = Neighbourhood(tokens, 0)
    distances = np.stack([points.neighbours.r1.numpy(), points.neighbours.r2.numpy()], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mle = TwoNN(discard_fraction=0, dist=True, method="mle").fit(distances).dimension_
        line = TwoNN(dist=True).fit(distances).dimension_
    assert value("dimension_mle", tokens) == pytest.approx(mle, rel=1e-10)
    assert value("dimension_fit90", tokens) == pytest.approx(line, rel=1e-10)


@pytest.mark.parametrize("dimension", [1, 2, 5, 8])
def test_known_dimension_is_found(dimension):
    tokens = tokens_of(manifold(dimension, 2000, dimension))
    estimates = evaluate(tokens, None, ["dimension_mle", "dimension_fit90"])
    for estimate in estimates.values():
        assert estimate.value == pytest.approx(dimension, rel=0.08)
        assert estimate.low < estimate.value < estimate.high


def test_copies_mislead_the_paper_and_not_the_honest_estimate():
    x = manifold(0, 1000, 10)
    copied = torch.cat([x, x[:1].repeat(250, 1)])
    clean = value("dimension_mle", tokens_of(x))
    estimate = METRICS["dimension_mle"].compute(tokens_of(copied))
    assert estimate.value == pytest.approx(clean, rel=1e-9)
    assert estimate.n_tokens == 1000
    assert "250 of 1250 tokens dropped" in estimate.warning
    paper = METRICS["dimension_paper"].compute(tokens_of(copied))
    assert paper.value > 1.5 * value("dimension_paper", tokens_of(x))
    assert "251 of 1250 tokens without a ratio" in paper.warning


def test_null_is_the_dimension_of_a_gaussian_of_equal_covariance():
    spectrum = torch.tensor([5.0, 4, 3, 2, 1, 1]).double()
    gaussian = METRICS["dimension_mle"].compute(tokens_of(normal(0, 3000, 6) * spectrum))
    assert gaussian.chance == pytest.approx(gaussian.value, rel=0.1)
    # A curve that visits all six directions: one-dimensional, though its covariance is full.
    t = torch.rand(3000, 1, generator=torch.Generator().manual_seed(1)).double()
    curve = torch.sin(2 * math.pi * t * torch.arange(1, 7))
    curved = METRICS["dimension_mle"].compute(tokens_of(curve))
    assert curved.value == pytest.approx(1, rel=0.1)
    assert curved.chance > 4


def test_null_when_tokens_are_fewer_than_dimensions():
    estimate = METRICS["dimension_mle"].compute(tokens_of(manifold(0, 40, 3, d=60)))
    assert estimate.chance == pytest.approx(3, rel=0.5)


def test_scale_check_uses_half_and_a_quarter_of_the_distinct_tokens():
    x = with_copies(manifold(0, 800, 3), 100)
    estimates = evaluate(tokens_of(x), None, ["dimension_mle_half", "dimension_mle_quarter"])
    assert [e.n_tokens for e in estimates.values()] == [400, 200]
    for estimate in estimates.values():
        assert estimate.value == pytest.approx(3, rel=0.25)


def test_scale_check_thins_a_cloud_of_several_questions_per_image():
    """Noise makes the five questions at one position neighbours: half of the tokens tells, if
    it takes them one by one."""
    index = torch.arange(4000)
    question, position = index // 20, index % 20
    image = question // 5
    place = image * 20 + position
    x = manifold(0, 800, 4)[place] + 0.02 * normal(1, 4000, 30)
    tokens = Tokens(x, image, position, index, sampling_key(question, position))
    alone = Tokens(x, question, position, index)  # every question a sample of its own
    names = ["dimension_mle_half", "dimension_mle_quarter", "dimension_gride_8"]
    found, expected = evaluate(tokens, None, names), evaluate(alone, None, names)
    for name in names:
        assert found[name].value == pytest.approx(expected[name].value, rel=1e-12)
    tied = METRICS["dimension_mle_quarter"].compute(Tokens(x, image, position, index)).value
    assert tied > 1.5 * found["dimension_mle_quarter"].value


def test_near_copies_and_repeated_token_ids_are_named():
    base = manifold(0, 300, 8)
    x = torch.cat([base, base + 1e-4 * normal(9, 300, 30)])
    index = torch.arange(600)
    tokens = Tokens(x, index % 50, index, index % 300)
    warning = METRICS["dimension_gride_8"].compute(tokens).warning
    assert "100% of tokens have a near-copy" in warning
    assert "same token id for 100%" in warning
    assert "same sample" in warning  # row i and row i + 300 share a sample too
    assert METRICS["dimension_mle"].compute(tokens_of(base)).warning == ""


def test_one_token_id_for_all_is_no_news():
    tokens = tokens_of(manifold(0, 300, 8))
    tokens = Tokens(tokens.x, tokens.sample, tokens.position, torch.zeros_like(tokens.token_id))
    assert "token id" not in METRICS["dimension_mle"].compute(tokens).warning


def test_all_estimators_share_one_product(monkeypatch):
    """And give what each of them gives when it is asked for alone."""
    tokens = Tokens(
        torch.tanh(normal(0, 700, 6) @ normal(1, 6, 20)) + 0.02 * normal(2, 700, 20),
        torch.arange(700) % 30,
        torch.arange(700) // 30,
        torch.arange(700),
    )
    names = [m for m in METRICS if m.startswith("dimension_") and m != "dimension_paper"]
    alone = {name: evaluate(tokens, None, [name])[name] for name in names}
    made = []
    frame = neighbours._Frame.of
    monkeypatch.setattr(
        neighbours._Frame,
        "of",
        staticmethod(lambda x, dtype: (made.append(len(x)), frame(x, dtype))[1]),
    )
    together = evaluate(tokens, None, names)
    assert made == [700, 700]  # the tokens, and the null
    for name in names:
        one, other = alone[name], together[name]
        for field in ("value", "low", "high"):
            assert getattr(one, field) == pytest.approx(
                getattr(other, field), rel=1e-9, nan_ok=True
            )
        assert (one.n_tokens, one.warning) == (other.n_tokens, other.warning)
