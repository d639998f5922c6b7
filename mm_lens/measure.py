"""What `mm_lens.profile` does: collect states, then evaluate the metrics cell by cell."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, TypeAlias, TypeVar

import pandas as pd
import torch
from tqdm import tqdm

from mm_lens import provenance
from mm_lens.bridge import VisionLanguageBridge
from mm_lens.errors import DataError, InputError
from mm_lens.metrics import METRICS, Estimate, Metric, evaluate, preset
from mm_lens.profile import COLUMNS, Profile, Samples
from mm_lens.sampling import MODALITIES, Modality
from mm_lens.states import OnError, States, collect, from_cache
from mm_lens.streams import STREAMS, Stream

T = TypeVar("T", bound=str)
Place: TypeAlias = tuple[str, int, str, str, str]  # stream, layer, hook, modality, metric


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
    model = source.model if hasattr(source, "cache_dict") else source
    if dataset is None:
        states = _states_of_cache(source, options)
        data = {"name": options.data_name or "cache"}
    else:
        states = _states_of_data(source, dataset, options)
        data = provenance.describe_data(dataset, options.data_name)
    collected = time.monotonic()
    about = provenance.describe_model(model)
    cells = tqdm(
        _cells(states, options),
        total=len(states.streams) * len(states.tokens.modalities) * len(states.layers),
        desc="metrics",
        unit="cell",
        disable=not options.progress,
    )
    found = [(place, estimate) for cell in cells for place, estimate in cell]
    rows = [(about["name"], *place, *_fields(estimate)) for place, estimate in found]
    seconds = {"states": collected - started, "metrics": time.monotonic() - collected}
    return Profile(
        pd.DataFrame(rows, columns=list(COLUMNS)),
        {
            "started": begun,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "versions": provenance.versions(),
            "threads": torch.get_num_threads(),
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
                "for_dimension": _equal_number(states),
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
    streams = options.streams or ("residual",)
    if len(streams) > 1:
        raise InputError("A cache holds the states of one stream: name one.")
    modalities = None if options.modalities is None else tuple(options.modalities)
    return from_cache(source, modalities, streams[0], options.seed)


def _states_of_data(source: Any, dataset: Samples, options: Options) -> States:
    if not isinstance(source, VisionLanguageBridge):
        raise InputError("A data set needs a model to run: profile(mm_lens.load(…), dataset).")
    if not len(dataset):
        raise DataError("The data set holds no samples.")
    return collect(
        source,
        dataset,
        n_samples=min(len(dataset), options.samples or len(dataset)),
        streams=tuple(options.streams or STREAMS),
        modalities=tuple(options.modalities or MODALITIES),
        k=options.tokens or max(12 * int(source.cfg.d_model), 2048),
        batch_size=options.batch_size,
        seed=options.seed,
        progress=options.progress,
        on_error=options.on_error,
    )


def _cells(states: States, options: Options) -> Iterator[list[tuple[Place, Estimate]]]:
    """Every estimate, one list per stream, modality and layer."""
    equal = _equal_number(states)
    singles = [m for m in options.chosen if m.arity == 1 and m.family != "dimension"]
    doubles = [m for m in options.chosen if m.arity == 2]
    dimension = [m for m in options.chosen if m.family == "dimension"]
    for stream in states.streams:
        for modality in states.tokens.modalities:
            previous, at = None, -1
            for layer in states.layers:
                tokens = states.tokens.tokens(stream, layer, modality)
                results: dict[str, Estimate] = {}
                if tokens is None:
                    pairs = doubles if layer - 1 in states.layers else []
                    results = dict.fromkeys(
                        (m.name for m in (*pairs, *singles, *dimension)), _missing(modality)
                    )
                else:
                    if previous is not None and at == layer - 1:
                        results |= evaluate(previous, tokens, doubles, options.seed)
                    results |= evaluate(tokens, None, singles, options.seed)
                    # The first tokens of the sample are a smaller sample of the same kind.
                    fewer = tokens.take(torch.arange(min(equal, len(tokens))))
                    results |= evaluate(fewer, None, dimension, options.seed)
                previous, at = tokens, layer
                hook = states.names[layer]
                yield [((stream, layer, hook, modality, m), found) for m, found in results.items()]


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
    groups = pd.DataFrame([place[4].values for place in places], dtype=float)
    return pd.concat([frame, groups.rename(columns="g{}".format)], axis=1)


def _missing(modality: Modality) -> Estimate:
    return Estimate(nan, nan, nan, 0, 0.0, nan, f"no {modality} tokens in the data")


def _equal_number(states: States) -> int:
    """Tokens for the intrinsic dimension: what every modality that has any can give."""
    counts = [states.tokens.count(modality) for modality in states.tokens.modalities]
    return min((count for count in counts if count), default=0)


def _known(kind: str, given: Sequence[T], valid: Collection[T]) -> None:
    if isinstance(given, str) or (unknown := [name for name in given if name not in valid]):
        name = given if isinstance(given, str) else unknown[0]
        raise InputError(f"Unknown {kind}: {name!r}. Give a sequence out of: {', '.join(valid)}.")
    if len(set(given)) < len(given):
        raise InputError(f"A {kind} is named twice in {list(given)}.")
