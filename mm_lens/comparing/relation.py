"""`relate`: does the geometry of a sample say whether its answer is right?

Within one model, over samples. Each quantity of each layer is asked three things:

- **Alone**: the area under the ROC curve, the probability that of a right and a wrong sample the
  right one has more of it (0.5: no relation); interval by leaving out groups of images.
- **Over and above** what was known before (the confounders: kind of question, how common the answer
  is, lengths, whatever else is named): the score test of a regression on the confounders, with the
  signs of the images' scores flipped at random (Hemerik, Goeman & Finos 2020). It needs no model of
  the variance, and questions about one image count as one.
- **Among so many**: the same flips at all layers and quantities, and the largest of all statistics
  of each flip (Westfall & Young 1993), give a p-value that is corrected for having looked at all.

And all of them together: how much better a ridge logistic regression predicts held-out images with
them than with the confounders alone.

Limits. A relation is no cause: the page docs/relating.md says what each verdict means. Confounders
act through a line: what goes along with one in another shape is not taken out. Where geometry and a
confounder are one thing, nothing is left over, whichever of them it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata

from mm_lens._storage.hashing import digest
from mm_lens.arguments import describe_value, require_whole
from mm_lens.errors import DataError, InputError, MMLensWarning
from mm_lens.metrics.intervals import GROUPS, jackknife_error, margin, sample_groups

PLACE = ("stream", "modality", "layer", "quantity")
COLUMNS = (*PLACE, "n", "auc", "low", "high", "p_alone", "p", "p_adjusted")
FEWEST = 30
"""Fewest images that say anything."""
FEWEST_RARER = 10
"""Fewest right, and fewest wrong, answers that are taken without a warning."""
LEVEL = 0.05
MISSING = 0.1
"""Largest share of samples in which a quantity may be missing; they get its mean."""
_KNOWN = {"index", "id", "shared", "stream", "layer", "modality"}


@dataclass(frozen=True, eq=False, repr=False)
class Relation:
    """What `relate` returns.

    Attributes:
        table: a row for each stream, modality, layer and quantity: `auc` with its interval,
            `p_alone` of the quantity without confounders, `p` over and above them, `p_adjusted` the
            same corrected for all rows.
        together: held-out areas: of the `confounders`, `with_geometry`, their difference `gain` and
            its interval `low`, `high`.
        n: questions.
        n_images: what they are about; the unit of every test.
        n_right: how many of the answers are right.
        verdict: "over and above", "along with the confounders" or "none".
    """

    table: pd.DataFrame
    together: Mapping[str, float]
    n: int
    n_images: int
    n_right: int
    verdict: str

    def __repr__(self) -> str:
        first = self.table.sort_values("p_adjusted").head(5)
        t = self.together
        return (
            f"Geometry and right answers, {self.n:,} questions about {self.n_images:,} images, "
            f"{self.n_right:,} answered right: {self.verdict}\n"
            f"held-out area {t['confounders']:.3f} by the confounders, {t['with_geometry']:.3f} "
            f"with geometry, gain {t['gain']:+.3f} [{t['low']:+.3f}, {t['high']:+.3f}]\n"
            f"{first.to_string(index=False)}"
        )


def relate(
    samples: Any,
    answers: Any,
    *,
    over: Sequence[str] = (),
    condition: str = "given",
    flips: int = 999,
    seed: int = 0,
) -> Relation:
    """Relate the geometry of samples to whether their answers are right.

    ```python
    profile = mm_lens.profile(model, data, per_sample=True)
    mm_lens.relate(profile, mm_lens.evaluate(model, data), over=["kind"])
    ```

    Args:
        samples: a profile with `per_sample=True`, or its `samples`.
        answers: what `evaluate` gave of the same data, or its `answers`.
        over: columns of the answers that are taken out beforehand: texts by their values, numbers
            as they are. Always taken out are how common the right answer is, the length of the
            question, and the numbers of tokens.
        condition: which answers.
        flips: how many times signs are flipped; the smallest p-value is one over one more.
        seed: of the flips.

    Raises:
        InputError: an argument is wrong, or a column is not there.
        DataError: too few samples are in both, or all are right, or all wrong.
    """
    require_whole("flips", flips, 19)
    geometry, told = _join(samples, answers, condition)
    right = told["right"].to_numpy(float)
    images = told["shared"].to_numpy()
    if len({*images}) < FEWEST or right.min() == right.max():
        raise DataError(
            f"{len({*images})} images have both geometry and an answer, {int(right.sum())} of "
            f"{len(right)} answers are right: that says nothing. Give at least {FEWEST} images, "
            "some of them answered right and some wrong."
        )
    if (rarer := int(min(right.sum(), len(right) - right.sum()))) < FEWEST_RARER:
        warnings.warn(
            f"{int(right.sum())} of {len(right)} answers are right: with {rarer} of the rarer kind "
            f"hardly any relation can be found, and intervals are rough. Take more samples or "
            f"harder questions, until there are {FEWEST_RARER}.",
            MMLensWarning,
            stacklevel=2,
        )
    x, places = _quantities(geometry, list(told["id"]))
    confounders = _confounders(geometry, told, over)
    groups = _groups(images)
    p_alone, alone = _flip(x, right, np.ones((len(x), 1)), images, flips, seed)
    p, adjusted = _flip(x, right, confounders, images, flips, seed)
    rows = []
    for k, place in enumerate(places):
        auc, low, high = _area(x[:, k], right, groups)
        rows.append((*place, len(x), auc, low, high, p_alone[k], p[k], adjusted[k]))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    found = "over and above" if adjusted.min() <= LEVEL else "none"
    if found == "none" and alone.min() <= LEVEL:
        found = "along with the confounders"
    together = _together(x, confounders, right, groups)
    return Relation(table, together, len(x), len({*images}), int(right.sum()), found)


def _join(samples: Any, answers: Any, condition: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Geometry and answers of the samples that have both, in one order."""
    geometry = samples if isinstance(samples, pd.DataFrame) else getattr(samples, "samples", None)
    told = answers if isinstance(answers, pd.DataFrame) else getattr(answers, "answers", None)
    if not isinstance(geometry, pd.DataFrame):
        raise InputError(
            "relate takes a profile that was made with per_sample=True, not "
            f"{describe_value(samples)}."
        )
    if not isinstance(told, pd.DataFrame) or "right" not in told:
        raise InputError(f"relate takes what evaluate returns, not {describe_value(answers)}.")
    told = told[told["condition"] == condition]
    if told["id"].duplicated().any():
        raise DataError("Two answers are of one sample: ids must tell samples apart.")
    both = [name for name in told["id"] if name in {*geometry["id"]}]
    told = told.set_index("id").loc[both].reset_index()
    return geometry[geometry["id"].isin(both)], told


