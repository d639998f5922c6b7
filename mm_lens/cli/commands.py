"""The command line. Same words as in Python.

Progress goes to stderr, results to stdout. Every failure that a user can cause is one line on
stderr and an exit code: 2 for a wrong command line, 130 for Ctrl-C, 1 for the rest.
"""

# torch, transformers and the pictures are imported inside the commands: `--help` is instant.
from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

import mm_lens
from mm_lens._storage.files import check_ahead, whole_directory
from mm_lens.cli import (
    checking,
    evaluating,
    failures,
    hook_options,
    left_over,
    listing,
    options,
    relating,
)
from mm_lens.cli.data import options as data_options
from mm_lens.cli.data import show
from mm_lens.cli.models import load_model, silence_libraries
from mm_lens.cli.runs import comparing, configs, opening, recipes
from mm_lens.cli.samples import asking, exploring, indexing, intervening, looking
from mm_lens.cli.stopping import Stopped, heed_sigterm
from mm_lens.errors import MMLensError
from mm_lens.plugins import plugin_names
from mm_lens.profiling import processes

if TYPE_CHECKING:
    from mm_lens.profiling.result import Profile

CSV_FILE = "profile.csv"
"""The table once more, for whom parquet is no file."""

app = typer.Typer(
    rich_markup_mode=None,  # frames around the options take as long to import as the rest
    help=options.ABOUT,
    epilog="Ends with 0; with 1 where something fails, 2 where the command line is wrong, 130 "
    "after Ctrl-C, 143 after SIGTERM. With --json, results are JSON on stdout.",
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code. The one place where errors become a line."""
    for stream in (sys.stdout, sys.stderr):  # names of files may be no text that can be encoded
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    own, problem = True, ""
    with failures.warnings_in_lines(), heed_sigterm() as heard:
        try:
            try:
                code = int(app(list(arguments), prog_name="mm-lens", standalone_mode=False) or 0)
            finally:
                heard.set()  # what follows takes no time, and is to be said
            problem = failures.INTERRUPTED if code == 130 else ""
        except BaseException as error:
            explained = failures.explain(error)
            if explained is None:
                raise
            code, problem = explained
            own = not isinstance(error, processes.AnotherEndedError | Stopped)
        if problem and processes.is_to_say_why(own):
            print(f"mm-lens: {problem}", file=sys.stderr)
    return code


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"mm-lens {version('mm-lens')}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


@app.command(name="profile")
def profile_command(
    model: options.Model,
    data: data_options.Data,
    out: Annotated[Path, typer.Option(help="Directory for table, provenance and pictures.")],
    samples: Annotated[
        int, typer.Option(min=1, help="Most samples, drawn at random with the seed.")
    ] = 500,
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
    seed: Annotated[
        int, typer.Option(help="Of the samples, the tokens and all chance in the metrics.")
    ] = 0,
    streams: Annotated[
        str,
        typer.Option(help="residual, main (without skip connections), or both, with a comma."),
    ] = "residual,main",
    presets: Annotated[
        str,
        typer.Option(
            help="honest, paper (the paper's own definitions), between (the modalities), lens "
            "(what states are read as); with commas."
        ),
    ] = "honest,paper",
    metrics: hook_options.Metrics = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens per modality.",
            show_default="12 per dimension, at least 2048; for the paper's own definitions 8192",
        ),
    ] = None,
    hooks: hook_options.Hooks = "states",
    pairs: hook_options.Pairs = None,
    heads: hook_options.Heads = None,
    budget: hook_options.Budget = None,
    memory: hook_options.Memory = None,
    per_sample: hook_options.PerSample = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples per forward pass: memory against speed.")
    ] = 16,
    attention: options.Attention = "sdpa",
    device: options.Device = None,
    dtype: options.Dtype = None,
    device_map: options.DeviceMap = None,
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="A sample that cannot be read ends the run, or is left out and listed."),
    ] = "raise",
    chat_template: options.ChatTemplate = None,
    states: Annotated[
        str | None,
        typer.Option(
            help="Directory for the states and for what a killed run is resumed from; or ram: "
            "states in memory, nothing to resume from.",
            show_default="OUT.partial",
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew, whatever a killed run has left.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier profile at --out.")
    ] = False,
    no_check: options.NoCheck = False,
    as_json: options.AsJson = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress bars and no table, only errors.")
    ] = False,
) -> None:
    """Measure visual and text tokens layer by layer: table, pictures and an HTML page.

    Example: mm-lens profile --model demo/llava-next --data easy-vqa --out runs/llava-next
    """
    given = dict(locals())
    read_names = hook_options.split_names
    flows = read_names(streams, ("residual", "main"), "--streams")
    sets = read_names(presets, ("honest", "paper", "between", "lens"), "--presets")
    from mm_lens.data import datasets
    from mm_lens.profiling.result import PROVENANCE_FILE

    if processes.is_started_alone():
        raise MMLensError(
            "accelerate started one process where several were asked for. "
            "On CPUs: accelerate launch --multi_gpu --num_processes N, or torchrun."
        )
    which = hook_options.read(hooks, pairs, heads)
    run_dir = Path(states or f"{os.path.abspath(out)}.partial") if states != "ram" else None
    if run_dir is not None and not restart and left_over.finish(run_dir, out, quiet):
        return
    # What can be wrong is looked at before anything slow begins.
    check_ahead(out, PROVENANCE_FILE, overwrite)
    if run_dir is not None and Path(os.path.abspath(run_dir)).is_relative_to(os.path.abspath(out)):
        raise typer.BadParameter(
            f"--states {run_dir} lies in --out, which is written as a whole at the end. Name a "
            "directory beside it."
        )
    options.check_model(model)
    options.check_device(device)
    columns = data_options.read(locals())
    chosen = datasets.load(data, split, samples, seed, **columns)
    asked = hook_options.read_metrics(metrics)
    from mm_lens.profiling import run_directory

    crew = processes.Processes()
    quiet = quiet or not crew.main
    bars = not (quiet or as_json)
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
        result = mm_lens.profile(
            loaded,
            chosen,
            streams=flows,  # type: ignore[arg-type]
            presets=sets,
            metrics=asked,
            **which,
            budget=budget,
            memory=memory,
            per_sample=per_sample,
            tokens=tokens,
            batch_size=batch_size,
            seed=seed,
            progress=bars,
            on_error=on_error,
            data_name=f"{data}/{chosen.split}" if chosen.split else data,
            run_dir=run_dir,
            restart=restart,
            chat_template=chat_template,
        )
        if crew.main:
            about = {"command": left_over.command(), **result.provenance}
            result = replace(result, provenance=about)
            with whole_directory(out, PROVENANCE_FILE, overwrite) as new:
                files = [
                    *_draw_sample(loaded, chosen, new),
                    *_write(result, new, bars),
                    configs.write_config(_find("profile"), given, new),
                ]
                if run_dir is not None:
                    run_directory.note_written(run_dir, new / PROVENANCE_FILE)
        crew.finish()
    if not crew.main:
        return
    if run_dir is not None:
        run_directory.remove_run(run_dir)
    from mm_lens.cli import summary

    if as_json:
        summary.show_json(result, out, files)
    elif not quiet:
        summary.show(result, out, files)


app.command(name="ask")(asking.ask_command)
app.command(name="generate")(asking.generate_command)
app.command(name="layout")(asking.layout_command)
app.command(name="lens")(looking.lens_command)
app.command(name="index")(indexing.index_command)
app.command(name="attention")(looking.attention_command)
app.command(name="explore")(exploring.explore_command)
app.command(name="patch")(intervening.patch_command)
app.command(name="knockout")(intervening.knockout_command)
app.command(name="check")(checking.check_command)
app.command(name="evaluate")(evaluating.evaluate_command)
app.command(name="relate")(relating.relate_command)
app.add_typer(show.app, name="data")
app.add_typer(recipes.app, name="recipe")
app.command(name="list")(listing.list_command)
app.command(name="open")(opening.open_command)


@app.command(name="run", context_settings={"ignore_unknown_options": True})
def run_command(
    config: Annotated[Path, typer.Argument(help="File with a command and its options.")],
    overruling: Annotated[
        list[str] | None, typer.Argument(help="Options that overrule those of the file.")
    ] = None,
) -> None:
    """Run a command whose options are in a file.

    Example: mm-lens run runs/llava-next/config.yaml --out runs/again
    """
    group: Any = typer.main.get_command(app)
    arguments = [*configs.read_config(config, group.commands), *(overruling or ())]
    if code := group.main(arguments, prog_name="mm-lens", standalone_mode=False):
        raise typer.Exit(code)


@app.command(name="convert")
def convert_command(
    format: Annotated[str, typer.Argument(help="Layout of the source, as its package names it.")],
    source: Annotated[Path, typer.Argument(help="Directory in that layout.")],
    out: Annotated[Path, typer.Argument(help="Directory to write.")],
    vision_tower: Annotated[
        str | None,
        typer.Option(
            help="Hub id or directory of the vision tower, where the layout does not hold it.",
            show_default="the published one",
        ),
    ] = None,
    dtype: options.Dtype = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier conversion at OUT.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, only errors.")] = False,
) -> None:
    """Convert published files to a directory that transformers and --model can load.

    No pickle is executed. Run the same command again to continue an interrupted conversion.

    Example: mm-lens convert FORMAT downloads/model converted/model
    """
    if format not in (known := plugin_names("mm_lens.formats")):
        raise typer.BadParameter(f"No format is called {format!r}. Known: {', '.join(known)}.")
    if not source.is_dir():
        raise MMLensError(f"{source} is not a directory. Give that of the published files.")
    import torch

    try:
        with silence_libraries():
            mm_lens.convert(
                format,
                source,
                out,
                vision_tower=vision_tower,
                dtype=getattr(torch, dtype) if dtype else None,
                overwrite=overwrite,
                progress=not quiet,
            )
    except KeyboardInterrupt as error:
        raise failures.Interrupted(
            f"Interrupted: {out} was not written. The same command resumes behind the last file "
            "that was finished."
        ) from error
    if not quiet:
        print(f"Converted to {out}")


app.command(name="compare")(comparing.compare_command)


def _find(name: str) -> Any:
    """A command with its parameters."""
    group: Any = typer.main.get_command(app)
    return group.commands[name]


def _draw_sample(model: Any, data: Any, directory: Path) -> list[str]:
    """The first sample with a picture, with its tokens, for the report; returns the file's name."""
    from mm_lens.drawing import draw_layout, report

    for i in range(min(8, len(data))):
        try:
            sample = data[i]
            if sample.image is None:
                continue
            figure = draw_layout(model.prepare(sample.text, sample.image))
            figure.savefig(directory / report.SAMPLE_FILE)
        except MMLensError:  # no places in the picture, or none that can be read: told elsewhere
            continue
        return [report.SAMPLE_FILE]
    return []


def _write(result: Profile, directory: Path, progress: bool) -> list[str]:
    """Everything into a directory; returns the names of the files."""
    from tqdm import tqdm

    from mm_lens.drawing import components, curves, report

    written = result.write(directory)
    result.table.to_csv(directory / CSV_FILE, index=False)
    pictures = tqdm(
        report.write(result, directory),
        total=len(curves.metrics(result)) + 2 + components.count(result),
        desc="pictures",
        unit="file",
        disable=not progress,
    )
    return [*written, CSV_FILE, *(path.name for path in pictures)]
