"""Intrinsic dimension at larger scales: GRIDE, farther neighbours than the nearest two.

`dimension_gride_2`, `_4` and `_8` fit the ratio of the distances to neighbours `2 n1` and
`n1` (Denti et al. 2022). Where TwoNN sees noise or near-copies between the nearest, they look
past them, with all tokens in place: unlike `dimension_mle_half`, which makes the cloud thinner. A
value that falls with n1 says that the small scale is noise; one that rises, that the space is
curved or in clusters.

Limits: the density must be constant over 16 neighbours instead of two, so the values are biased
further down in many dimensions. Below 50 n1 distinct states there is no interval: neighbourhoods
then overlap so much that 95 % intervals covered 89 %; nor is there one where there are massive
tokens, but too few to be each other's neighbours. Cost: a search from 1,000 tokens, drawn by their
keys, among all.
"""

from __future__ import annotations

import torch

from mm_lens.metrics.dimension import FAR, KIND, Neighbourhood, interval, scale_ratios
from mm_lens.metrics.numerics.estimates import Estimate, UndefinedError, estimate
from mm_lens.metrics.numerics.massive import massive
from mm_lens.metrics.numerics.ratios import fit_gride

SCALES = (2, 4, FAR // 2)
_MORE_MASSIVE = 4  # than 2 n1: else how many there are decides the value, and intervals cover 88 %
_FOR_INTERVAL = 50  # distinct states for each of the n1 neighbours: below, intervals are too narrow


def _register(n1: int) -> None:
    @KIND.metric(
        f"dimension_gride_{n1}",
        label=f"Intrinsic dimension, neighbours {n1} and {2 * n1}",
        unit="dimensions",
        presets=("honest",),
    )
    def gride(points: Neighbourhood) -> Estimate:
        """Maximum likelihood on the ratio of the distances to neighbours 2 n1 and n1 (GRIDE)."""
        distinct = points.distinct
        if len(distinct) <= 2 * n1:
            raise UndefinedError(
                f"{len(distinct)} distinct states are too few for {2 * n1} neighbours"
            )
        rows, found = points.far
        fit = fit_gride(scale_ratios(found, n1), n1)

        # Neighbours that are among the rows themselves; the others have no influence.
        own = torch.arange(len(rows), device=rows.device)
        place = torch.full((len(distinct),), -1, device=rows.device)
        place[rows] = own
        linked = place[found.index[:, : 2 * n1]]
        linked = torch.where(linked < 0, own[:, None], linked)
        ends, replicates = interval(fit, distinct.sample[rows], linked, points.seed)
        result = estimate(
            distinct, fit.value, *ends, warnings=points.warnings, replicates=replicates
        )
        if len(distinct) < _FOR_INTERVAL * n1:
            return result.without_interval(f"fewer than {_FOR_INTERVAL * n1} distinct states")
        heavy = int(massive(distinct).sum())
        if n1 > SCALES[0] and 0 < heavy <= 2 * n1 + _MORE_MASSIVE:
            return result.without_interval(
                f"{heavy} massive tokens are too few to be each other's {2 * n1} neighbours"
            )
        return result


for _n1 in SCALES:
    _register(_n1)