def _quantities(
    geometry: pd.DataFrame, ids: list[str]
) -> tuple[Float[np.ndarray, "n m"], list[tuple[Any, ...]]]:
    """Every quantity at every place, standardised; without those that are missing or constant."""
    names = [name for name in geometry if name not in _KNOWN and name != "n_tokens"]
    columns, places, parts = [], [], []
    for place, rows in geometry.groupby(["stream", "modality", "layer"], sort=False):
        cells = rows.set_index("id").reindex(ids)
        for name in names:
            values = cells[name].to_numpy(float)
            there = np.isfinite(values)
            if there.mean() < 1 - MISSING:
                if there.any():
                    parts.append((place, name, int(there.sum())))
                continue
            if np.ptp(values[there]) == 0:
                continue
            values = np.where(there, values, values[there].mean())
            columns.append((values - values.mean()) / values.std())
            places.append((*place, name))
    if not columns:
        raise DataError("No quantity is there for nearly all samples, and differs among them.")
    if parts:
        (stream, modality, layer), name, n = parts[0]
        warnings.warn(
            "Not looked at are quantities that more than one sample in ten lacks, at "
            f"{len(parts)} place(s); the first: {modality} {name} at layer {layer} of the {stream} "
            f"stream, which {n} of {len(ids)} samples have.",
            MMLensWarning,
            stacklevel=3,
        )
    return np.stack(columns, 1), places


def _confounders(
    geometry: pd.DataFrame, told: pd.DataFrame, over: Sequence[str]
) -> Float[np.ndarray, "n c"]:
    """An intercept, and what is known without geometry."""
    parts: list[np.ndarray] = [np.ones(len(told))]
    common = told["wanted"].map(told["wanted"].value_counts())
    parts += [common.to_numpy(float), told["asked"].str.len().to_numpy(float)]
    for _, rows in geometry.groupby("modality"):
        counts = rows.drop_duplicates("id").set_index("id")["n_tokens"].reindex(told["id"])
        parts.append(counts.fillna(0).to_numpy(float))
    for name in over:
        if name not in told:
            raise InputError(
                f"over names {name!r}, which is no column of the answers. There are: "
                f"{', '.join(map(str, told))}. A column of the data becomes one where the answers "
                f"are counted by it: evaluate(by=[{str(name)!r}]), --by {name}."
            )
        if pd.api.types.is_numeric_dtype(told[name]):
            parts.append(told[name].to_numpy(float))
        else:
            kinds = pd.get_dummies(told[name], dtype=float)
            parts += [kinds[kind].to_numpy() for kind in list(kinds)[1:]]
    columns = np.stack(parts, 1)
    scale = columns.std(0)
    kept = [0, *(k for k in range(1, columns.shape[1]) if scale[k] > 0)]
    columns = columns[:, kept]
    columns[:, 1:] = (columns[:, 1:] - columns[:, 1:].mean(0)) / scale[kept[1:]]
    return columns


