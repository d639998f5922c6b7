"""`mm-lens index`: states of words in texts, to be searched by LatentLens."""

# torch and transformers are imported inside the command: `--help` is instant.
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mm_lens.cli import options
from mm_lens.cli.models import load_model, silence_libraries


def index_command(
    texts: Annotated[Path, typer.Argument(help="File with a text in each line.")],
    model: options.Model,
    out: Annotated[Path, typer.Option(help="File to write (.safetensors).")],
    layers: options.Layers = None,
    most_per_word: Annotated[
        int, typer.Option(min=1, help="Occurrences of a word that are kept.")
    ] = 20,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    no_check: options.NoCheck = False,
) -> None:
    """Build the index of texts that mm_lens.looking.latent_lens searches.

    Example: mm-lens index sentences.txt --model demo/llava-next --out index.safetensors
    """
    if not texts.is_file():
        raise typer.BadParameter(f"{texts} is no file: give one with a text in each line.")
    if out.exists() and not (overwrite and out.is_file()):
        raise typer.BadParameter(
            f"{out} exists already. Name another file, or add --overwrite.", param_hint="'--out'"
        )
    numbers = options.read_layers(layers)
    options.check_model(model)
    options.check_device(device)
    lines = [line.strip() for line in texts.read_text("utf-8").splitlines() if line.strip()]
    with silence_libraries():
        loaded = load_model(
            model, device=device, device_map=device_map, dtype=dtype, check=not no_check
        )
        from mm_lens.looking import build_text_index

        index = build_text_index(
            loaded, lines, layers=numbers, most_per_word=most_per_word, progress=True
        )
        index.save(out)
    print(f"{out}: {len(index.contexts)} words of {len(lines)} texts at {len(index.layers)} layers")
