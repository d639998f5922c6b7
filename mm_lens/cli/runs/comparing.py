"""`mm-lens compare`: runs side by side."""

# pandas and the pictures are imported inside the command: `--help` is instant.
from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

import mm_lens
from mm_lens._storage.files import whole_directory
from mm_lens.cli import options


def compare_command(
    profiles: Annotated[
        list[Path], typer.Argument(help="Two or more directories that mm-lens profile wrote.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for tables, pictures and a page.")],
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names to show, with commas, in the order of the profiles.",
            show_default="the models' own",
        ),
    ] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Profiles of different data: do not pair samples.")
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress bars and no table, only errors.")
    ] = False,
) -> None:
    """Put models side by side: differences, the findings of the paper, pictures and an HTML page.

    Example: mm-lens compare runs/one runs/other --out runs/compare
    """
    from tqdm import tqdm

    from mm_lens.comparing.comparison import COMPARISON_FILE

    named = None if labels is None else [label.strip() for label in labels.split(",")]
    with whole_directory(out, COMPARISON_FILE, overwrite) as new:
        comparison = mm_lens.compare(*profiles, labels=named, paired=not unpaired)
        from mm_lens.drawing import comparison as drawing

        comparison.write(new)
        for _ in tqdm(
            drawing.write(comparison, new),
            total=len(drawing.metrics(comparison)) + 2,
            desc="pictures",
            unit="file",
            disable=quiet or as_json,
        ):
            pass
        written = sorted(path.name for path in new.iterdir())
    if as_json:
        findings = json.loads(comparison.findings.to_json(orient="records"))
        print(json.dumps({"out": str(out), "files": written, "findings": findings}))
    elif not quiet:
        print(f"\n{comparison}")
        tables = [name for name in written if not name.endswith(".png")]
        print(
            f"Wrote {', '.join(tables)} and {len(written) - len(tables)} pictures (.png) to {out}"
        )
