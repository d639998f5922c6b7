"""Massive tokens are found, counted, left out of what the honest preset reads, and told of."""

import math

import numpy as np
import pytest
import torch
from made_tokens import normal, rotation, tokens_of

from mm_lens.errors import InputError
from mm_lens.metrics import METRICS, Tokens, evaluate, preset
from mm_lens.metrics.core import TWIN
from mm_lens.metrics.numerics.massive import KAPPA, massive

D = 24
SECOND_MOMENTS = ("linearity", "anisotropy")


def like_smollm(times: tuple[float, float] = (60, 190)) -> tuple[Tokens, Tokens, torch.Tensor]:
    """Two hooks of 24 documents of 93 tokens, of which the first is a sink, as in SmolLM2."""
    documents, length = 24, 93
    index = torch.arange(documents * length)
    document, position = index // length, index % length
    x = normal(0, len(index), D) / torch.arange(1, D + 1).double().sqrt() + 0.3
    y = x + 0.8 * torch.tanh(x @ rotation(1, D)) + 0.6 * normal(2, len(index), D)
    sink = position == 0
    median = float(x.norm(dim=1).median())
    size = torch.linspace(*times, documents).double()[:, None] * median
    x[sink] += size * rotation(3, D)[0]
    y[sink] += size * (rotation(3, D)[0] + 0.3 * rotation(4, D)[1])
    pair = [Tokens(each, document, position, index % 50) for each in (x, y)]
    return pair[0], pair[1], sink


@pytest.fixture(scope="module")
def found():
    x, y, _ = like_smollm()
    return evaluate(x, y, METRICS)


def test_sinks_are_found_by_norm_wherever_they_are():
    x, y, sink = like_smollm()
    assert torch.equal(massive(x), sink)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    moved = Tokens(x.x[order], x.sample, x.position, x.token_id)  # any position may hold one
    assert torch.equal(massive(moved), sink[order])
    plain = Tokens(normal(5, len(x), D), x.sample, x.position, x.token_id)
    assert not massive(plain).any()
    assert torch.equal(massive(plain, y), sink), "at either hook"
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        low = Tokens(x.x.to(dtype), x.sample, x.position, x.token_id)
        assert torch.equal(massive(low), sink)


def test_a_usual_norm_is_that_of_the_modality():
    """Visual tokens of 20 times the norm of text are not massive; a sink among the text is."""
    norms = torch.cat([torch.full((300,), 20.0), torch.ones(100)]).double()
    norms[350] = 15
    norms[10] = 300
    x = torch.nn.functional.normalize(normal(0, 400, 8), dim=1) * norms[:, None]
    modality = (torch.arange(400) >= 300).long()
    tokens = tokens_of(x)
    both = Tokens(x, tokens.sample, tokens.position, tokens.token_id, modality=modality)
    assert massive(both).nonzero().flatten().tolist() == [10, 350]
    assert massive(tokens).nonzero().flatten().tolist() == [10]
    assert math.isclose(KAPPA, 8)


def test_zero_states_do_not_make_the_others_massive():
    x = normal(0, 100, 5)
    x[:70] = 0
    assert not massive(tokens_of(x)).any()
    assert not massive(tokens_of(torch.zeros(9, 5).double())).any()


def test_every_metric_of_second_moments_has_a_twin_and_the_twin_is_the_headline():
    for name, metric in METRICS.items():
        if metric.kind in SECOND_MOMENTS and name != "massive_tokens":
            assert metric.leaves_out_massive or METRICS[metric.twin].leaves_out_massive, name
    for name in (m.name for m in preset("honest") if "honest" in m.headline):
        assert name.endswith(TWIN) or METRICS[name].kind == "dimension"
    assert {m.name for m in preset("paper") if "paper" in m.headline} == {
        "linearity_paper",
        "dimension_paper",
        "anisotropy",
    }


def test_twins_are_the_metric_of_the_other_tokens(found):
    x, y, sink = like_smollm()
    rest = evaluate(x.take(~sink), y.take(~sink), METRICS)
    for name in found:  # not those that lie between two modalities
        if METRICS[name].leaves_out_massive:
            assert found[name].value == rest[name].value, name
            assert (found[name].low, found[name].high) == pytest.approx(
                (rest[name].low, rest[name].high), nan_ok=True
            ), name
            assert found[name].n_tokens == len(x) - 24


def test_values_against_numpy(found):
    """Anisotropy and update linearity with and without the sinks, from numpy alone."""
    x, y, sink = like_smollm()
    for suffix, keep in (("", np.ones(len(x), bool)), (TWIN, ~sink.numpy())):
        a, b = x.x.numpy()[keep], y.x.numpy()[keep]
        a, u = a - a.mean(0), (b - a) - (b - a).mean(0)
        s = np.linalg.svd(a, compute_uv=False) ** 2
        assert found[f"anisotropy{suffix}"].value == pytest.approx(s[0] / s.sum(), rel=1e-10)
        assert found[f"participation_ratio{suffix}"].value == pytest.approx(
            s.sum() ** 2 / (s**2).sum(), rel=1e-10
        )
        left = u - a @ np.linalg.lstsq(a, u, rcond=None)[0]
        expected = 1 - (left**2).sum() / (u**2).sum()
        assert found[f"linearity_update_paper{suffix}"].value == pytest.approx(expected, rel=1e-9)
    # What misled on SmolLM2: the honest headlines were those of 24 tokens.
    assert found["anisotropy_trimmed"].value > 0.4 > 0.3 > found["anisotropy_without_massive"].value
    assert found["participation_ratio"].value < 1.1
    assert found["massive_tokens"].value == 24


