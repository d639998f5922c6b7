"""Linear maps against llm-microscope, float64 SVD, explicit solves and planted maps."""

import math

import pytest
import torch
from linear_pairs import pair, run, svd_r2
from made_tokens import clustered, microscope, normal, rotation, tokens_of

from mm_lens.metrics import METRICS, Estimate, Tokens, evaluate
from mm_lens.metrics.intervals import left_out
from mm_lens.metrics.numerics.linear_fit import LinearFit


def noise(seed: int, n: int, d: int, name: str) -> Estimate:
    return METRICS[name].compute(tokens_of(normal(seed, n, d)), tokens_of(normal(seed + 99, n, d)))


@pytest.mark.parametrize(("n", "d"), [(300, 20), (800, 64), (70, 64)])
@pytest.mark.parametrize("seed", [0, 1])
def test_paper_equals_llm_microscope(n, d, seed):
    x, y = pair(seed, n, d)
    found = run(x, y)
    peer = microscope().procrustes_similarity
    assert found["linearity_paper"].value == pytest.approx(peer(x, y), abs=1e-10)
    assert found["linearity_update_paper"].value == pytest.approx(peer(x, y - x), abs=1e-10)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_update_follows_from_the_state_without_a_second_fit(seed):
    x, y = pair(seed, 500, 30)
    found = run(x, y)
    spread = [float((t - t.mean(0)).square().sum()) for t in (y, y - x)]
    identity = 1 - (1 - found["linearity_paper"].value) * spread[0] / spread[1]
    direct = svd_r2(x, y - x)
    assert found["linearity_update_paper"].value == pytest.approx(direct, abs=1e-10)
    assert identity == pytest.approx(direct, abs=1e-9)


def test_a_tiny_update_keeps_its_digits():
    x = normal(0, 400, 20) + 100
    update = 1e-6 * (x @ normal(1, 20, 20) + 3 * normal(2, 400, 20))
    found = run(x, x + update)
    assert found["linearity_update_paper"].value == pytest.approx(svd_r2(x, update), abs=1e-8)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 4.0])
def test_chance_is_what_noise_scores(ratio):
    d = 40
    n = int(d * ratio) + 1
    found = [noise(seed, n, d, "linearity_paper") for seed in range(10)]
    assert found[0].chance == pytest.approx(min(1, d / (n - 1)))
    mean = sum(f.value for f in found) / 10
    assert mean == pytest.approx(found[0].chance, abs=0.02)


def test_adjusted_is_free_of_chance_and_undefined_without_freedom():
    scores = [noise(seed, 200, 40, "linearity_adjusted").value for seed in range(10)]
    assert abs(sum(scores) / 10) < 0.01
    lost = noise(0, 30, 40, "linearity_adjusted")
    assert math.isnan(lost.value)
    assert "no degree of freedom" in lost.warning


