"""Intervals of an accuracy over questions: Wilson's, widened where questions share an image.

Of questions about images of their own, the 95 % interval is Wilson's score interval (1927): it
stays between 0 and 1, and holds for few questions and for accuracies near 0 or 1. Questions about
one image are right and wrong together, so that they count for less: the number of questions is
divided by the design effect, the variance of the accuracy over whole images against that of
independent questions (at least 1), and the normal quantile becomes Student's with one less than the
number of images (Korn & Graubard 1998, who do the same to another interval).

Limits: fewer than four images with several questions give no interval (NaN). Where all are right,
or all wrong, the design effect cannot be seen: then images count, not questions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from mm_lens.metrics.intervals import MIN_SAMPLES, student_quantile

NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def accuracy_interval(right: Sequence[bool], shared: Sequence[Hashable]) -> tuple[float, float]:
    """Low and high end of the 95 % interval.

    Args:
        right: whether each question was answered right.
        shared: what each shares with others: its image.
    """
    n, found = len(right), np.asarray(right, float)
    if not n:
        return math.nan, math.nan
    share = float(found.mean())
    images: dict[Hashable, list[float]] = {}
    for value, image in zip(found - share, shared, strict=True):
        images.setdefault(image, []).append(value)
    count = len(images)
    if count == n:
        return wilson(share, n, NORMAL)
    if count < MIN_SAMPLES:
        return math.nan, math.nan
    squares = math.fsum(math.fsum(values) ** 2 for values in images.values())
    independent = n * share * (1 - share)
    effect = n / count if not independent else squares * count / (count - 1) / independent
    return wilson(share, n / max(effect, 1.0), student_quantile(count - 1))


def wilson(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's score interval of a share among `n`, which need not be whole."""
    spread = quantile**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = quantile / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)
