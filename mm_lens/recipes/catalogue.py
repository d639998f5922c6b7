"""All recipes, and how one is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mm_lens.arguments import require_whole, suggest
from mm_lens.data.samples import Samples
from mm_lens.errors import InputError
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.recipes import flow, gap, looks, objects, tasks, tracing
from mm_lens.recipes.questions import ask
from mm_lens.recipes.recipe import Recipe, Result

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for module in (objects, flow, tracing, tasks, gap, looks)
    for recipe in module.RECIPES
}


def table() -> pd.DataFrame:
    """A row for each recipe: name, paper, claim, statistic, published, miniature."""
    columns = ("name", "paper", "claim", "statistic", "published", "miniature")
    return pd.DataFrame([{c: getattr(r, c) for c in columns} for r in RECIPES.values()])


def check_recipe(name: str) -> None:
    """Refuse a name of no recipe.

    Raises:
        InputError: naming those there are.
    """
    if name not in RECIPES:
        raise InputError(
            f"No recipe is called {name!r}. There are: {', '.join(RECIPES)}."
            f"{suggest(name, RECIPES)}"
        )


def run(
    name: str,
    model: VisionLanguageBridge,
    samples: Samples,
    *,
    limit: int | None = 50,
    seed: int = 0,
) -> Result:
    """Test somebody's finding on a model.

    ```python
    mm_lens.recipes.run("object-ablation", model, mm_lens.datasets.load("easy-vqa"), limit=20)
    ```

    Args:
        name: of the recipe, see `table`.
        model: in evaluation mode.
        samples: questions with one image and an answer, as `mm_lens.datasets.load` returns them;
            with a column `box` where the thing lies. Three options or more, or answers of a kind.
        limit: questions that are asked, the first ones; None asks all.
        seed: of all chance.

    Raises:
        InputError: there is no such recipe; no such question; the thing is not to be found.
    """
    check_recipe(name)
    if limit is not None:
        require_whole("limit", limit, 1)
    if model.training:
        raise InputError("The model is in training mode; call model.eval() first.")
    asked = ask(model, samples, limit)
    measured = RECIPES[name].measure(model, asked, seed)
    cfg: Any = model.cfg
    called = str(getattr(model.original_model, "name_or_path", "") or cfg.model_name)
    if Path(called).is_dir():
        called = Path(called).name
    pictures = len({question.picture for question in asked})
    return Result(RECIPES[name], called, measured, len(asked), pictures)
