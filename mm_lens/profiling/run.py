"""`profile`: metrics at the hooks of a model, per modality and stream, as one table.

**Hooks.** By default the states of the residual stream; any others by name, and each head of them.
`layer` is the index of a state: 0 is what enters block 0, l what leaves block l - 1; what lies
inside of block l - 1 has layer l too (`mm_lens.profiling.points.point`). A metric of two hooks
(linearity) stands at the later one, so that of consecutive states begins with layer 1. The scripts
of the paper leave the last layer out; it is in the table.

**Tokens.** A bounded sample per modality, the same at every layer and in both streams
(`collecting.token_sample`). Intrinsic dimension depends on the number of tokens, so all
modalities are cut to the same number for it: that of the smallest one that has any. The paper's own
definitions take all tokens instead (`mm_lens.profiling.points.numbers`).

**Cost.** One forward pass of the data per stream, of which only the sampled rows are kept, in
memory or in files; then the metrics, layer by layer. See docs/scaling.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from tqdm import tqdm

from mm_lens.arguments import describe_value, require_number, require_whole, suggest
from mm_lens.data.datasets import as_samples
from mm_lens.data.samples import Samples
from mm_lens.errors import DataError, InputError
from mm_lens.metrics import METRICS, PRESETS, Estimate, Metric, preset
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.streams import STREAMS, Stream
from mm_lens.profiling import provenance
from mm_lens.profiling.collecting.counting import count_tokens
from mm_lens.profiling.collecting.token_sample import BETWEEN, MODALITIES
from mm_lens.profiling.evaluation import (
    Evaluation,
    Place,
    check_between,
    choose_device,
    collect_replicates,
    describe_samples,
    describe_tokens,
    tabulate,
)
from mm_lens.profiling.identity import manifest
from mm_lens.profiling.memory import describe_memory, keep_within, read_limits
from mm_lens.profiling.per_sample.collecting import describe_samples as describe_each
from mm_lens.profiling.per_sample.maps import Maps, count_bytes
from mm_lens.profiling.points.budget import hold, honest_number, restrict
from mm_lens.profiling.points.pairs import (
    Pairs,
    known_pairs,
    name_pairs,
    plan_spots,
    resolve_pairs,
)
from mm_lens.profiling.points.point import Point, Spot
from mm_lens.profiling.points.readings import Readout, keep_last, last_state
from mm_lens.profiling.points.selection import (
    Heads,
    Hooks,
    choose_heads,
    choose_points,
    name_hooks,
)
from mm_lens.profiling.processes import Processes
from mm_lens.profiling.result import Profile
from mm_lens.profiling.run_directory import RunDirectory, open_run
from mm_lens.profiling.states import SamplingPlan, collect, from_cache

T = TypeVar("T", bound=str)


def profile(
    source: Any,
    dataset: Any = None,
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
    hooks: Hooks = None,
    pairs: Pairs = None,
    heads: Heads = False,
    budget: float | None = None,
    memory: str | None = None,
    per_sample: bool = False,
) -> Profile:
    """Measure how a model treats its visual and text tokens, hook by hook.

    ```python
    mm_lens.profile(cache)                                        # the tokens of one cache
    mm_lens.profile(model, mm_lens.datasets.load("easy-vqa"))     # a data set, in bounded memory
    mm_lens.profile(model, data, hooks=["states", "attn_out", "z"], pairs=["components"])
    ```

    Args:
        source: a `LayoutCache`, or a model from `mm_lens.load`.
        dataset: the samples, for a model: whatever `mm_lens.datasets.load` takes ("easy-vqa", a
            path, dictionaries, …) or gives, or any sequence of `mm_lens.data.Sample`.
        streams: "residual", "main" (without skip connections); None profiles a model on both. For a
            cache it says what its states are; None stands for "residual".
        modalities: of "visual", "text", "all"; None takes all (a cache: all that it holds).
        presets: sets of metrics: "honest"; "paper", the paper's own definitions; "between", how the
            modalities lie to each other, with rows at modality "visual-text"; "lens", what states
            are read as through final norm and unembedding, which costs a product with it for each
            token sampled and state.
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
            a killed run is resumed when called again, to the same table on as many threads; several
            processes (`accelerate launch`) share the work. None keeps states in memory.
        restart: discard what an earlier run has left in `run_dir`.
        chat_template: as `model.prepare` takes it. None leaves prompts as they are that hold image
            placeholders, and warns; the provenance says how many had the template.
        hooks: what to measure: short names as in `mm_lens.names` ("attn_out", "z", …), "states" (of
            the residual stream), "tower" (its states), "tower.attn_out", "projector_in",
            "projector_out", "ln1", "ln2" (normalised inputs of attention and MLP), "ln_final";
            full names; patterns with `*`; functions of a name. None takes "states"; of a cache, all
            that it holds.
        pairs: what metrics of two hooks relate: "states", "components" or one of these
            (`mm_lens.profiling.points.pairs`), or two hooks: `("resid_pre", "attn_out")`. None
            takes the known pairs among `hooks`. Hooks that only pairs need are not measured alone.
        heads: True measures each head of q, k, v and z alone as well; a list, only these.
        budget: GiB of memory for states, by default 80 % of the machine's. What does not fit is
            measured in several passes, or, if `tokens` is None, with fewer tokens; it is said.
        memory: what the run may take beside the model and its forward passes: "24GB" of host
            memory, "24GB,gpu=60GB". More passes keep it; else it is refused beforehand.
        per_sample: describe each sample's tokens alone as well (`Profile.samples`): one more pass,
            and a fit for each state, whose maps take `4 width²` numbers of 32 bit each. With
            metrics of the preset "lens", the entropy of each sample's tokens, too.

    Raises:
        InputError: an argument is wrong, the cache does not hold what is needed, `memory` is too
            little, or `run_dir` holds another run.
        DataError: no samples, two samples with one id, (`on_error` "raise") an unreadable one, or a
            damaged file in `run_dir`.
        OSError: `run_dir` cannot be written; a full disk, say. What was done before stays.
    """
    _check_names("stream", streams or (), STREAMS)
    _check_names("modality", modalities or (), MODALITIES)
    _check_names("on_error", (on_error,), ("raise", "skip"))
    for name, count in (("tokens", tokens), ("batch_size", batch_size), ("samples", samples)):
        if count is not None and require_whole(name, count) < 1:
            raise InputError(f"{name}={count} leaves nothing to profile. Give at least 1.")
    require_whole("seed", seed)
    if budget is not None:
        require_number("budget", budget, 0)
    chosen, limits = choose_metrics(metrics, presets), read_limits(memory)

    started, begun, alone = time.monotonic(), provenance.now(), None
    if dataset is None:
        if per_sample:
            raise InputError("per_sample=True describes the samples of data: profile(model, data).")
        if run_dir is not None:
            raise InputError("A cache is in memory already: run_dir is for a model and data.")
        flow = _only_stream(source, streams)
        asked = None if modalities is None else tuple(modalities)
        states, directory = from_cache(source, asked, flow, seed, hooks, pairs, heads), None
        model, data, told = source.model, {"name": data_name or "cache"}, None
        seconds = {"states": time.monotonic() - started}
        readout = make_readout(model, chosen)
        found = Evaluation(states, chosen, seed, readout=readout).estimates(progress)
    else:
        dataset = as_samples(dataset)
        _check(source, dataset)
        if batch_size > 1:
            source.report.require(f"profile with batch_size={batch_size}", "batch")
        model, data = source, provenance.describe_data(dataset, data_name)
        points, spots = choose_spots(model, hooks, pairs, heads, chosen)
        flows, kinds = tuple(streams or STREAMS), tuple(modalities or MODALITIES)
        check_between(chosen, kinds)
        readout = make_readout(model, chosen)
        given = (model, points, spots, flows, kinds, chosen, tokens, budget)
        holding = hold(*given, in_files=run_dir is not None)
        plan = SamplingPlan(
            n_samples=min(len(dataset), samples or len(dataset)),
            streams=flows,
            modalities=kinds,
            k=holding.tokens,
            honest=honest_number(model, tokens, holding),
            batch_size=batch_size,
            seed=seed,
            on_error=on_error,
            chat_template=chat_template,
            points=points,
            spots=spots,
        )
        with _open_directory(run_dir, model, dataset, plan, chosen, restart) as directory:
            shown = progress and (directory is None or directory.processes.main)
            device, itemsize = choose_device(model), model.cfg.dtype.itemsize
            counted = count_tokens(model, dataset, plan)
            more = itemsize, device, count_bytes(model, plan) if per_sample else 0
            holding, demand = keep_within(limits, holding, plan, chosen, counted.seen, *more)
            told = describe_memory(holding, demand)
            if shown:
                tqdm.write(told["said"], file=sys.stderr)
            seconds, found, maps = {"states": 0.0}, [], Maps(directory, device, seed)
            for group in holding.passes:
                now = time.monotonic()
                held, here = restrict(points, group)
                part = replace(plan, points=held, spots=here)
                states = collect(model, dataset, part, counted, progress=shown, run=directory)
                seconds["states"] += time.monotonic() - now
                measured = Evaluation(states, chosen, seed, device, directory, readout)
                found += measured.estimates(shown)
                if per_sample:
                    maps.fit(states, model.cfg.n_layers)
                if group is not holding.passes[-1]:
                    del states, measured  # the next pass needs the memory
            found = _in_order(found, plan)
            if per_sample:
                alone = describe_each(
                    model, dataset, plan, maps, readout, progress=shown, run=directory
                )
    seconds["metrics"] = time.monotonic() - started - seconds["states"]
    about = provenance.describe_model(model)
    return Profile(
        tabulate(about["name"], found),
        {
            "started": begun,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "versions": provenance.versions(),
            "threads": torch.get_num_threads(),
            "processes": directory.processes.count if directory else 1,
            "model": about,
            "data": {**data, **describe_samples(states, from_data=dataset is not None)},
            "tokens": describe_tokens(states),
            "memory": told,
            "options": {
                "streams": list(states.streams),
                "modalities": list(states.tokens.modalities),
                "presets": None if metrics else list(presets),
                "metrics": [metric.name for metric in chosen],
                "hooks": name_hooks(hooks),
                "pairs": name_pairs(pairs),
                "heads": heads if isinstance(heads, bool) else list(heads),
                "tokens": states.honest or states.tokens.k,
                "paper_tokens": states.tokens.k,
                "batch_size": batch_size,
                "samples": samples,
                "seed": seed,
                "on_error": on_error,
                "chat_template": chat_template,
            },
        },
        collect_replicates(found),
        alone,
    )


def choose_metrics(metrics: Sequence[str] | None, presets: Sequence[str]) -> list[Metric]:
    """The metrics by name, or those of the presets."""
    _check_names("metric", metrics or (), METRICS)
    _check_names("preset", presets, PRESETS)
    chosen_by_preset = {metric.name for name in presets for metric in preset(name)}
    wanted = chosen_by_preset if metrics is None else metrics
    chosen = [metric for name, metric in METRICS.items() if name in wanted]
    if not chosen:
        raise InputError("No metric is asked for. Name a preset or a metric.")
    return chosen


def choose_spots(
    model: Any, hooks: Hooks, pairs: Pairs, heads: Heads, metrics: Sequence[Metric] = ()
) -> tuple[tuple[Point, ...], tuple[Spot, ...]]:
    """The hooks whose states are kept, and what is measured at them."""
    links = resolve_pairs(model, pairs)
    read = any(metric.given == "readings" for metric in metrics)
    ends = [name for link in links for name in link]
    extra = [last_state(model)] if read and hooks is not None else []
    points, asked = choose_points(model, hooks, [*ends, *extra])
    if pairs is None:
        links = known_pairs(model, points)
    spots = plan_spots(points, asked, links, choose_heads(points, heads))
    return tuple(points), keep_last(model, points, spots) if read else spots


def make_readout(model: Any, metrics: Sequence[Metric]) -> Readout | None:
    """What reads states as words, if a metric is of that."""
    return Readout(model) if any(metric.given == "readings" for metric in metrics) else None


def _in_order(
    found: list[tuple[Place, Estimate]], plan: SamplingPlan
) -> list[tuple[Place, Estimate]]:
    """By stream, modality and hook, as if one pass over the data had found them."""
    hooks = {point.hook: i for i, point in enumerate(plan.points or ())}
    streams, modalities = list(plan.streams), [*plan.modalities, BETWEEN]

    def key(entry: tuple[Place, Estimate]) -> tuple[int, int, int, int]:
        at = entry[0]
        modality = [str(name) for name in modalities].index(at.modality)
        return [str(s) for s in streams].index(at.stream), modality, hooks[at.hook], at.head

    return sorted(found, key=key)


def _only_stream(source: Any, streams: Sequence[Stream] | None) -> Stream:
    if isinstance(source, VisionLanguageBridge):
        raise InputError("Profiling a model needs data: profile(model, dataset).")
    streams = streams or ("residual",)
    if len(streams) > 1:
        raise InputError("A cache holds the states of one stream: name one.")
    return streams[0]


def _check(model: Any, dataset: Samples) -> None:
    if not isinstance(model, VisionLanguageBridge):
        raise InputError("A data set needs a model to run: profile(mm_lens.load(…), dataset).")
    if not isinstance(dataset, Samples) or isinstance(dataset, str | Mapping):
        raise InputError(
            "A data set is what mm_lens.datasets.load(…) takes or gives: a name, a path, a "
            f"sequence of samples or dictionaries; not {describe_value(dataset)}."
        )
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
        _options(plan, metrics),
    )
    with open_run(Path(path), about, processes, restart) as directory:
        yield directory


def _options(plan: SamplingPlan, metrics: Sequence[Metric]) -> dict[str, Any]:
    """What the numbers follow from, besides model and data."""
    points, spots = plan.points or (), plan.spots or ()
    return {
        **asdict(replace(plan, points=None, spots=None)),
        "points": [point.hook for point in points],
        "spots": [_describe(spot, points) for spot in spots],
        "metrics": [metric.name for metric in metrics],
    }


def _describe(spot: Spot, points: Sequence[Point]) -> str:
    """A spot in a word that differs from that of any other."""
    sources = (points[i].label(head) for i, head in spot.sources)
    return " < ".join([points[spot.point].label(spot.head), *sources]) + "." * spot.alone


def _check_names(kind: str, given: Sequence[T], valid: Collection[T]) -> None:
    if isinstance(given, str) or (unknown := [name for name in given if name not in valid]):
        name = given if isinstance(given, str) else unknown[0]
        meant = f" As a list: [{name!r}]." if name in valid else suggest(name, map(str, valid))
        raise InputError(
            f"Unknown {kind}: {name!r}. Give a sequence out of: {', '.join(valid)}.{meant}"
        )
    if len(set(given)) < len(given):
        raise InputError(f"A {kind} is named twice in {list(given)}.")