@pytest.mark.parametrize("shared", [0.0, 0.8])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0, 1.25, 2.0, 4.0, 16.0])
def test_held_out_noise_scores_zero(ratio, shared):
    """Also where the tokens of a sample resemble each other, so that few are independent."""
    d = 48
    n = int(d * ratio)
    samples = n if not shared else max(8, n // 8)
    scores = []
    for seed in range(4):
        x = clustered(seed, n, d, samples, shared)
        y = clustered(seed + 50, n, d, samples, shared)
        fit = LinearFit(tokens_of(x, samples), tokens_of(y, samples), seed)
        scores.append(fit.held_out("state")[0])
    if not shared:
        assert max(map(abs, scores)) <= 0.02
    assert abs(sum(scores) / 4) <= 0.02


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_a_planted_map_is_found_held_out(spread):
    n, d = 4000, 16
    x = normal(3, n, d)
    y = x @ rotation(1, d) * 1.5 + spread * normal(4, n, d)
    truth = 1 - spread**2 / (1.5**2 + spread**2)
    found = run(x, y)
    for name in ("linearity_paper", "linearity_adjusted", "linearity_heldout"):
        assert found[name].value == pytest.approx(truth, abs=0.01)
        assert found[name].low < truth < found[name].high


def test_too_few_tokens_are_said_and_headline_withheld():
    few = run(*pair(0, 150, 20))
    assert "7.5 tokens per rank" in few["linearity_paper"].warning
    assert math.isfinite(few["linearity_heldout"].value)
    fewer = run(*pair(0, 50, 20))["linearity_heldout"]
    assert math.isnan(fewer.value)
    assert "fewer than 3 per rank of the input (20)" in fewer.warning
    assert run(*pair(0, 400, 20))["linearity_paper"].warning == ""


def test_one_sample_gives_no_held_out_value_and_no_interval():
    x, y = pair(0, 300, 8)
    found = run(x, y, samples=1)
    assert "needs 3 samples" in found["linearity_heldout"].warning
    assert math.isfinite(found["linearity_paper"].value)
    assert math.isnan(found["linearity_paper"].low)
    assert "no interval" in found["linearity_paper"].warning


def test_identical_hooks_are_perfectly_linear_and_have_no_update():
    x = normal(0, 300, 8)
    found = run(x, x.clone())
    assert found["linearity_paper"].value == 1
    assert found["linearity_heldout"].value == pytest.approx(1, abs=1e-9)
    for name in ("linearity_paper", "linearity_heldout"):
        assert found[name].low == pytest.approx(1, abs=1e-9)
        assert found[name].warning == ""
    for name in ("linearity_update_paper", "linearity_update_heldout"):
        assert "update is the same for all tokens" in found[name].warning


def test_half_precision_updates_carry_a_warning():
    x, y = (t.bfloat16() for t in pair(0, 400, 8))
    found = run(x, y)
    assert "rounded to bfloat16" in found["linearity_update_paper"].warning
    assert found["linearity_paper"].warning == ""


def test_a_column_that_varies_in_one_sample_only():
    """Leaving that sample out leaves rounding in the column, which must not be scaled up."""
    x, y = pair(0, 400, 10)
    x[:, 3] = 0
    x[:4, 3] = normal(1, 4) * 1e3
    tokens = Tokens(x, torch.arange(400) // 4, torch.arange(400) % 4, torch.zeros(400).long())
    fit = LinearFit(tokens, Tokens(y, tokens.sample, tokens.position, tokens.token_id), 0)
    for keep, refit in zip(left_out(tokens.sample, 0), fit.refits, strict=True):
        assert refit.r2("state") == pytest.approx(svd_r2(x[keep], y[keep]), abs=1e-9)


def test_one_token_that_makes_the_interval_is_said():
    x = normal(0, 640, 6)
    y = x @ rotation(1, 6) + normal(2, 640, 6)
    note = "half of the interval hangs on one of 16 groups of samples"
    clean = run(x, y, 64)
    assert not any(note in estimate.warning for estimate in clean.values())
    x[5] *= 300
    y[5] *= 300
    fit = LinearFit(tokens_of(x, 64), tokens_of(y, 64), 0)
    found = {m.name: m._function(fit) for m in METRICS.values() if m.kind == "linearity"}
    for name in ("linearity_paper", "linearity_adjusted"):
        assert note in found[name].warning
    # As a massive token of one sample it leaves no interval at all.
    whole = run(x, y, 64)["linearity_paper"]
    assert math.isnan(whole.low)
    assert note in whole.warning
    for name in ("linearity_paper", "linearity_update_paper"):
        assert 0 <= found[name].low <= found[name].value <= found[name].high <= 1
    # Leaving out the group of that token takes the fit to what the others show.
    sample = torch.arange(640) % 64
    keep = min(left_out(sample), key=lambda keep: bool(keep[5]))
    others = svd_r2(x[keep], y[keep])
    assert found["linearity_paper"].low < others < found["linearity_paper"].value
    assert found["linearity_adjusted"].low < 0  # noise scores below zero per degree of freedom


def test_a_few_tokens_that_make_the_held_out_error_are_named():
    x = normal(0, 2000, 8)
    y = x @ normal(1, 8, 8)
    y[:3] += 400 * normal(2, 3, 8)  # far from where any map would put them
    found = evaluate(tokens_of(x), tokens_of(y), ["linearity_heldout"])["linearity_heldout"]
    assert "half of the held-out error is in" in found.warning
    assert int(found.warning.split(" is in ")[1].split()[0]) <= 3
    clean = evaluate(tokens_of(x), tokens_of(x @ normal(3, 8, 8) + normal(4, 2000, 8)))
    assert "half of the held-out" not in clean["linearity_heldout"].warning
