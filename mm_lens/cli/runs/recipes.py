"""`mm-lens recipe`: findings of others, tested on a model."""

# torch and transformers are imported inside the commands: `--help` is instant.
from __future__ import annotations

import json
from typing import Annotated

import typer

from mm_lens.cli import options
from mm_lens.cli.data import options as data_options
from mm_lens.cli.models import load_model, silence_libraries

app = typer.Typer(rich_markup_mode=None, help="Findings of others, tested on a model.")


@app.command(name="list")
def list_command(as_json: options.AsJson = False) -> None:
    """List recipes: paper, claim, and the statistic that decides.

    Example: mm-lens recipe list
    """
    from mm_lens import recipes

    rows = recipes.table().to_dict("records")
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        print(f"{row['name']}: {row['claim']}\n  {row['paper']}")


@app.command(name="run")
def run_command(
    name: Annotated[str, typer.Argument(help="Name of a recipe: mm-lens recipe list.")],
    model: options.Model = "demo/llava-next",
    data: data_options.Data = "easy-vqa",
    limit: Annotated[int, typer.Option(min=1, help="Questions that are asked.")] = 50,
    seed: Annotated[int, options.make_seed("Of the questions and all chance.")] = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    no_check: options.NoCheck = False,
    as_json: options.AsJson = False,
) -> None:
    """Test a finding: claim, measured statistic with its interval, and verdict.

    Example: mm-lens recipe run object-ablation --limit 20
    """
    options.check_model(model)
    options.check_device(device)
    from mm_lens import recipes
    from mm_lens.data import datasets
    from mm_lens.recipes.catalogue import check_recipe

    check_recipe(name)
    chosen = datasets.load(data, None, 20 * limit, seed)  # not all are asked about
    with silence_libraries():
        loaded = load_model(
            model, device=device, device_map=device_map, dtype=dtype, check=not no_check
        )
        found = recipes.run(name, loaded, chosen, limit=limit, seed=seed)
    if as_json:
        measured = found.measured
        told = {
            **dict(found.lines),
            "name": name,
            "value": measured.value,
            "low": measured.low,
            "high": measured.high,
            "n_questions": found.n_questions,
            "n_pictures": found.n_pictures,
            "table": measured.table.to_dict("records"),
        }
        print(json.dumps(told, ensure_ascii=False))
    else:
        print(repr(found))
