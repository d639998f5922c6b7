"""`mm-lens check`: what holds of a checkpoint on this machine."""

# torch and transformers are imported inside the command: `--help` is instant.
from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from mm_lens.cli import options
from mm_lens.cli.models import load_model, silence_libraries


def check_command(
    model: Annotated[str, typer.Argument(help="Hub id, local directory, or a demo model.")],
    only: Annotated[
        str, typer.Option(help="Names of checks, with commas.", show_default="all")
    ] = "",
    sample: Annotated[bool, typer.Option("--sample", help="Fewer tokens and blocks.")] = False,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a checkpoint through the suite that its family passed, and print what holds.

    It is loaded twice, the second time without mm_lens: that is what it is compared with. Ends with
    1 if something fails that the family does not declare.

    Example: mm-lens check demo/llava-next --sample
    """
    options.check_model(model)
    from mm_lens.check import run_suite

    with silence_libraries():
        bridge = load_model(model, dtype=dtype, device_map=None, check=False)
        wrapped: Any = bridge.original_model
        native = type(wrapped).from_pretrained(
            wrapped.name_or_path, dtype=wrapped.dtype, attn_implementation="sdpa"
        )
        native.to(wrapped.device).eval()
        names = [name.strip() for name in only.split(",") if name.strip()]
        table = run_suite(native, bridge, names, sample)
    if as_json:
        outcomes = [asdict(outcome) for outcome in table.outcomes]
        print(json.dumps({"model": table.model, "ok": table.ok, "checks": outcomes}))
    else:
        typer.echo(repr(table))
    if not table.ok:
        raise typer.Exit(1)
