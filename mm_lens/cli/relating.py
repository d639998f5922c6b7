"""`mm-lens relate`: whether the geometry of samples goes with right answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import mm_lens
from mm_lens._storage.files import whole_directory
from mm_lens._storage.sums import write_sums
from mm_lens.cli import options

MARK = "relation.json"


def relate_command(
    profile: Annotated[
        Path, typer.Argument(help="Directory that mm-lens profile --per-sample wrote.")
    ],
    scores: Annotated[Path, typer.Argument(help="Directory that mm-lens evaluate wrote.")],
    out: Annotated[Path, typer.Option(help="Directory for the table and what it says.")],
    over: Annotated[
        str, typer.Option(help="Columns of the answers to take out beforehand, with commas.")
    ] = "",
    condition: Annotated[str, typer.Option(help="Which answers.")] = "given",
    flips: Annotated[int, typer.Option(min=19, help="Random flips of signs.")] = 999,
    seed: Annotated[int, options.make_seed("Of the flips.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier one at --out.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No table, only errors.")] = False,
) -> None:
    """Ask whether the geometry of samples says if their answers are right: docs/relating.md.

    Example: mm-lens relate runs/llava-next runs/easy-vqa --over kind --out runs/related
    """
    names = [name.strip() for name in over.split(",") if name.strip()]
    with whole_directory(out, MARK, overwrite) as new:
        found = mm_lens.relate(
            mm_lens.Profile.load(profile),
            mm_lens.Scores.load(scores),
            over=names,
            condition=condition,
            flips=flips,
            seed=seed,
        )
        found.table.to_csv(new / "relation.csv", index=False)
        (new / "relation.parquet").write_bytes(found.table.to_parquet(index=False))
        about = {
            "verdict": found.verdict,
            "n": found.n,
            "n_images": found.n_images,
            "n_right": found.n_right,
            "together": dict(found.together),
            "options": {"over": names, "condition": condition, "flips": flips, "seed": seed},
        }
        (new / MARK).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
        write_sums(new, ["relation.csv", "relation.parquet", MARK])
    if not quiet:
        typer.echo(repr(found))
