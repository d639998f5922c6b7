"""Streams in any order, batches and shards: equal to one call on everything."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_streams import D, N, X, Y, batches, equal, splits, stream
from made_tokens import normal, tokens_of

from mm_lens.errors import InputError, MMLensWarning
from mm_lens.metrics import METRICS, Tokens, evaluate
from mm_lens.metrics.accumulators import (
    GapMoments,
    LinearityMoments,
    Sampled,
    SpectrumMoments,
)
from mm_lens.metrics.cka import cka_matrix
from mm_lens.metrics.tokens import sampling_key, subsample


@settings(max_examples=15, deadline=None)
@given(cuts=splits, shards=st.integers(1, 4), seed=st.integers(0, 99))
@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (LinearityMoments, lambda order: (X[order], Y[order])),
        (SpectrumMoments, lambda order: (X[order],)),
        (GapMoments, lambda order: (X[order], (Y * 0.7)[order])),
    ],
)
def test_exact_metrics_do_not_depend_on_order_batches_or_shards(make, rows, cuts, shards, seed):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    found = stream(make, batches(cuts, *rows(order)), shards).compute()
    whole = make()
    whole.update(*rows(torch.arange(N)))
    equal(found, whole.compute(), 1e-13)


def test_exact_values_equal_those_of_one_call():
    linear, spectrum = LinearityMoments(), SpectrumMoments()
    for x, y in batches([0, 50, 51, 200, N], X, Y):
        linear.update(x, y)
        spectrum.update(x)
    one = evaluate(tokens_of(X), tokens_of(Y), METRICS)
    found = linear.compute()
    assert found.pop("chance") == pytest.approx(one["linearity_paper"].chance)
    for name, value in (found | spectrum.compute()).items():
        assert value == pytest.approx(one[name].value, rel=1e-9), name


def test_constant_columns_and_constant_states():
    x = X.clone()
    x[:, 3] = 0.1
    linear = LinearityMoments()
    for part in batches([0, 77, 180, N], x, Y):
        linear.update(*part)
    expected = METRICS["linearity_paper"].compute(tokens_of(x), tokens_of(Y)).value
    assert linear.compute()["linearity_paper"] == pytest.approx(expected, rel=1e-9)
    spectrum = SpectrumMoments()
    spectrum.update(torch.ones(5, 3).double())
    assert all(math.isnan(value) for value in spectrum.compute().values())


@settings(max_examples=10, deadline=None)
@given(cuts=splits, shards=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_sample_is_the_same_bit_for_bit(cuts, shards, seed):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    a, b = tokens_of(X, 30).take(order), tokens_of(Y, 30).take(order)
    rows = [torch.arange(lo, hi) for lo, hi in itertools.pairwise(cuts)]
    parts = [(a.take(r), b.take(r)) for r in rows]
    names = ["linearity_paper", "dimension_mle", "anisotropy"]

    def metrics(*hooks: Tokens) -> str:
        return str(evaluate(*hooks, metrics=names, seed=5))

    found = stream(lambda: Sampled(metrics, k=120, seed=5), parts, shards)
    chosen = [subsample(tokens_of(t, 30), 120, seed=5) for t in (X, Y)]
    assert torch.equal(found.state.hooks[1].x, chosen[1].x)
    assert found.compute() == metrics(*chosen)


def test_a_sample_of_sequences_that_share_a_sample_is_the_same_in_any_order():
    index = torch.arange(N)
    key = sampling_key(index // 10, index % 10)
    tokens = Tokens(X, index // 50, index % 10, index, key)
    found = []
    for order in (index, index.flip(0)):
        drawn = Sampled(lambda t: t.x, k=100)
        for rows in order.split(70):
            drawn.update(tokens.take(rows))
        found.append(drawn.compute())
    assert torch.equal(*found)


def test_layers_by_layers_from_a_stream():
    hooks = [X, Y, Y @ normal(5, D, D)]
    layers = Sampled(lambda *hooks: cka_matrix([t.x for t in hooks]), k=N)
    tokens = [tokens_of(h) for h in hooks]
    for lo in range(0, N, 100):
        layers.update(*(t.take(torch.arange(lo, lo + 100)) for t in tokens))
    torch.testing.assert_close(layers.compute(), cka_matrix(hooks), rtol=1e-10, atol=0)


def test_nothing_seen_and_different_tokens_are_refused():
    for empty in (LinearityMoments(), SpectrumMoments(), GapMoments(), Sampled(evaluate, 5)):
        with pytest.raises(InputError, match="has seen no token"):
            empty.compute()
    a = tokens_of(X, 30)
    with pytest.raises(InputError, match="same tokens"):
        Sampled(evaluate, 5).update(a, a.take(torch.arange(N).flip(0)))
    gap = GapMoments()
    gap.update(X, X[:0])
    with pytest.raises(InputError, match="two tokens of each"):
        gap.compute()


def sum_of_both() -> Sampled:
    return Sampled(lambda a, b: {"sum": float((a.x + b.x).sum())}, k=200)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("make", "batch", "dropped"),
    [
        (LinearityMoments, lambda x, y: (x, y), {7, 250}),
        (SpectrumMoments, lambda x, y: (x,), {7}),
        (GapMoments, lambda x, y: (x, y.flip(0)[:200]), {7}),  # two sets of tokens, not pairs
        (sum_of_both, lambda x, y: (tokens_of(x), tokens_of(y)), {7, 250}),
    ],
)
def test_rows_that_are_not_finite_are_dropped_and_counted(make, batch, dropped, bad):
    x, y = X.clone(), Y.clone()
    x[7, 2] = bad
    if 250 in dropped:
        y[250, 0] = bad
    first, second, clean = make(), make(), make()
    with pytest.warns(MMLensWarning, match=f"{len(dropped)} of .00 tokens not finite, dropped"):
        first.update(*batch(x, y))
    second.merge(first)
    assert second.dropped == len(dropped)
    keep = torch.tensor([row not in dropped for row in range(N)])
    one = [part.take(keep) if make is sum_of_both else part for part in batch(X, Y)]
    if make is GapMoments:
        one[0] = one[0][keep]
    elif make is not sum_of_both:
        one = [part[keep] for part in one]
    clean.update(*one)
    assert second.compute() == pytest.approx(clean.compute(), rel=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a clean batch is none to warn of
        second.update(*one)
    assert second.dropped == len(dropped)


@pytest.mark.parametrize("mean", [0.1, 1e6])
@pytest.mark.parametrize("fast", [False, True])
def test_what_does_not_vary_has_no_linearity(mean, fast):
    """As in `evaluate`: no R² of rounding."""
    constant, varied = torch.full((N, D), mean, dtype=torch.float64), X - 1000 + mean
    for x, y, without in (
        (constant, varied, ""),
        (varied, constant, ""),
        (varied, varied + 0.7, "update"),
    ):
        linear = LinearityMoments(fast=fast)
        for rows in torch.arange(N).split(90):
            linear.update(x[rows], y[rows])
        one = evaluate(tokens_of(x), tokens_of(y), METRICS)
        for name, value in linear.compute().items():
            assert math.isnan(value) == (without in name), name
            assert name == "chance" or math.isnan(one[name].value) == (without in name), name


def test_different_accumulators_do_not_merge():
    for one, other, both in (
        (
            Sampled(evaluate, 100),
            Sampled(evaluate, 50, seed=1),
            "k=100, seed=0.* and .*k=50, seed=1",
        ),
        (LinearityMoments(), LinearityMoments(fast=True), "fast=False.* and .*fast=True"),
        (LinearityMoments(), SpectrumMoments(), "LinearityMoments.* and SpectrumMoments"),
    ):
        with pytest.raises(InputError, match=both):
            one.merge(other)
