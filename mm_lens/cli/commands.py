"""The command line: `profile`, `evaluate`, `data show`, `compare`, … Same words as in Python.

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
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

import mm_lens
from mm_lens import demo
from mm_lens._storage.files import check_ahead, whole_directory
from mm_lens.cli import checking, evaluating, failures, hook_options, left_over, relating
from mm_lens.cli.data import options, show
from mm_lens.cli.models import load_model, silence_libraries
from mm_lens.cli.stopping import Stopped, heed_sigterm
from mm_lens.errors import MMLensError
from mm_lens.plugins import plugin_names
from mm_lens.profiling import processes

if TYPE_CHECKING:
    from mm_lens.profiling.result import Profile

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,  # frames around the options take as long to import as the rest
    help="TransformerLens for vision-language models.",
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
    with heed_sigterm() as heard:
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
    model: Annotated[
        str,
        typer.Option(help="Hub id, local directory, or a demo model, e.g. demo/llava-next."),
    ],
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Directory for table, provenance and pictures.")],
    samples: Annotated[
        int, typer.Option(min=1, help="Most samples, drawn at random with the seed.")
    ] = 500,
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
    seed: Annotated[
        int, typer.Option(help="Of the samples, the tokens and all chance in the metrics.")
    ] = 0,
    streams: Annotated[
        str,
        typer.Option(help="residual, main (without skip connections), or both, with a comma."),
    ] = "residual,main",
    presets: Annotated[
        str,
        typer.Option(help="honest, paper (the paper's own definitions), or both, with a comma."),
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
    per_sample: hook_options.PerSample = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Samples per forward pass: memory against speed.")
    ] = 16,
    attention: Annotated[
        Literal["sdpa", "eager"], typer.Option(help="Attention implementation; sdpa is faster.")
    ] = "sdpa",
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, …", show_default="the GPU if there is one"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights.", show_default="as stored"),
    ] = None,
    device_map: Annotated[
        str | None,
        typer.Option(help="auto: spread a model over GPUs that is too large for one."),
    ] = None,
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="A sample that cannot be read ends the run, or is left out and listed."),
    ] = "raise",
    chat_template: Annotated[
        bool | None,
        typer.Option(
            "--chat-template/--no-chat-template",
            help="Apply the model's chat template to the questions.",
            show_default="unless they hold image placeholders",
        ),
    ] = None,
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
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Skip the check of the loaded model.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress bars and no table, only errors.")
    ] = False,
) -> None:
    """Measure visual and text tokens layer by layer: table, pictures and an HTML page.

    Example: mm-lens profile --model demo/llava-next --data easy-vqa --out runs/llava-next
    """
    read_names = hook_options.split_names
    flows = read_names(streams, ("residual", "main"))
    sets = read_names(presets, ("honest", "paper"))
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
    if model.startswith("demo/"):
        demo.path(model)
    columns = options.read(locals())
    chosen = datasets.load(data, split, samples, seed, **columns)
    asked = hook_options.split_names(metrics, hook_options.known_metrics()) if metrics else None
    from mm_lens.profiling import run_directory

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
        result = mm_lens.profile(
            loaded,
            chosen,
            streams=flows,  # type: ignore[arg-type]
            presets=sets,
            metrics=asked,
            **which,
            budget=budget,
            per_sample=per_sample,
            tokens=tokens,
            batch_size=batch_size,
            seed=seed,
            progress=not quiet,
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
                files = _write(result, new, progress=not quiet)
                if run_dir is not None:
                    run_directory.note_written(run_dir, new / PROVENANCE_FILE)
        crew.finish()
    if not crew.main:
        return
    if run_dir is not None:
        run_directory.remove_run(run_dir)
    if not quiet:
        from mm_lens.cli import summary

        summary.show(result, out, files)


app.command(name="check")(checking.check_command)
app.command(name="evaluate")(evaluating.evaluate_command)
app.command(name="relate")(relating.relate_command)
app.add_typer(show.app, name="data")


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
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the weights.", show_default="as stored"),
    ] = None,
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


@app.command(name="compare")
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
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier comparison at --out.")
    ] = False,
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
            disable=quiet,
        ):
            pass
        written = sorted(path.name for path in new.iterdir())
    if not quiet:
        print(f"\n{comparison}")
        tables = [name for name in written if not name.endswith(".png")]
        print(
            f"Wrote {', '.join(tables)} and {len(written) - len(tables)} pictures (.png) to {out}"
        )


def _write(result: Profile, directory: Path, progress: bool) -> list[str]:
    """Everything into a directory; returns the names of the files."""
    from tqdm import tqdm

    from mm_lens.drawing import components, curves, report
    from mm_lens.profiling.result import PROVENANCE_FILE, TABLE_FILE

    result.write(directory)
    pictures = tqdm(
        report.write(result, directory),
        total=len(curves.metrics(result)) + 2 + components.count(result),
        desc="pictures",
        unit="file",
        disable=not progress,
    )
    names = [path.name for path in pictures]
    return [PROVENANCE_FILE, TABLE_FILE, *names]
