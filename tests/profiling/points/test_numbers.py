"""The paper's definitions take all tokens; the honest preset a bounded, equal number of them."""

from __future__ import annotations

import pytest
import torch
from conftest import load_tiny
from made_data import make_data, quick
from made_tokens import in_float64, microscope, normal, tokens_of

from mm_lens.metrics import METRICS, evaluate
from mm_lens.profiling.points.numbers import (
    PAPER_BYTES,
    PAPER_TOKENS,
    default_number,
    measure,
    sample_size,
)

SINGLE = [METRICS[n] for n in ("dimension_paper", "anisotropy", "dimension_mle", "mean_cosine")]
DOUBLE = [METRICS[n] for n in ("linearity_paper", "linearity_heldout")]


def test_each_metric_is_of_the_tokens_its_preset_takes():
    x, y = tokens_of(normal(0, 900, 6), 60), tokens_of(normal(1, 900, 6), 60)
    numbers = {"most": 600, "equal": 300, "seen": 900}
    found = measure(x, None, SINGLE, 0, **numbers)
    assert list(found) == [metric.name for metric in SINGLE]
    assert [e.n_tokens for e in found.values()] == [900, 900, 300, 600]
    with in_float64():
        peer = microscope()
        dimension = peer.intrinsic_dimension(x.x, "cpu")
        anisotropy = peer.calculate_anisotropy_torch(x.x)
    assert found["dimension_paper"].value == pytest.approx(dimension, rel=1e-8)
    assert found["anisotropy"].value == pytest.approx(anisotropy, rel=1e-10)
    first = x.take(torch.arange(300))
    expected = evaluate(first, None, ["dimension_mle"])["dimension_mle"]
    assert found["dimension_mle"] == expected
    pairs = measure(x, y, DOUBLE, 0, **numbers)
    assert [e.n_tokens for e in pairs.values()] == [900, 600]
    assert not any("the paper takes all" in e.warning for e in (found | pairs).values())


def test_a_row_says_where_the_sample_ends_before_the_data():
    x = tokens_of(normal(0, 900, 6), 60)
    found = measure(x, None, SINGLE, 0, most=600, equal=300, seen=12_345)
    for name in ("dimension_paper", "anisotropy"):
        assert "900 of 12,345 tokens sampled; the paper takes all" in found[name].warning
    for name in ("dimension_mle", "mean_cosine"):
        assert "takes all" not in found[name].warning


def test_how_many_are_sampled():
    honest, paper = [METRICS["dimension_mle"]], SINGLE
    assert default_number(96) == 2048
    assert default_number(4096) == 49_152
    assert sample_size(None, honest, 96, 10_000) == 2048
    assert sample_size(None, paper, 96, 10_000) == PAPER_TOKENS
    assert sample_size(None, paper, 4096, 10**6) == 49_152, "never fewer than the honest preset"
    assert sample_size(None, paper, 96, 2**18) == PAPER_BYTES // 2**18
    assert sample_size(500, paper, 96, 10_000) == 500, "as asked for"


def test_a_profile_at_its_defaults_takes_the_papers_tokens():
    data = make_data(6, text_only=())
    names = ["dimension_paper", "anisotropy"]
    found = quick(load_tiny(check=False), data, tokens=None, metrics=names, streams=["residual"])
    seen = found.provenance["tokens"]["seen"]
    for modality in ("visual", "text"):
        rows = found.table[found.table.modality == modality]
        assert {*rows.n_tokens} == {seen[modality]}
        assert not rows.warning.str.contains("takes all").any()
    assert found.provenance["options"]["tokens"] == 2048
