"""`evaluate`: how often a model answers right, by protocol, with its image and without.

Batches are answered one after another and kept in a run directory, if there is one: a killed run
goes on, and several processes share the work. Every answer stays.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from tqdm import tqdm

from mm_lens.arguments import require_whole
from mm_lens.data.datasets import as_samples
from mm_lens.data.samples import DataSet, Samples
from mm_lens.errors import DataError, InputError, MMLensWarning
from mm_lens.evaluating.asking import CONDITIONS, Condition, Questions, answer_batch
from mm_lens.evaluating.protocols import Protocol, find_protocol
from mm_lens.evaluating.scores import ANSWERS, Scores, tabulate
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.profiling import provenance
from mm_lens.profiling.identity import manifest
from mm_lens.profiling.processes import Processes
from mm_lens.profiling.reading import Reader
from mm_lens.profiling.run_directory import RunDirectory, open_run

Unit = tuple[Condition, int]
"""Work that is done and kept as a whole: some batches under one condition."""

OPTIONS_OF_EXACT = (
    "The data have options, and the protocol exact counts only the text of one as right: a letter "
    "is wrong. Take llava, lmms-eval, letters or options if letters are meant."
)
MAX_UNITS = 9_999
"""Most units under one condition: their names have four digits."""
MOST_OPTIONS = 64
"""Most different answers of data that are taken for the options of all questions."""
BY = {"scienceqa": ("subject", "grade"), "easy-vqa": ("kind",), "scenes": ("kind",)}
"""Columns by which named data sets are divided where nothing else is said."""


def evaluate(
    model: Any,
    data: Any,
    *,
    protocol: str | Protocol = "exact",
    conditions: Sequence[Condition] = ("given", "blanked"),
    by: Sequence[str] | None = None,
    options: Sequence[str] | None = None,
    samples: int | None = None,
    batch_size: int = 16,
    max_tokens: int | None = None,
    progress: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    data_name: str | None = None,
    run_dir: str | Path | None = None,
    restart: bool = False,
    chat_template: bool | None = None,
) -> Scores:
    """Ask a model every question of a data set, and count what it answers right.

    ```python
    mm_lens.evaluate(model, "easy-vqa")
    mm_lens.evaluate(model, "scienceqa:ScienceQA/data/scienceqa", protocol="llava")
    ```

    Args:
        model: from `mm_lens.load`.
        data: whatever `mm_lens.datasets.load` takes or gives; samples need an answer.
        protocol: what is asked and what counts: "exact", "llava", "lmms-eval", or, by
            log-probability, "options", "options-mean", "letters" (`mm_lens.evaluating.protocols`);
            or one of your own.
        conditions: what becomes of images: "given" as they are, "blanked" uniform grey, "removed".
            Samples without an image are asked once, as given.
        by: columns of the data by which accuracy is told as well; None takes subject and grade of
            ScienceQA, the kind of question of easy-VQA and scenes.
        options: answers to choose from, the same for all samples that have none of their own. None
            takes, where the protocol needs some, the answers that there are in the data.
        samples: ask only so many, from the first on. `datasets.load(limit=…)` draws at random.
        batch_size: samples per forward pass.
        max_tokens: most tokens that may be written; None leaves it to the protocol. Another number
            is another protocol, and stands in the provenance.
        progress: show a progress bar on stderr.
        on_error: what happens with a sample that cannot be read: "raise", or "skip", which lists it
            in the provenance and counts it nowhere.
        data_name: name of the data set in the provenance.
        run_dir: a directory for answers: a killed run is resumed when called again, and several
            processes (`accelerate launch`) share the work. It stays; delete it at the end.
        restart: discard what an earlier run has left in `run_dir`.
        chat_template: as `model.prepare` takes it.

    Raises:
        InputError: an argument is wrong, or `run_dir` holds another run.
        DataError: no samples, one without an answer or options, or (`on_error` "raise") an
            unreadable one.
        OSError: `run_dir` cannot be written.
    """
    if not isinstance(model, VisionLanguageBridge):
        raise InputError("Evaluating needs a model: evaluate(mm_lens.load(…), data).")
    chosen, given = find_protocol(protocol), as_samples(data)
    if not isinstance(given, Samples) or not len(given):
        raise DataError("The data set holds no samples.")
    if unknown := [name for name in conditions if name not in CONDITIONS]:
        raise InputError(
            f"Unknown condition: {unknown[0]!r}. Give a sequence out of: {', '.join(CONDITIONS)}."
        )
    for name, count in (
        ("samples", samples),
        ("batch_size", batch_size),
        ("max_tokens", max_tokens),
    ):
        if count is not None:
            require_whole(name, count, 1)
    if chosen.name == "exact" and isinstance(given, DataSet) and given._rows[0].options:
        warnings.warn(OPTIONS_OF_EXACT, MMLensWarning, stacklevel=2)
    started, begun = time.monotonic(), provenance.now()
    groups = _groups(given, by)
    choices = _choices(given, chosen, options)
    n = min(len(given), samples or len(given))
    size = 1 if model.family.padding_side == "right" else batch_size  # none can be generated from
    about = {
        "protocol": chosen.name,
        "conditions": list(conditions),
        "by": list(groups),
        "options": list(choices),
        "max_tokens": max_tokens or chosen.tokens,
        "batch_size": size,
        "on_error": on_error,
        "chat_template": chat_template,
    }
    side: Literal["left"] | None = "left" if size > 1 else None
    readers = {}
    for condition in conditions:
        asked = Questions(given, chosen, condition, choices, n)
        readers[condition] = Reader(
            model, asked, len(asked), size, on_error, chat_template, padding_side=side
        )
    if size > 1:
        model.report.require(f"evaluate with batch_size={size}", "batch")
    with _open_directory(run_dir, model, given, n, about, restart) as directory:
        found = _answer_all(model, readers, directory, about, progress)
    answers, skipped = _collect(found, conditions)
    if answers.empty:
        raise DataError(
            f"All {len(skipped)} samples were skipped; the first: {skipped[0]['reason']}"
            if skipped
            else f"No sample has an image, so none can be {conditions[0]}."
        )
    return Scores(
        tabulate(answers, groups),
        answers,
        {
            "started": begun,
            "seconds": round(time.monotonic() - started, 2),
            "versions": provenance.versions(),
            "threads": torch.get_num_threads(),
            "processes": directory.processes.count if directory else 1,
            "model": provenance.describe_model(model),
            "data": {
                **provenance.describe_data(given, data_name),
                "n_samples": n,
                "n_skipped": len(skipped),
                "skipped": skipped,
            },
            **about,
            "interval": "Wilson, 95 %, over questions; over images where several share one",
            "chance": "one guess among the options; of open questions, the most frequent answer",
        },
    )


def check_request(
    data: Samples,
    protocol: str | Protocol,
    by: Sequence[str] | None,
    options: Sequence[str] | None,
) -> None:
    """What can be told without a model, of the request and of the first sample.

    Raises:
        InputError, DataError: as `evaluate`.
    """
    chosen = find_protocol(protocol)
    if not len(data):
        raise DataError("The data set holds no samples.")
    _groups(data, by)
    Questions(data, chosen, "given", _choices(data, chosen, options), 1)[0]


def _groups(data: Samples, by: Sequence[str] | None) -> tuple[str, ...]:
    name = getattr(data, "name", "").split(" ")[0]
    chosen = BY.get(name, ()) if by is None else tuple(by)
    if taken := [name for name in chosen if name in (*ANSWERS, "n_options", "log_probabilities")]:
        raise InputError(f"by={taken[0]!r} is the name of a column of the answers themselves.")
    if by is not None and isinstance(data, DataSet):
        known = {column for row in data._rows for column in row.about}
        if unknown := [column for column in chosen if column not in known]:
            raise InputError(
                f"by names the column {unknown[0]!r}, which the data do not have. There are: "
                f"{', '.join(sorted(known)) or 'none'}."
            )
    return chosen


def _choices(data: Samples, protocol: Protocol, options: Sequence[str] | None) -> tuple[str, ...]:
    """The options of samples that have none of their own."""
    if options is not None:
        if isinstance(options, str) or len({*options}) < max(len(options), 2):
            raise InputError("options are a list of at least two different answers.")
        return tuple(options)
    if protocol.options and isinstance(data, DataSet):
        found = {row.answer for row in data._rows if row.answer is not None and not row.options}
        if 2 <= len(found) <= MOST_OPTIONS:
            return tuple(sorted(found))
    return ()


@contextmanager
def _open_directory(
    path: str | Path | None,
    model: Any,
    data: Samples,
    n: int,
    options: dict[str, Any],
    restart: bool,
) -> Iterator[RunDirectory | None]:
    processes = Processes()
    if path is None:
        if processes.count > 1:
            raise InputError(
                f"{processes.count} processes put their answers together in a run directory that "
                "all of them see: give run_dir."
            )
        yield None
        return
    with open_run(Path(path), manifest(model, data, n, options), processes, restart) as directory:
        yield directory


def _answer_all(
    model: Any,
    readers: dict[Condition, Reader],
    directory: RunDirectory | None,
    about: dict[str, Any],
    progress: bool,
) -> dict[str, Any]:
    """The content of every unit, by its name."""
    spans = {name: -(-len(reader.ranges) // MAX_UNITS) or 1 for name, reader in readers.items()}
    units = [
        (name, k)
        for name, reader in readers.items()
        for k in range(-(-len(reader.ranges) // spans[name]))
    ]
    done: dict[str, Any] = directory.sites() if directory else {}
    todo = [unit for unit in units if _name(unit) not in done]
    mine = directory.share([_name(unit) for unit in units], done) if directory else None
    shown = progress and (directory is None or directory.processes.main)
    bar = tqdm(total=len(units), initial=len(units) - len(todo), desc="batches", disable=not shown)
    for unit in todo:
        if mine is not None and _name(unit) not in mine:
            continue
        reader, span = readers[unit[0]], spans[unit[0]]
        numbers = range(unit[1] * span, min((unit[1] + 1) * span, len(reader.ranges)))
        content = _answer_unit(model, reader, list(numbers), about)
        done[_name(unit)] = content
        if directory is not None:
            directory.keep_site(_name(unit), content)
        bar.update()
    bar.close()
    if directory is None:
        return done
    wanted = {_name(unit) for unit in units}
    look: Callable[[], dict[str, Any]] = directory.sites
    return directory.gather(look, lambda found: wanted <= found.keys())


def _name(unit: Unit) -> str:
    return f"answers.{unit[0]}.{unit[1]:04d}"


def _answer_unit(
    model: Any, reader: Reader, numbers: list[int], about: dict[str, Any]
) -> dict[str, Any]:
    questions: Any = reader.dataset
    content: dict[str, Any] = {"answers": [], "skipped": []}
    for batch in reader.batches(numbers):
        content["answers"] += answer_batch(
            model, batch, questions, about["max_tokens"], tuple(about["by"])
        )
        for entry in batch.skipped:
            index = questions.indices[entry["index"]]
            unknown = entry["sample"] == f"#{entry['index']}"
            content["skipped"].append(
                {**entry, "index": index, "sample": f"#{index}" if unknown else entry["sample"]}
            )
    return content


def _collect(
    found: dict[str, Any], conditions: Sequence[Condition]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """All answers in order, and the samples that were left out."""
    answers: list[dict[str, Any]] = []
    skipped: dict[int, dict[str, Any]] = {}
    for condition in conditions:
        for name in sorted(name for name in found if name.startswith(f"answers.{condition}.")):
            answers += found[name]["answers"]
            skipped |= {entry["index"]: entry for entry in found[name]["skipped"]}
    frame = pd.DataFrame(answers)
    return frame.reset_index(drop=True), [skipped[index] for index in sorted(skipped)]