def test_rows_say_how_many_and_when_they_disagree(found):
    raw, twin = found["anisotropy"], found["anisotropy_without_massive"]
    assert (
        f"24 of 2232 tokens are massive (norm over 8 × the median) and decide: {twin.value:.3g}"
        in (raw.warning)
    )
    assert "24 of 2232 tokens left out as massive" in twin.warning
    assert f"with the massive tokens {raw.value:.3g}" in twin.warning
    trimmed = found["anisotropy_trimmed"].warning
    assert f"and decide: {twin.value:.3g} without them" in trimmed
    # Angles hardly change: no disagreement is made up.
    assert "decide" not in found["mean_cosine"].warning
    assert "24 of 2232 tokens are massive" in found["mean_cosine"].warning


def test_the_paper_alone_is_told_too():
    x, y, _ = like_smollm()
    found = evaluate(x, y, preset("paper"))
    assert set(found) == {m.name for m in preset("paper")}
    for name in ("linearity_update_paper", "anisotropy"):
        assert "and decide" in found[name].warning
    assert "massive" not in found["dimension_paper"].warning


def test_without_massive_tokens_nothing_is_said_and_twins_are_equal():
    x, y = (tokens_of(normal(s, 400, 6), 40) for s in (0, 1))
    found = evaluate(x, y, METRICS)
    for name in found:
        twin = METRICS[name].twin
        if twin == f"{name}{TWIN}":
            assert found[twin] == found[name]
        assert "massive" not in found[name].warning
    assert found["massive_tokens"].value == 0


def test_sinks_in_few_samples_leave_no_interval():
    """How many of them a draw holds decides: see docs/metrics/coverage.md."""
    x, y, sink = like_smollm()
    few = sink & (x.sample % 8 != 0)
    x.x[few], y.x[few] = normal(7, int(few.sum()), D), normal(8, int(few.sum()), D)
    found = evaluate(x, y, METRICS)
    for name in ("anisotropy", "linearity_paper", "participation_ratio", "mean_cosine"):
        assert math.isnan(found[name].low)
        assert not found[name].replicates.values
        assert "no interval: massive tokens are in 3 of 24 samples" in found[name].warning
        assert math.isfinite(found[f"{name}{TWIN}"].low)


def test_sinks_in_every_sample_leave_the_interval(found):
    assert math.isfinite(found["anisotropy"].low)
    assert found["anisotropy"].low <= found["anisotropy"].value <= found["anisotropy"].high


# ---- other warnings: one token, few tokens, few bits ----


def test_one_token_that_decides_is_named():
    x = normal(0, 400, 20)
    x[5] *= 5  # not massive
    found = evaluate(tokens_of(x), None, METRICS)
    assert found["massive_tokens"].value == 0
    assert "one token makes more than half of the largest eigenvalue" not in (
        evaluate(tokens_of(normal(0, 400, 20)), None, ["anisotropy"])["anisotropy"].warning
    )
    x[5] *= 1.5
    assert not massive(tokens_of(x)).any()
    found = evaluate(tokens_of(x), None, METRICS)
    assert found["massive_tokens"].value == 0
    assert "one token makes more than half of the largest eigenvalue" in found["anisotropy"].warning
    x = normal(0, 60, 20)
    x[5] *= 7
    ratio = evaluate(tokens_of(x), None, ["participation_ratio"])["participation_ratio"].warning
    assert "one token makes more than half of the squared eigenvalues" in ratio
    assert "massive" not in ratio


def test_one_token_that_decides_linearity_is_named():
    x, y = normal(0, 400, 5), normal(1, 400, 5)
    y[3] *= 25 / float(y[3].norm())
    y[3] *= 7.5 * float(y.norm(dim=1).median()) / float(y[3].norm())
    few = Tokens(x[:20], *(torch.arange(20),) * 3), Tokens(y[:20], *(torch.arange(20),) * 3)
    found = evaluate(*few, ["linearity_paper"])["linearity_paper"]
    assert "one token makes more than half of the variance" in found.warning


def test_too_few_tokens_are_named():
    few = tokens_of(normal(0, 60, 20))
    found = evaluate(few, None, METRICS)
    assert "only 3.0 tokens per dimension (4 wanted)" in found["participation_ratio"].warning
    assert "only 60 distinct states (100 wanted)" in found["dimension_mle"].warning
    noise = evaluate(tokens_of(normal(0, 30, 20)), None, ["anisotropy"])["anisotropy"]
    assert "noise of as few tokens would score" in noise.warning


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_named_where_it_matters(dtype):
    """States far from the origin lose their differences: against what float64 would have kept."""
    shift = 40.0 if dtype == torch.bfloat16 else 300.0
    x = normal(0, 600, 8) + shift
    low = tokens_of(x.to(dtype))
    error = float((low.x.double() - x).square().sum(1).mean())
    share = error / float((x - x.mean(0)).square().sum(1).mean())
    for name in ("anisotropy", "participation_ratio", "dimension_mle", "linearity_paper"):
        noted = evaluate(low, tokens_of((2 * x).to(dtype)), [name])[name].warning
        assert f"rounding to {str(dtype)[6:]} makes" in noted, name
    said = evaluate(low, None, ["anisotropy"])["anisotropy"].warning
    percent = float(said.split("makes ")[1].split("%")[0]) / 100
    assert percent == pytest.approx(share, rel=0.5)
    near = evaluate(tokens_of(normal(0, 600, 8).to(dtype)), None, METRICS)
    assert not any("rounding" in each.warning for each in near.values())


def test_float8_is_refused():
    x = normal(0, 20, 4).to(torch.float8_e4m3fn)
    index = torch.arange(20)
    with pytest.raises(InputError, match=r"x\.to\(torch\.bfloat16\)"):
        Tokens(x, index, index, index)
