"""The command line: `mm-lens profile`, `compare`, `convert`. Same words as the Python surface.

Progress goes to stderr, results to stdout. Every failure that a user can cause is one line on
stderr and an exit code: 2 for a wrong command line, 130 for Ctrl-C, 1 for the rest.
"""

# torch, transformers and the pictures are imported inside the commands: `--help` is instant.
from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

import mm_lens
from mm_lens.compare import COMPARISON_FILE
from mm_lens.errors import MMLensError, MMLensWarning
from mm_lens.files import whole_directory
from mm_lens.profile import PROVENANCE_FILE, TABLE_FILE, Profile

if TYPE_CHECKING:
    from mm_lens.bridge import VisionLanguageBridge

# The root of typer's complaints about a command line, wherever its version keeps that class.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(add_completion=False, help="TransformerLens for vision-language models.")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code. The one place where errors become a line."""
    try:
        code = int(app(list(arguments), prog_name="mm-lens", standalone_mode=False) or 0)
        problem = "Interrupted: nothing was written." if code == 130 else ""
    except UsageError as error:
        code, problem = 2, f"{_line(error).rstrip('.')}. See mm-lens --help."
    except (typer.Abort, KeyboardInterrupt):
        code, problem = 130, "Interrupted: nothing was written."
    except MMLensError as error:
        code, problem = 1, _line(error)
    except OSError as error:
        about = f"{error.filename}: {error.strerror}." if error.filename else _line(error)
        code, problem = 1, about
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = (
                f"The disk is full ({os.strerror(error.errno)}): nothing was written. "
                "Free some space or name another --out."
            )
    except MemoryError:
        code, problem = 1, "Out of memory. Lower --batch-size or --tokens."
    if problem:
        print(f"mm-lens: {problem}", file=sys.stderr)
    return code


def _line(error: BaseException) -> str:
    """The message of an error on one line."""
    format_message = getattr(error, "format_message", None)  # typer's name the option as well
    text = format_message() if format_message else str(error)
    return " ".join(text.split()) or type(error).__name__


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


def _names(text: str, valid: Sequence[str]) -> list[str]:
    """The names in a comma-separated option."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(valid) or len(set(names)) < len(names):
        raise typer.BadParameter(
            f"{text!r} is not a comma-separated list out of: {', '.join(valid)}."
        )
    return names


@app.command(name="profile")
def profile_command(
    model: Annotated[
        str,
        typer.Option(help="Hub id, local directory, or a demo model, e.g. demo/llava-next."),
    ],
    data: Annotated[
        str,
        typer.Option(help="Data set (easy-vqa), or a folder of images, or a csv, jsonl, parquet."),
    ],
    out: Annotated[Path, typer.Option(help="Directory for table, provenance and pictures.")],
    samples: Annotated[
        int, typer.Option(min=1, help="Most samples, drawn at random with the seed.")
    ] = 500,
    split: Annotated[
        Literal["train", "test"], typer.Option(help="Part of a named data set.")
    ] = "test",
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
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most tokens per modality.", show_default="12 per dimension, at least 2048"
        ),
    ] = None,
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
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="A sample that cannot be read ends the run, or is left out and listed."),
    ] = "raise",
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

    Example: mm-lens profile --model demo/llava-next --data easy-vqa --samples 500 --out runs/demo
    """
    flows, sets = _names(streams, ("residual", "main")), _names(presets, ("honest", "paper"))
    from mm_lens import datasets

    with whole_directory(out, PROVENANCE_FILE, overwrite) as new:
        # What can be wrong is looked at before anything slow begins.
        named = data in datasets.names()
        chosen = datasets.load(data, split=split, limit=samples, seed=seed)
        if not quiet:
            print(f"Loading {model} …", file=sys.stderr)
        with _quiet():
            loaded = _load(
                model, attention=attention, device=device, dtype=dtype, check=not no_check
            )
            result = mm_lens.profile(
                loaded,
                chosen,
                streams=flows,  # type: ignore[arg-type]
                presets=sets,
                tokens=tokens,
                batch_size=batch_size,
                seed=seed,
                progress=not quiet,
                on_error=on_error,
                data_name=f"{data}/{split}" if named else data,
            )
        command = shlex.join(["mm-lens", *sys.argv[1:]])
        result = replace(result, provenance={"command": command, **result.provenance})
        files = _write(result, new, progress=not quiet)
    if not quiet:
        from mm_lens import summary

        summary.show(result, out, files)


@app.command(name="convert")
def convert_command(
    format: Annotated[str, typer.Argument(help="Layout of the source, e.g. omnifusion.")],
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

    Example: mm-lens convert omnifusion OmniFusion/ converted/omnifusion
    """
    import torch

    with _quiet():
        mm_lens.convert(
            format,
            source,
            out,
            vision_tower=vision_tower,
            dtype=getattr(torch, dtype) if dtype else None,
            overwrite=overwrite,
            progress=not quiet,
        )
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

    Example: mm-lens compare runs/llava-next runs/omnifusion --out runs/compare
    """
    from tqdm import tqdm

    named = None if labels is None else [label.strip() for label in labels.split(",")]
    with whole_directory(out, COMPARISON_FILE, overwrite) as new:
        comparison = mm_lens.compare(*profiles, labels=named, paired=not unpaired)
        from mm_lens import compare_plots

        comparison.write(new)
        for _ in tqdm(
            compare_plots.write(comparison, new),
            total=len(compare_plots.metrics(comparison)) + 2,
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Only mm_lens speaks: libraries keep their warnings and progress bars to themselves."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or it warns when a process is forked
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in (None, "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", MMLensWarning)
        warnings.showwarning = lambda message, *_, **__: print(
            f"mm-lens: warning: {message}", file=sys.stderr
        )
        yield


def _load(model: str, *, dtype: str | None, **options: Any) -> VisionLanguageBridge:
    """The model, or one error that says why not."""
    import torch

    try:
        torch.empty(0, device=options["device"])
    except (RuntimeError, AssertionError) as error:
        raise MMLensError(f"There is no device {options['device']!r} here. Try cpu.") from error
    try:
        return mm_lens.load(model, dtype=getattr(torch, dtype) if dtype else None, **options)
    except MMLensError:
        raise
    except Exception as error:  # many libraries read the files, each failing in its own way
        reason = (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")
        known = ", ".join(mm_lens.demo.available())
        raise MMLensError(
            f"Model {model!r} cannot be loaded: {reason}. Give a hub id, a complete local "
            f"directory, or one of: {known}."
        ) from error


def _write(result: Profile, directory: Path, progress: bool) -> list[str]:
    """Everything into a directory; returns the names of the files."""
    from tqdm import tqdm

    from mm_lens import plots

    result.write(directory)
    pictures = tqdm(
        plots.write(result, directory),
        total=len(plots.metrics(result)) + 2,
        desc="pictures",
        unit="file",
        disable=not progress,
    )
    names = [path.name for path in pictures]
    return [PROVENANCE_FILE, TABLE_FILE, *names]
