"""Moments merge."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_streams import N, X, Y, batches, splits, stream

from mm_lens.metrics.accumulators import (
    LinearityMoments,
)


@settings(max_examples=15, deadline=None)
@given(cuts=splits, shards=st.integers(1, 4))
def test_moments_merge_to_1e_13(cuts, shards):
    found = stream(LinearityMoments, batches(cuts, X, Y), shards).state
    x, y = X - X.mean(0), Y - Y.mean(0)
    spread_x, spread_y = x.square().sum(0).sqrt(), y.square().sum(0).sqrt()
    assert found.n == N
    assert float(((found.xx - x.T @ x) / spread_x / spread_x[:, None]).abs().max()) < 1e-13
    assert float(((found.xy - x.T @ y) / spread_y / spread_x[:, None]).abs().max()) < 1e-13
    for mean, exact in ((found.x, X.mean(0)), (found.y, Y.mean(0))):
        assert float((mean / exact - 1).abs().max()) < 1e-13
    assert float(found.yy) == pytest.approx(float(y.square().sum()), rel=1e-13)
    assert float(found.uu) == pytest.approx(float((y - x).square().sum()), rel=1e-13)
