"""Verdicts, and what is printed."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from mm_lens.recipes import RECIPES, Result
from mm_lens.recipes.recipe import Measured


@pytest.mark.parametrize(
    ("low", "high", "above", "verdict"),
    [
        (0.1, 0.2, True, "holds"),
        (-0.2, -0.1, True, "does not hold"),
        (-0.1, 0.1, True, "cannot be told"),
        (-0.2, -0.1, False, "holds"),
        (0.1, 0.2, False, "does not hold"),
        (math.nan, math.nan, True, "cannot be told"),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, above, verdict):
    names = {True: "object-ablation", False: "modality-gap"}
    recipe = RECIPES[names[above]]
    assert (recipe.threshold, recipe.above) == (0, above)
    measured = Measured(0.5, low, high, pd.DataFrame(), "so it is")
    result = Result(recipe, "mine", measured, 3, 2)
    assert result.verdict == verdict
    shown = repr(result)
    for part in (recipe.claim, recipe.paper, verdict, "so it is", "3 questions, 2 pictures"):
        assert part in shown
        assert part in result._repr_html_()
