"""Anisotropy against llm-microscope, known spectra and plain loops."""

import math

import pytest
import torch
from made_tokens import microscope, normal, rotation, tokens_of

from mm_lens.metrics import METRICS, Tokens, evaluate

NAMES = [name for name, metric in METRICS.items() if metric.kind == "anisotropy"]


@pytest.mark.parametrize(("n", "d"), [(400, 30), (50, 60), (61, 60)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_raw_equals_llm_microscope(n, d, dtype):
    x = (normal(n, n, d) * torch.logspace(0, 1.5, d).double() + 20).to(dtype)
    peer = microscope().calculate_anisotropy_torch(x.double())
    found = METRICS["anisotropy"].compute(tokens_of(x)).value
    assert found == pytest.approx(peer, rel=1e-10)


def test_a_known_spectrum_is_found_exactly():
    spectrum = torch.tensor([9.0, 4, 2, 1, 1]).double()
    q, _ = torch.linalg.qr(normal(0, 200, 6) - normal(0, 200, 6).mean(0))
    q, _ = torch.linalg.qr(q - q.mean(0))
    x = q[:, :5] * spectrum.sqrt() @ rotation(1, 5) + 7
    assert METRICS["anisotropy"].compute(tokens_of(x)).value == pytest.approx(9 / 17, rel=1e-12)


def massive(n: int = 1000, d: int = 40, samples: int = 20) -> Tokens:
    """Isotropic tokens, but those at position 0 are huge and along one direction."""
    index = torch.arange(n)
    tokens = Tokens(normal(0, n, d), index % samples, index // samples, index % 7)
    tokens.x[tokens.position == 0, 3] += 300
    return tokens


def test_massive_tokens_make_the_raw_value_and_not_the_others():
    found = evaluate(massive(), None, NAMES)
    assert found["anisotropy"].value > 0.95
    assert found["anisotropy_without_first"].value < 0.05
    assert found["anisotropy_without_first"].n_tokens == 980
    assert found["half_trace_tokens"].value <= 20
    # 20 massive tokens, 10 trimmed: the trimmed value must say it is not clean yet.
    assert found["anisotropy_trimmed"].value > 0.9
    trimmed = evaluate(massive(4000), None, ["anisotropy_trimmed"])["anisotropy_trimmed"]
    assert trimmed.value < 0.05
    assert trimmed.n_tokens == 3960


def test_half_trace_tokens_against_a_plain_loop():
    x = normal(0, 300, 8) * torch.linspace(1, 10, 300).double()[:, None]
    centred = x - x.mean(0)
    parts = sorted((float(r @ r) for r in centred), reverse=True)
    held, count = 0.0, 0
    while held < sum(parts) / 2:
        held, count = held + parts[count], count + 1
    assert METRICS["half_trace_tokens"].compute(tokens_of(x)).value == count


def test_mean_cosine_against_a_plain_loop():
    x = normal(0, 40, 6) + 1
    x[7] = 0
    rows = [r for r in x if bool(r.any())]
    cosines = [
        float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        for i, a in enumerate(rows)
        for b in rows[:i]
    ]
    found = METRICS["mean_cosine"].compute(tokens_of(x))
    assert found.value == pytest.approx(sum(cosines) / len(cosines), rel=1e-12)
    assert found.n_tokens == 39


@pytest.mark.parametrize(("n", "d"), [(2000, 50), (60, 120)])
def test_chance_is_what_isotropic_noise_scores(n, d):
    values = [METRICS["anisotropy"].compute(tokens_of(normal(s, n, d))) for s in range(5)]
    mean = sum(v.value for v in values) / 5
    assert mean == pytest.approx(values[0].chance, rel=0.06)


def test_states_whose_squares_overflow_half_precision():
    x = (normal(0, 300, 20) * 2000).half()
    assert not (x * x).isfinite().all()
    found = evaluate(tokens_of(x, 30), None, NAMES)
    assert all(math.isfinite(e.value) for e in found.values())
