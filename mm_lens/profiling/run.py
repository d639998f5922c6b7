"""`profile`: metrics over the layers of a model, per modality and stream, as one table.

**Layers.** `layer` is the index of a state: 0 is what enters block 0, l what leaves block l - 1
(`mm_lens.profiling.states`). A metric of two consecutive states (linearity) stands at the later
one, so it begins with layer 1. The scripts of the paper leave the last layer out; it is in the
table.

**Tokens.** A bounded sample per modality, the same at every layer and in both streams
(`mm_lens.profiling.token_sample`). Intrinsic dimension depends on the number of tokens, so all
modalities are cut to the same number for it: that of the smallest one that has any. The paper's own
definitions take all tokens instead (`mm_lens.profiling.selection`).

**Cost.** One forward pass of the data per stream, of which only the sampled rows are kept, in
memory or in files; then the metrics, layer by layer. See docs/scaling.md.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import torch

from mm_lens.data.datasets import Samples
from mm_lens.errors import DataError, InputError
from mm_lens.metrics import METRICS, Estimate, Metric, preset
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.streams import STREAMS, Stream
from mm_lens.profiling import provenance
from mm_lens.profiling.evaluation import Evaluation, Place, equal_number
from mm_lens.profiling.identity import manifest
from mm_lens.profiling.processes import Processes
from mm_lens.profiling.result import COLUMNS, Profile
from mm_lens.profiling.run_directory import RunDirectory, open_run
from mm_lens.profiling.selection import default_number, sample_size
from mm_lens.profiling.states import SamplingPlan, States, collect, from_cache
from mm_lens.profiling.token_sample import MODALITIES, Modality

T = TypeVar("T", bound=str)


def profile(
    source: Any,
    dataset: Samples | None = None,
    *,
    streams: Sequence[Literal["residual", "main"]] | None = None,
    modalities: Sequence[Literal["visual", "text", "all"]] | None = None,
    presets: Sequence[str] = ("honest", "paper"),
    metrics: Sequence[str] | None = None,
    tokens: int | None = None,
    batch_size: int = 16,
    samples: int | None = None,
    seed: int = 0,
    progress: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    data_name: str | None = None,
    run_dir: str | Path | None = None,
    restart: bool = False,
    chat_template: bool | None = None,
) -> Profile:
    """Measure how a model treats its visual and text tokens, layer by layer.

    ```python
    mm_lens.profile(cache)                                        # the tokens of one cache
    mm_lens.profile(model, mm_lens.datasets.load("easy-vqa"))     # a data set, in bounded memory
    ```

    Args:
        source: a `LayoutCache`, or a model from `mm_lens.load`.
        dataset: the samples, for a model.
        streams: "residual", "main" (without skip connections); None profiles a model on both. For a
            cache it says what its states are; None stands for "residual".
        modalities: of "visual", "text", "all"; None takes all (a cache: all that it holds).
        presets: sets of metrics: "honest" and "paper", the paper's own definitions.
        metrics: names from `mm_lens.metrics.METRICS` instead of presets.
        tokens: most tokens sampled per modality. None takes 12 per dimension of the hidden state,
            but at least 2,048; and for the paper's own definitions, which take all tokens, up to
            8,192 or 1 GiB of states (their rows say where that is not all). A cache is used whole.
        batch_size: samples per forward pass. Does not change which tokens are taken.
        samples: use only so many, from the first on. `datasets.load(limit=…)` draws at random.
        seed: of the choice of tokens and of everything random in the metrics.
        progress: show progress bars on stderr.
        on_error: what happens with a sample that cannot be read: "raise", or "skip", which lists it
            in the provenance.
        data_name: name of the data set in the provenance.
        run_dir: a directory for states and finished metrics. They then need disk instead of memory;
            a killed run is resumed when called again, and ends with the same table; and several
            processes (`accelerate launch`) share the work. It stays; delete it when the profile is
            saved. None keeps states in memory.
        restart: discard what an earlier run has left in `run_dir`.
        chat_template: as `model.prepare` takes it. None leaves prompts as they are that hold image
            placeholders, and warns; the provenance says how many had the template.

    Raises:
        InputError: an argument is wrong, the cache does not hold what is needed, or `run_dir` holds
            another run.
        DataError: no samples, two samples with one id, (`on_error` "raise") an unreadable one, or a
            damaged file in `run_dir`.
        OSError: `run_dir` cannot be written; a full disk, say. What was done before stays.
    """
    _check_names("stream", streams or (), STREAMS)
    _check_names("modality", modalities or (), MODALITIES)
    _check_names("metric", metrics or (), METRICS)
    _check_names("on_error", (on_error,), ("raise", "skip"))
    for name, count in (("tokens", tokens), ("batch_size", batch_size), ("samples", samples)):
        if count is not None and count < 1:
            raise InputError(f"{name}={count} leaves nothing to profile. Give at least 1.")
    wanted = metrics or {metric.name for name in presets for metric in preset(name)}
    chosen = [metric for name, metric in METRICS.items() if name in wanted]
    if not chosen:
        raise InputError("No metric is asked for. Name a preset or a metric.")

    started, begun = time.monotonic(), provenance.now()
    if dataset is None:
        if run_dir is not None:
            raise InputError("A cache is in memory already: run_dir is for a model and data.")
        states, directory = _states_of_cache(source, streams, modalities, seed), None
        model, data = source.model, {"name": data_name or "cache"}
        seconds = {"states": time.monotonic() - started}
        found = Evaluation(states, chosen, seed).estimates(progress)
    else:
        _check(source, dataset)
        if batch_size > 1:
            source.report.require(f"profile with batch_size={batch_size}", "batch")
        model, data = source, provenance.describe_data(dataset, data_name)
        plan = SamplingPlan(
            n_samples=min(len(dataset), samples or len(dataset)),
            streams=tuple(streams or STREAMS),
            modalities=tuple(modalities or MODALITIES),
            k=sample_size(tokens, chosen, int(model.cfg.d_model), _bytes_per_token(model, streams)),
            honest=tokens or default_number(int(model.cfg.d_model)),
            batch_size=batch_size,
            seed=seed,
            on_error=on_error,
            chat_template=chat_template,
        )
        with _open_directory(run_dir, model, dataset, plan, chosen, restart) as directory:
            shown = progress and (directory is None or directory.processes.main)
            states = collect(model, dataset, plan, progress=shown, run=directory)
            seconds = {"states": time.monotonic() - started}
            device = model.cfg.device if "cuda" in str(model.cfg.device) else "cpu"
            found = Evaluation(states, chosen, seed, device, directory).estimates(shown)
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
                "n_templated": states.templated if dataset is not None else None,
            },
            "tokens": {
                "seen": states.tokens.seen(),
                "sampled": {m: states.tokens.count(m) for m in states.tokens.modalities},
                "for_dimension": equal_number(states),
            },
            "options": {
                "streams": list(states.streams),
                "modalities": list(states.tokens.modalities),
                "presets": None if metrics else list(presets),
                "metrics": [metric.name for metric in chosen],
                "tokens": states.honest or states.tokens.k,
                "paper_tokens": states.tokens.k,
                "batch_size": batch_size,
                "samples": samples,
                "seed": seed,
                "on_error": on_error,
                "chat_template": chat_template,
            },
        },
        _replicates(found),
    )


def _states_of_cache(
    source: Any,
    streams: Sequence[Stream] | None,
    modalities: Sequence[Modality] | None,
    seed: int,
) -> States:
    if isinstance(source, VisionLanguageBridge):
        raise InputError("Profiling a model needs data: profile(model, dataset).")
    streams = streams or ("residual",)
    if len(streams) > 1:
        raise InputError("A cache holds the states of one stream: name one.")
    return from_cache(source, None if modalities is None else tuple(modalities), streams[0], seed)


def _bytes_per_token(model: Any, streams: Sequence[Stream] | None) -> int:
    """Of the states of one visual and one text token."""
    states = 2 * (int(model.cfg.n_layers) + 1) * len(streams or STREAMS)
    size: int = torch.empty((), dtype=model.cfg.dtype).element_size()
    return states * int(model.cfg.d_model) * size


def _check(model: Any, dataset: Samples) -> None:
    if not isinstance(model, VisionLanguageBridge):
        raise InputError("A data set needs a model to run: profile(mm_lens.load(…), dataset).")
    if not len(dataset):
        raise DataError("The data set holds no samples.")


@contextmanager
def _open_directory(
    path: str | Path | None,
    model: Any,
    dataset: Samples,
    plan: SamplingPlan,
    metrics: Sequence[Metric],
    restart: bool,
) -> Iterator[RunDirectory | None]:
    """The run directory, open, if there is one; several processes cannot do without."""
    processes = Processes()
    if path is None:
        if processes.count > 1:
            raise InputError(
                f"{processes.count} processes merge their states in a run directory that all of "
                "them see: give run_dir."
            )
        yield None
        return
    about = manifest(
        model,
        dataset,
        plan.n_samples,
        {**asdict(plan), "metrics": [metric.name for metric in metrics]},
    )
    with open_run(Path(path), about, processes, restart) as directory:
        yield directory


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
    frame["freedom"] = [place[4].freedom for place in places]
    groups = pd.DataFrame([dict(enumerate(place[4].values)) for place in places], dtype=float)
    return pd.concat([frame, groups.rename(columns="g{}".format)], axis=1)


def _check_names(kind: str, given: Sequence[T], valid: Collection[T]) -> None:
    if isinstance(given, str) or (unknown := [name for name in given if name not in valid]):
        name = given if isinstance(given, str) else unknown[0]
        raise InputError(f"Unknown {kind}: {name!r}. Give a sequence out of: {', '.join(valid)}.")
    if len(set(given)) < len(given):
        raise InputError(f"A {kind} is named twice in {list(given)}.")
