"""`mm-lens check`: what holds of a checkpoint on this machine."""

# torch and transformers are imported inside the command: `--help` is instant.
from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from mm_lens.cli.models import load_model, silence_libraries


def check_command(
    model: Annotated[str, typer.Argument(help="Hub id, local directory, or a demo model.")],
    only: Annotated[
        str, typer.Option(help="Names of checks, with commas.", show_default="all")
    ] = "",
    sample: Annotated[bool, typer.Option("--sample", help="Fewer tokens and blocks.")] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights.", show_default="as stored"),
    ] = None,
) -> None:
    """Run a checkpoint through the suite that its family passed, and print what holds.

    It is loaded twice, the second time without mm_lens: that is what it is compared with. Ends with
    1 if something fails that the family does not declare.

    Example: mm-lens check demo/llava-next --sample
    """
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
    typer.echo(repr(table))
    if not table.ok:
        raise typer.Exit(1)
