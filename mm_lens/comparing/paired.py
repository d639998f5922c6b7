"""Functions of several values of profiles, with intervals that know how the values hang together.

The values of a profile come from the same documents (images), so they are correlated: from layer to
layer, and between two models that were shown the same data. An interval for a difference or a trend
must know this, and the intervals of the single values do not tell. The *replicates* of a profile
do: what each value would be without each of 16 groups of documents, which are the same groups in
every profile of the same data and seed. A function of values is evaluated on the replicates too,
and their spread is its error: the delete-a-group jackknife (Kott 2001), paired by construction.

Where the replicates come from (`mm_lens.metrics`): linearity is refitted without each group; for
the rest the influence function says to first order what a group contributes. Leaving documents out
for real would be wrong for the intrinsic dimension: the remaining tokens would get other, farther
neighbours. What the influence leaves out there, that tokens of different documents share
distances, is the column `rest`. It is taken for fully correlated within a model and for
uncorrelated between models, so that intervals rather err on the wide side.

Without replicates the interval of each value takes the place of `rest`: valid, and wide.

Limits: at most 15 degrees of freedom (Student's t), fewer where the groups hold unequal numbers of
tokens. Intervals are about documents of this kind, not about
other models of the family; a model trained once is one model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64
from numpy import ndarray
from scipy import special

from mm_lens.metrics import METRICS
from mm_lens.metrics.intervals import GROUPS, student_quantile
from mm_lens.profiling.points.lines import STATES, name_lines
from mm_lens.profiling.result import Profile

KEY = ["stream", "modality", "metric"]


@dataclass(frozen=True)
class Curve:
    """One metric over the layers of one model.

    Attributes:
        model: label of the model.
        layer: ascending.
        depth: of each layer, 0 (embeddings) to 1 (last layer); of a metric of two consecutive
            states, half-way between them.
        value: NaN where there is none.
        deviations: of each value in each replicate, scaled so that their squares sum to the
            variance of the value.
        rest: standard error of each value that the deviations do not show.
        table: the rows of the profile's table.
        freedom: degrees of freedom of the standard error that the deviations make.
    """

    model: str
    layer: Float64[ndarray, " layers"]
    depth: Float64[ndarray, " layers"]
    value: Float64[ndarray, " layers"]
    deviations: Float64[ndarray, "layers groups"]
    rest: Float64[ndarray, " layers"]
    table: pd.DataFrame
    freedom: float = GROUPS - 1.0

    def take(self, keep: Bool[ndarray, " layers"]) -> Curve:
        """Only some of the layers."""
        return replace(
            self,
            layer=self.layer[keep],
            depth=self.depth[keep],
            value=self.value[keep],
            deviations=self.deviations[keep],
            rest=self.rest[keep],
            table=self.table[keep],
        )

    def at(self, depth: float) -> Float64[ndarray, " layers"]:
        """Weights of the layers for the value at some depth, interpolated between two layers."""
        place = np.interp(depth, self.depth, np.arange(len(self.depth)))
        below, share = int(place), place - int(place)
        weights = np.zeros(len(self.depth))
        weights[below] = 1 - share
        if share:
            weights[below + 1] = share
        return weights

    def mean(self) -> Float64[ndarray, " layers"]:
        """Weights for the mean over the layers."""
        return np.full(len(self.layer), 1 / max(len(self.layer), 1))


def curves(model: str, profile: Profile) -> dict[tuple[str, ...], Curve]:
    """Every curve of a profile by stream, modality and metric; and component, if it has one."""
    table = profile.table.reset_index(drop=True)
    deviations, rest, freedom = _errors(profile, table)
    n_layers = int(profile.provenance["model"]["n_layers"])
    found: dict[tuple[str, ...], Curve] = {}
    table["line"] = name_lines(table)
    ordered = table.sort_values("layer", kind="stable")
    for key, rows in ordered.groupby([*KEY, "line"], sort=False):
        stream, modality, metric, line = map(str, key)
        known = METRICS.get(metric)
        back = 0.5 if known is not None and known.arity == 2 else 0.0
        layer, index = rows.layer.to_numpy(float), rows.index.to_numpy()
        # The tower has a depth of its own; the projector is where the words begin.
        depth = max(int(layer.max()), 1) if line.startswith("tower") else n_layers
        # States, which findings are about, go by three names; other components by four.
        named = (stream, modality, metric, *([] if line == STATES else [line]))
        found[named] = Curve(
            model,
            layer,
            np.maximum(layer - back, 0) / depth,
            rows.value.to_numpy(float),
            _same_groups(deviations[index]),
            rest[index],
            rows,
            float(np.nanmin(freedom[index], initial=GROUPS - 1)),
        )
    return found


def _errors(
    profile: Profile, table: pd.DataFrame
) -> tuple[Float64[ndarray, "rows groups"], Float64[ndarray, " rows"], Float64[ndarray, " rows"]]:
    """Deviations (NaN beyond the number of groups), rest and freedom of every value."""
    half = ((table.high - table.low) / 2).to_numpy(float)
    alone = half / student_quantile(GROUPS - 1)
    if profile.replicates is None or profile.replicates.empty:
        return np.zeros((len(table), 0)), alone, np.full(len(table), math.nan)
    told = [name for name in ("hook", "head", "source") if name in profile.replicates]
    place = [*KEY, "layer", *told]
    joined = table[place].merge(profile.replicates, on=place, how="left")
    names = [name for name in joined.columns if name[0] == "g" and name[1:].isdigit()]
    values = joined[names].to_numpy(float)
    there = np.isfinite(values).any(1)
    count = np.isfinite(values).sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, np.nansum(values, 1) / count[:, 0], 0.0)[:, None]
        deviations = (values - mean) * np.sqrt((count - 1) / count)
    freedom = np.where(there, count[:, 0] - 1.0, math.nan)
    if "freedom" in joined:  # profiles of earlier versions have none
        freedom = np.fmin(freedom, joined.freedom.to_numpy(float))
    return deviations, np.where(there, joined.rest.to_numpy(float), alone), freedom


def _same_groups(deviations: Float64[ndarray, "layers all"]) -> Float64[ndarray, "layers groups"]:
    """Without the columns that no layer has; layers without replicates deviate by nothing."""
    shared: ndarray = np.nan_to_num(deviations[:, np.isfinite(deviations).any(0)])
    return shared


@dataclass(frozen=True)
class Quantity:
    """A number with its standard error, and the degrees of freedom of that.

    Attributes:
        value: the number.
        error: its standard error.
        freedom: of the error.
        deviations: what makes the error, one array for each set of groups of documents.
        rest: the part of the error that they do not show.
    """

    value: float
    error: float
    freedom: float
    deviations: tuple[Float64[ndarray, " _"], ...] = ()
    rest: float = 0.0

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - student_quantile(self.freedom) * self.error

    @property
    def high(self) -> float:
        """Upper end."""
        return self.value + student_quantile(self.freedom) * self.error

    @cached_property
    def known(self) -> bool:
        """Whether value and interval exist."""
        return math.isfinite(self.value) and math.isfinite(self.error)

    def p(self, null: float = 0.0) -> float:
        """Two-sided p value of the true number being `null`; NaN where it is not known."""
        if not self.known:
            return math.nan
        if self.error == 0:
            return float(self.value == null)
        return two_sided((self.value - null) / self.error, self.freedom)


def combine(*parts: tuple[Curve, Float64[ndarray, " _"]], paired: bool = True) -> Quantity:
    """The sum of values times weights.

    Args:
        parts: curves, each with a weight per layer.
        paired: whether the models were shown the same documents; otherwise their errors are
            independent.
    """
    value = 0.0
    shared: dict[tuple[str, int], ndarray] = {}
    rest: dict[str, float] = {}
    for curve, weights in parts:
        used = weights != 0
        value += float(curve.value[used] @ weights[used])
        # Different numbers of groups are different groups.
        key = ("" if paired else curve.model, curve.deviations.shape[1])
        shared[key] = shared.get(key, 0.0) + weights[used] @ curve.deviations[used]
        rest[curve.model] = rest.get(curve.model, 0.0) + float(
            np.abs(weights[used]) @ curve.rest[used]
        )
    variance = sum(float(d @ d) for d in shared.values()) + sum(r**2 for r in rest.values())
    freedom = min([GROUPS - 1.0, *(curve.freedom for curve, _ in parts)])
    apart = math.sqrt(sum(r**2 for r in rest.values()))
    return Quantity(value, math.sqrt(variance), freedom, tuple(shared.values()), apart)


def two_sided(t: float, freedom: float) -> float:
    """P(|T| > |t|) for Student's t."""
    return float(2 * special.stdtr(freedom, -abs(t)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p values of tests that are looked at together; NaN stays NaN."""
    values = np.asarray(p, float)
    adjusted = np.full(len(values), math.nan)
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * float(values[i])))
        adjusted[i] = largest
    return [float(value) for value in adjusted]