def _groups(images: np.ndarray) -> np.ndarray:
    """Group of each question: whole images, in parts that follow from what they are."""
    marks = torch.tensor([digest(str(image)) for image in images])
    return sample_groups(marks, GROUPS)[0].numpy()


def _flip(
    x: np.ndarray, right: np.ndarray, known: np.ndarray, images: np.ndarray, flips: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """p-values of each column over and above what is known: each alone, and corrected for all."""
    basis, _ = np.linalg.qr(known)
    rest = right - basis @ (basis.T @ right)
    moved = x - basis @ (basis.T @ x)
    number = pd.factorize(images)[0]
    scores = np.zeros((number.max() + 1, x.shape[1]))
    np.add.at(scores, number, moved * rest[:, None])
    spread = np.sqrt((scores**2).sum(0))
    live = spread > 1e-9 * max(float(spread.max()), 1e-300)
    scores = np.where(live, scores / np.where(live, spread, 1.0), 0.0)
    chance = np.random.default_rng(seed)
    signs = chance.choice([-1.0, 1.0], (flips, len(scores)))
    null, seen = np.abs(signs @ scores), np.abs(scores.sum(0))
    # Rounding may tell apart what is equal: a flip of all signs gives the same.
    alone = (null >= seen - 1e-12).sum(0) + 1
    most = (null.max(1)[:, None] >= seen - 1e-12).sum(0) + 1
    p, adjusted = alone / (flips + 1), most / (flips + 1)
    return np.where(live, p, 1.0), np.where(live, adjusted, 1.0)


def area_under_curve(values: np.ndarray, right: np.ndarray) -> float:
    """Probability that a right sample has the larger value; ties count one half."""
    hits = int(right.sum())
    misses = len(right) - hits
    if not hits or not misses:
        return float("nan")
    ranks = rankdata(values)
    return float((ranks[right > 0].sum() - hits * (hits + 1) / 2) / (hits * misses))


def _area(values: np.ndarray, right: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """The area and its interval over images."""
    area = area_under_curve(values, right)
    without = [area_under_curve(values[groups != g], right[groups != g]) for g in {*groups}]
    half = margin(*jackknife_error([value for value in without if np.isfinite(value)]))
    return area, max(area - half, 0.0), min(area + half, 1.0)


def _together(
    x: np.ndarray, known: np.ndarray, right: np.ndarray, groups: np.ndarray
) -> dict[str, float]:
    """Areas of predictions of images that were held out."""
    before, after = np.zeros(len(right)), np.zeros(len(right))
    for group in {*groups}:
        held = groups == group
        for columns, into in ((known, before), (np.concatenate([known, x], 1), after)):
            # What is known counts the same in both; many quantities are worth little each.
            shrink = np.full(columns.shape[1], float(x.shape[1]))
            shrink[: known.shape[1]], shrink[0] = known.shape[1], 1e-6
            weights = fit_logistic(columns[~held], right[~held], shrink)
            into[held] = columns[held] @ weights

    def gain(kept: np.ndarray) -> float:
        return area_under_curve(after[kept], right[kept]) - area_under_curve(
            before[kept], right[kept]
        )

    everyone = np.ones(len(right), bool)
    without = [gain(groups != group) for group in {*groups}]
    half = margin(*jackknife_error([value for value in without if np.isfinite(value)]))
    found = gain(everyone)
    return {
        "confounders": area_under_curve(before, right),
        "with_geometry": area_under_curve(after, right),
        "gain": found,
        "low": found - half,
        "high": found + half,
    }


def fit_logistic(
    columns: Float[np.ndarray, "n c"],
    right: Float[np.ndarray, " n"],
    shrink: Float[np.ndarray, " c"],
) -> Float[np.ndarray, " c"]:
    """Weights of a ridge logistic regression by Newton steps.

    The penalty is half of each squared weight times its `shrink`.
    """
    weights = np.zeros(columns.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-np.clip(columns @ weights, -30, 30)))
        slope = columns.T @ (right - chance) - shrink * weights
        curve = (columns * (chance * (1 - chance))[:, None]).T @ columns + np.diag(shrink)
        step = np.linalg.solve(curve, slope)
        weights = weights + step
        if float(np.abs(step).max()) < 1e-8:
            break
    return weights
