"""Coverage of every metric on made images: few and many, equal and unequal, with massive tokens.

    pytest -m slow -s tests/metrics/test_image_coverage.py

prints the table of docs/metrics/coverage.md.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from made_images import image_tokens

from mm_lens.metrics import METRICS, evaluate

REPETITIONS, PRECISE = 200, 1000
"""Draws; and of metrics whose share of the first of them lies outside of 92 to 98 %: of 200 draws a
share has a standard error of 1.5 to 2 %, and one in four hundred lies far off by chance."""
LEAST, MOST = 0.92, 0.98
IMAGES = (20, 60, 200)
CELLS = [
    (n, equal, massive) for n in IMAGES for massive in (False, True) for equal in (True, False)
]
#: Below this share of draws with an interval a metric counts as one without: at 20 images one draw
#: in 14 holds no massive token.
SOME = 0.15
NONE = ("massive_tokens", "half_trace_tokens", "dimensions_95")


@cache
def coverage(cell: tuple[int, bool, bool]) -> dict[str, float]:
    """Share of intervals that contain the mean of all draws; NaN for a metric without."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices
    draws = [evaluate(*image_tokens(seed, *cell), METRICS) for seed in range(REPETITIONS)]
    found = {name: share([draw[name] for draw in draws]) for name in METRICS}
    doubtful = {name: METRICS[name] for name, value in found.items() if outside(value, REPETITIONS)}
    more = range(REPETITIONS, PRECISE) if doubtful else ()
    draws += [evaluate(*image_tokens(seed, *cell), doubtful) for seed in more]
    torch.set_num_threads(threads)
    return found | {name: share([draw[name] for draw in draws]) for name in doubtful}


def outside(value: float, n_draws: int, errors: float = 0) -> bool:
    """Whether a share of so many draws lies outside of 92 to 98 %, by more than so many standard
    errors; NaN does not."""
    spread = [errors * (p * (1 - p) / n_draws) ** 0.5 for p in (LEAST, MOST)]
    return value < LEAST - spread[0] or value > MOST + spread[1]


def share(draws) -> float:
    values, low, high = np.array([(e.value, e.low, e.high) for e in draws]).T
    there = np.isfinite(low)
    if there.mean() < SOME:
        return float("nan")
    mean = np.nanmean(values)
    return float(((low <= mean) & (mean <= high))[there].mean())


def table() -> str:
    """As in docs/metrics/coverage.md, in per cent."""
    heads = [
        f"{n}, {'equal' if equal else 'unequal'}{', massive' * massive}"
        for n, equal, massive in CELLS
    ]
    lines = [["metric", *heads], ["---"] * (len(heads) + 1)]
    for name in METRICS:
        shares = [coverage(cell)[name] for cell in CELLS]
        lines.append([f"`{name}`", *("–" if s != s else f"{100 * s:.0f}" for s in shares)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_intervals_contain_the_mean_or_are_not_given(cell):
    found = coverage(cell)
    wrong = {}
    for name, value in found.items():
        if name.removesuffix("_without_massive") in NONE:
            assert np.isnan(value), name
        elif outside(value, PRECISE, errors=2):
            wrong[name] = value
    assert not wrong
    if cell[2]:
        assert np.isnan(found["anisotropy"])
    kept = [name for name in found if name.endswith("_without_massive")]
    kept = [name for name in kept if name.removesuffix("_without_massive") not in NONE]
    assert np.isfinite([found[name] for name in kept]).all()


@pytest.mark.slow
def test_table_is_printed(capsys):
    with capsys.disabled():
        print("\n" + table())
