"""`mm-lens data show`: the first samples of a data set, as a model will see them."""

# torch and transformers are imported inside the command, and only where a model is asked for.
from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import typer

from mm_lens.cli.data import options
from mm_lens.cli.models import load_model, silence_libraries
from mm_lens.data.samples import Sample
from mm_lens.errors import show_safely

app = typer.Typer(rich_markup_mode=None, help="Look at data before a model does.")


@app.callback()
def _group() -> None: ...


@app.command(name="show")
def show_command(
    data: Annotated[str, typer.Argument(help="As --data of the other commands.")],
    model: Annotated[
        str | None,
        typer.Option(help="Hub id, directory or demo model: its prompt and tokens are shown too."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    save: Annotated[
        Path | None,
        typer.Option(
            help="A new or empty directory: write the pictures there as PNG; of samples about one "
            "picture, the first is shown."
        ),
    ] = None,
    split: options.Split = None,
    image_column: options.ImageColumn = "image",
    text_column: options.TextColumn = "text",
    answer_column: options.AnswerColumn = None,
    options_column: options.OptionsColumn = None,
    id_column: options.IdColumn = None,
    prompt: options.Prompt = None,
    question: options.Question = None,
    image_folder: options.ImageFolder = None,
    separator: options.Separator = None,
    fetch: options.Fetch = False,
    chat_template: Annotated[
        bool | None,
        typer.Option(
            "--chat-template/--no-chat-template",
            help="Apply the model's chat template.",
            show_default="unless they hold image placeholders",
        ),
    ] = None,
) -> None:
    """Print the first samples as a model will see them: prompt, pictures, tokens.

    Example: mm-lens data show questions.csv --text-column q --model demo/llava-next

    Pictures to try the other commands on: mm-lens data show easy-vqa --save pictures
    """
    if save is not None and save.exists() and not (save.is_dir() and not any(save.iterdir())):
        raise typer.BadParameter(
            f"{save} exists already. Name a directory that is new or empty.", param_hint="'--save'"
        )
    from mm_lens.data import datasets

    which = options.read(locals())
    found = datasets.load(data, split, **which)
    typer.echo(show_safely(repr(found)))
    bridge = None
    if model is not None:
        with silence_libraries():
            bridge = load_model(model, dtype=None, device_map=None, device="cpu", check=False)
    shown: set[bytes] = set()
    for i in range(len(found)):
        sample = found[i]
        # To try commands on, pictures that differ: data sets often ask much about one.
        pixels = b"".join(image.tobytes() for image in sample.images)
        key = blake2b(pixels).digest() if save is not None and pixels else str(i).encode()
        if key in shown:
            continue
        shown.add(key)
        typer.echo("")
        for line in describe(sample, bridge, chat_template):
            typer.echo(show_safely(line))
        for path in save_pictures(sample, save) if save is not None else ():
            typer.echo(show_safely(f"wrote   {path}"))
        if len(shown) == samples:
            break


def describe(sample: Sample, model: Any = None, chat_template: bool | None = None) -> list[str]:
    """A sample in a few lines; with a model, its prompt and how many tokens that makes."""
    sizes = ", ".join(f"{image.width}×{image.height}" for image in sample.images) or "none"
    lines = [f"id      {sample.id}", f"images  {sizes}"]
    if model is None:
        lines += _block("text", sample.text)
    else:
        inputs = model.prepare(sample.text, sample.image, chat_template=chat_template)
        lines += _block("prompt", inputs.text[0])
        counts = {name: int(inputs.layout.counts(name)[0]) for name in ("visual", "text")}
        lines.append(f"tokens  {counts['visual']} visual, {counts['text']} text")
    if sample.options:
        lines += _block("options", " | ".join(sample.options))
    if sample.answer is not None:
        lines += _block("answer", sample.answer)
    rest = [name for name in sample.about if name != "question"]
    return [*lines, f"columns {', '.join(rest)}"] if rest else lines


def save_pictures(sample: Sample, folder: Path) -> list[Path]:
    """Write a sample's pictures as PNG files named after its id; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "-", sample.id).strip("-.") or "sample"
    paths = []
    for number, image in enumerate(sample.images):
        paths.append(folder / (f"{name}.png" if number == 0 else f"{name}-{number}.png"))
        image.save(paths[-1])
    return paths


def _block(name: str, text: str) -> list[str]:
    """A text of several lines, its name beside the first."""
    first, *rest = text.split("\n")
    return [f"{name:<7} {first}", *(f"        {line}" for line in rest)]
