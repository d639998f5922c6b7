"""What `mm_lens.profile` does: collect states, evaluate the metrics, make a table of them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from mm_lens import provenance
from mm_lens.bridge import VisionLanguageBridge
from mm_lens.cells import Evaluation, Place, equal_number
from mm_lens.distributed import Processes
from mm_lens.errors import DataError, InputError
from mm_lens.identity import manifest
from mm_lens.metrics import METRICS, Estimate, Metric, preset
from mm_lens.profile import COLUMNS, Profile, Samples
from mm_lens.reading import OnError
from mm_lens.rundir import RunDirectory, open_run
from mm_lens.sampling import MODALITIES, Modality
from mm_lens.states import States, collect, from_cache
from mm_lens.streams import STREAMS, Stream

T = TypeVar("T", bound=str)


@dataclass(frozen=True)
class Options:
    """The arguments of `mm_lens.profile`; see there.

    Raises:
        InputError: one of them has a value that does not exist.
    """

    streams: Sequence[Stream] | None
    modalities: Sequence[Modality] | None
    presets: Sequence[str]
    metrics: Sequence[str] | None
    tokens: int | None
    batch_size: int
    samples: int | None
    seed: int
    progress: bool
    on_error: OnError
    data_name: str | None
    run_dir: str | Path | None
    restart: bool

    def __post_init__(self) -> None:
        _known("stream", self.streams or (), STREAMS)
        _known("modality", self.modalities or (), MODALITIES)
        _known("metric", self.metrics or (), METRICS)
        _known("on_error", (self.on_error,), ("raise", "skip"))
        for name in ("tokens", "batch_size", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} leaves nothing to profile. Give at least 1.")
        if not self.chosen:
            raise InputError("No metric is asked for. Name a preset or a metric.")

    @property
    def chosen(self) -> list[Metric]:
        """The metrics to compute, each once, in the order of the registry."""
        wanted = self.metrics or {m.name for name in self.presets for m in preset(name)}
        return [metric for name, metric in METRICS.items() if name in wanted]


def run(source: Any, dataset: Samples | None, options: Options) -> Profile:
    """Profile a cache, or a model over a data set; see `mm_lens.profile`."""
    started, begun = time.monotonic(), provenance.now()
    if dataset is None:
        states, directory = _states_of_cache(source, options), None
        model, data = source.model, {"name": options.data_name or "cache"}
        seconds = {"states": time.monotonic() - started}
        evaluation = Evaluation(states, options.chosen, options.seed)
        found = evaluation.estimates(options.progress)
    else:
        model, data = source, provenance.describe_data(dataset, options.data_name)
        _check(model, dataset)
        with _directory(model, dataset, options) as directory:
            shown = options.progress and (directory is None or directory.processes.main)
            states = _states_of_data(model, dataset, options, directory, shown)
            seconds = {"states": time.monotonic() - started}
            device = model.cfg.device if "cuda" in str(model.cfg.device) else "cpu"
            evaluation = Evaluation(states, options.chosen, options.seed, device, directory)
            found = evaluation.estimates(shown)
    seconds["metrics"] = time.monotonic() - started - seconds["states"]
    about = provenance.describe_model(model)
    rows = [(about["name"], *place, *_fields(estimate)) for place, estimate in found]
    return Profile(
        pd.DataFrame(rows, columns=list(COLUMNS)),
        {
            "started": begun,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "versions": provenance.versions(),
            "threads": torch.get_num_threads(),
            "processes": directory.processes.count if directory else 1,
            "model": about,
            "data": {
                **data,
                "n_samples": states.n_samples,
                "fingerprint": f"{states.fingerprint:016x}" if states.fingerprint else None,
                "n_skipped": len(states.skipped),
                "skipped": states.skipped,
            },
            "tokens": {
                "seen": states.tokens.seen(),
                "sampled": {m: states.tokens.count(m) for m in states.tokens.modalities},
                "for_dimension": equal_number(states),
            },
            "options": {
                "streams": list(states.streams),
                "modalities": list(states.tokens.modalities),
                "presets": None if options.metrics else list(options.presets),
                "metrics": [metric.name for metric in options.chosen],
                "tokens": states.tokens.k,
                "batch_size": options.batch_size,
                "samples": options.samples,
                "seed": options.seed,
                "on_error": options.on_error,
            },
        },
        _replicates(found),
    )


def _states_of_cache(source: Any, options: Options) -> States:
    if isinstance(source, VisionLanguageBridge):
        raise InputError("Profiling a model needs data: profile(model, dataset).")
    if options.run_dir is not None:
        raise InputError("A cache is in memory already: run_dir is for a model and data.")
    streams = options.streams or ("residual",)
    if len(streams) > 1:
        raise InputError("A cache holds the states of one stream: name one.")
    modalities = None if options.modalities is None else tuple(options.modalities)
    return from_cache(source, modalities, streams[0], options.seed)


def _check(model: Any, dataset: Samples) -> None:
    if not isinstance(model, VisionLanguageBridge):
        raise InputError("A data set needs a model to run: profile(mm_lens.load(…), dataset).")
    if not len(dataset):
        raise DataError("The data set holds no samples.")


@contextmanager
def _directory(model: Any, dataset: Samples, options: Options) -> Iterator[RunDirectory | None]:
    """The run directory, open, if there is one; several processes cannot do without."""
    processes = Processes()
    if options.run_dir is None:
        if processes.count > 1:
            raise InputError(
                f"{processes.count} processes merge their states in a run directory that all of "
                "them see: give run_dir."
            )
        yield None
        return
    asked = _asked(model, dataset, options)
    about = manifest(
        model,
        dataset,
        asked["n_samples"],
        {**asked, "metrics": [metric.name for metric in options.chosen]},
    )
    with open_run(Path(options.run_dir), about, processes, options.restart) as directory:
        yield directory


def _states_of_data(
    model: Any,
    dataset: Samples,
    options: Options,
    directory: RunDirectory | None,
    progress: bool,
) -> States:
    asked = _asked(model, dataset, options)
    return collect(model, dataset, **asked, progress=progress, run=directory)


def _asked(model: Any, dataset: Samples, options: Options) -> dict[str, Any]:
    """What the states follow from besides model and data, with the defaults filled in."""
    return {
        "n_samples": min(len(dataset), options.samples or len(dataset)),
        "streams": tuple(options.streams or STREAMS),
        "modalities": tuple(options.modalities or MODALITIES),
        "k": options.tokens or max(12 * int(model.cfg.d_model), 2048),
        "batch_size": options.batch_size,
        "seed": options.seed,
        "on_error": options.on_error,
    }


def _fields(e: Estimate) -> tuple[Any, ...]:
    """In the order of the table's columns."""
    return e.value, e.low, e.high, e.n_tokens, e.n_over_d, e.chance, e.warning


def _replicates(found: Sequence[tuple[Place, Estimate]]) -> pd.DataFrame:
    """The replicates of every estimate that has any; see `Profile`."""
    places = [
        (stream, layer, modality, metric, e.replicates)
        for (stream, layer, _, modality, metric), e in found
        if e.replicates.values
    ]
    frame = pd.DataFrame(
        [place[:4] for place in places], columns=["stream", "layer", "modality", "metric"]
    )
    frame["rest"] = [place[4].rest for place in places]
    groups = pd.DataFrame([dict(enumerate(place[4].values)) for place in places], dtype=float)
    return pd.concat([frame, groups.rename(columns="g{}".format)], axis=1)


def _known(kind: str, given: Sequence[T], valid: Collection[T]) -> None:
    if isinstance(given, str) or (unknown := [name for name in given if name not in valid]):
        name = given if isinstance(given, str) else unknown[0]
        raise InputError(f"Unknown {kind}: {name!r}. Give a sequence out of: {', '.join(valid)}.")
    if len(set(given)) < len(given):
        raise InputError(f"A {kind} is named twice in {list(given)}.")
