"""What a recipe is, and what it gives.

The statistic, its threshold and the direction are part of the recipe, written down before a model
is seen. The verdict follows from the interval over pictures alone: it *holds* where the whole
interval is on the side that the claim says, *does not hold* where it is on the other, and else
*cannot be told*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import pandas as pd
import torch

from mm_lens._notebook import make_table
from mm_lens.looking.sampling import mean_of_pictures
from mm_lens.recipes.questions import Asked

Verdict: TypeAlias = Literal["holds", "does not hold", "cannot be told"]
Measure: TypeAlias = "Callable[[Any, Sequence[Asked], int], Measured]"
"""From model, questions and seed."""


@dataclass(frozen=True)
class Measured:
    """What a recipe measured.

    Attributes:
        value: the statistic.
        low: lower end of its 95 % interval over pictures.
        high: upper end.
        table: what it is made of.
        note: why it cannot be told, or what else is to be known.
    """

    value: float
    low: float
    high: float
    table: pd.DataFrame
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """Somebody's finding, and how it is tested here.

    Attributes:
        name: of the command.
        paper: title, and arXiv number.
        claim: in the paper's sense.
        statistic: what is measured.
        threshold: of the verdict.
        above: whether the claim is that the statistic is above it.
        published: the paper's models, and its figure where there is one of the like.
        miniature: what a small model can confirm, and what not.
        measure: does it.
        model: of the paper, on the hub.
    """

    name: str
    paper: str
    claim: str
    statistic: str
    threshold: float
    above: bool
    published: str
    miniature: str
    measure: Measure = field(repr=False)
    model: str = "llava-hf/llava-1.5-7b-hf"

    def judge(self, low: float, high: float) -> Verdict:
        """The verdict of an interval."""
        if math.isnan(low) or math.isnan(high):
            return "cannot be told"
        if low > self.threshold:
            return "holds" if self.above else "does not hold"
        if high < self.threshold:
            return "does not hold" if self.above else "holds"
        return "cannot be told"


@dataclass(frozen=True, eq=False)
class Result:
    """What came out.

    Attributes:
        recipe: which.
        model: name of the model.
        measured: the statistic with its interval, and what it is made of.
        n_questions: that were asked.
        n_pictures: that they are about.
    """

    recipe: Recipe
    model: str
    measured: Measured = field(repr=False)
    n_questions: int
    n_pictures: int

    @property
    def verdict(self) -> Verdict:
        """Of the interval."""
        return self.recipe.judge(self.measured.low, self.measured.high)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """All of it, as words beside each other."""
        found, recipe = self.measured, self.recipe
        side = "above" if recipe.above else "below"
        lines = [
            ("paper", recipe.paper),
            ("claim", recipe.claim),
            ("statistic", f"{recipe.statistic}; claimed: {side} {recipe.threshold:g}"),
            ("model", f"{self.model}, {self.n_questions} questions, {self.n_pictures} pictures"),
            ("measured", f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"),
            ("verdict", self.verdict),
            ("published", recipe.published),
            ("miniature", recipe.miniature),
            ("again", f"mm-lens recipe run {recipe.name} --model {recipe.model} --data DATA"),
        ]
        return [*lines, ("note", found.note)] if found.note else lines

    def __repr__(self) -> str:
        return "\n".join(
            [f"{self.recipe.name}", *(f"  {name + ':':11}{text}" for name, text in self.lines)]
        )

    def _repr_html_(self) -> str:
        """As a table."""
        return make_table(["recipe", self.recipe.name], self.lines)


def summarise(
    values: Sequence[float], asked: Sequence[Asked], table: pd.DataFrame, seed: int, note: str = ""
) -> Measured:
    """The mean over pictures of a value of each question, with its interval."""
    pictures = torch.tensor([question.picture for question in asked])
    found = mean_of_pictures(torch.tensor(values, dtype=torch.float64), pictures, seed=seed)
    return Measured(*found, table, note)


def summarise_changes(
    values: Sequence[float], asked: Sequence[Asked], table: pd.DataFrame, seed: int, note: str = ""
) -> Measured:
    """The same of values from -1 to 1, of which all may be alike.

    Resampled, they stay alike: then the bounds are exact ones, of a share of which none was seen
    among so many pictures, and what was not seen is as far away as can be.
    """
    if len({*values}) > 1:
        return summarise(values, asked, table, seed, note)
    n = len({question.picture for question in asked})
    unseen = 1 - 0.025 ** (1 / n)
    value = float(values[0])
    low, high = value - (1 + value) * unseen, value + (1 - value) * unseen
    return Measured(value, low, high, table, note)
