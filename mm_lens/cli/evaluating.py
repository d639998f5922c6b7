"""`mm-lens evaluate`: how often a model answers right."""

# torch and transformers are imported inside the command: `--help` is instant.
from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

import mm_lens
from mm_lens import demo
from mm_lens._storage.files import check_ahead, whole_directory
from mm_lens.cli import failures, left_over, options
from mm_lens.cli.data import options as data_options
from mm_lens.cli.models import load_model, silence_libraries
from mm_lens.errors import MMLensError
from mm_lens.profiling import processes

CONDITIONS = ("given", "blanked", "removed")


def evaluate_command(
    model: options.Model,
    data: data_options.Data,
    out: Annotated[Path, typer.Option(help="Directory for answers, accuracies and provenance.")],
    protocol: Annotated[
        Literal["exact", "llava", "lmms-eval", "letters", "options", "options-mean"],
        typer.Option(help="What is asked and what counts as right: docs/evaluating.md."),
    ] = "exact",
    conditions: Annotated[
        str,
        typer.Option(help="What becomes of images, with commas: given, blanked (grey), removed."),
    ] = "given,blanked",
    by: Annotated[
        str | None,
        typer.Option(
            help="Columns to divide by, with commas.",
            show_default="subject and grade of scienceqa, kind of easy-vqa and scenes",
        ),
    ] = None,
    choices: Annotated[
        str | None,
        typer.Option(
            "--options",
            help="Answers to choose from, with commas, for samples that have none of their own.",
            show_default="the answers in the data, where the protocol needs some",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most samples, drawn at random with the seed.", show_default="all"
        ),
    ] = None,
    seed: Annotated[int, options.make_seed("Of the samples.")] = 0,
    split: data_options.Split = None,
    image_column: data_options.ImageColumn = "image",
    text_column: data_options.TextColumn = "text",
    answer_column: data_options.AnswerColumn = None,
    options_column: data_options.OptionsColumn = None,
    id_column: data_options.IdColumn = None,
    prompt: data_options.Prompt = None,
    question: data_options.Question = None,
    image_folder: data_options.ImageFolder = None,
    separator: data_options.Separator = None,
    fetch: data_options.Fetch = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples per forward pass: memory against speed.")
    ] = 16,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens to write.", show_default="the protocol's"),
    ] = None,
    attention: options.Attention = "sdpa",
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="A sample that cannot be read ends the run, or is left out and listed."),
    ] = "raise",
    chat_template: options.ChatTemplate = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever a killed run has left.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier scores at --out.")
    ] = False,
    no_check: options.NoCheck = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress bar and no table, only errors.")
    ] = False,
) -> None:
    """Ask a model every question, and count what it answers right.

    The same command goes on where a killed one stopped.

    Example: mm-lens evaluate --model demo/llava-next --data easy-vqa --out runs/easy-vqa
    """
    from mm_lens.cli.hook_options import split_names
    from mm_lens.data import datasets

    asked = split_names(conditions, CONDITIONS, "--conditions")
    which = data_options.read(locals())
    mark = "provenance.json"
    if processes.is_started_alone():
        raise MMLensError(
            "accelerate started one process where several were asked for. "
            "On CPUs: accelerate launch --multi_gpu --num_processes N, or torchrun."
        )
    run_dir = Path(f"{os.path.abspath(out)}.partial")
    if not restart and left_over.finish(run_dir, out, quiet):
        return
    check_ahead(out, mark, overwrite)
    if model.startswith("demo/"):
        demo.path(model)
    chosen = datasets.load(data, split, samples, seed, **which)
    from mm_lens.evaluating.run import check_request
    from mm_lens.profiling import run_directory

    groups = None if by is None else _split(by)
    answers = None if choices is None else _split(choices)
    if on_error == "raise":  # else the first sample may be one that is left out
        check_request(chosen, protocol, groups, answers)
    crew = processes.Processes()
    quiet = quiet or not crew.main
    if not quiet:
        print(f"Loading {model} …", file=sys.stderr)
    with silence_libraries(speak=crew.main), failures.note_kept(run_dir):
        loaded = load_model(
            model,
            attention=attention,
            device=device,
            device_map=device_map,
            dtype=dtype,
            check=not no_check,
        )
        scores = mm_lens.evaluate(
            loaded,
            chosen,
            protocol=protocol,
            conditions=asked,  # type: ignore[arg-type]
            by=groups,
            options=answers,
            batch_size=batch_size,
            max_tokens=max_tokens,
            progress=not quiet,
            on_error=on_error,
            data_name=f"{data}/{chosen.split}" if chosen.split else data,
            run_dir=run_dir,
            restart=restart,
            chat_template=chat_template,
        )
        if crew.main:
            about = {"command": left_over.command(), **scores.provenance}
            with whole_directory(out, mark, overwrite) as new:
                replace(scores, provenance=about).write(new)
                run_directory.note_written(run_dir, new / mark)
        crew.finish()
    if not crew.main:
        return
    run_directory.remove_run(run_dir)
    if not quiet:
        print(f"\n{scores}\nEvery answer: {out}/answers.parquet")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
