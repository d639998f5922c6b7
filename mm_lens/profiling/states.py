"""The states at a model's hooks, collected for a bounded sample of tokens.

By default those of the residual stream: state 0 is what enters block 0 (`blocks.0.hook_resid_pre`:
the embeddings, image features included), state l is what leaves block l - 1
(`blocks.{l-1}.hook_resid_post`). The last state is taken before the final norm; Hugging Face's
`hidden_states[-1]` is after it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

from mm_lens._storage.checked import REMEDY
from mm_lens._storage.hashing import digest
from mm_lens.data.samples import Samples
from mm_lens.errors import DataError, InputError
from mm_lens.model.binding import identify_documents
from mm_lens.model.cache import LayoutCache
from mm_lens.model.inputs import Inputs
from mm_lens.model.streams import Stream, main_stream_hooks, state_names
from mm_lens.profiling.collecting.counting import Counted, check_counted, count_tokens
from mm_lens.profiling.collecting.progress import Bar, Piece
from mm_lens.profiling.collecting.staging import Staging
from mm_lens.profiling.collecting.token_sample import (
    MODALITIES,
    PATCH,
    Group,
    MergedSample,
    Modality,
    TokenSample,
)
from mm_lens.profiling.points.cached import CachedStates, held_names
from mm_lens.profiling.points.pairs import Pairs, known_pairs, plan_spots, resolve_pairs
from mm_lens.profiling.points.patches import find_patches
from mm_lens.profiling.points.point import Point, Spot, flow_key, is_tower
from mm_lens.profiling.points.probe import run_pass
from mm_lens.profiling.points.selection import (
    Heads,
    Hooks,
    check_patches,
    choose_heads,
    choose_points,
    describe,
    drop_repeated,
    resolve_names,
)
from mm_lens.profiling.reading import Item, OnError, Reader
from mm_lens.profiling.run_directory import Part, RunDirectory

__all__ = ["SamplingPlan", "States", "collect", "from_cache", "state_names", "state_points"]

COMMIT_SECONDS = 60.0
"""How much work a crash may cost; a commit waits for the disk."""


@dataclass(frozen=True)
class SamplingPlan:
    """What the states follow from, besides model and data.

    Attributes:
        n_samples: the first so many of the data set are used.
        streams: streams to run.
        modalities: modalities whose tokens are sampled.
        k: most tokens per modality.
        batch_size: samples in a forward pass.
        seed: of the choice of tokens.
        on_error: what happens with a sample that cannot be read.
        chat_template: whether prompts are rendered by the chat template; None leaves out those that
            hold placeholders.
        points: hooks whose states are kept; None: the states of the residual stream.
        spots: what is measured at them; None: each, alone and with the one before.
        honest: most tokens that the honest preset takes of them; None: all.
    """

    n_samples: int
    streams: tuple[Stream, ...]
    modalities: tuple[Modality, ...]
    k: int
    batch_size: int
    seed: int
    on_error: OnError
    chat_template: bool | None = None
    points: tuple[Point, ...] | None = None
    spots: tuple[Spot, ...] | None = None
    honest: int | None = None

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of tokens to sample."""
        seen_by_tower = any(point.tower for point in self.points or ())
        return (*self.modalities, PATCH) if seen_by_tower else self.modalities


@dataclass
class States:
    """A sample of tokens, their states, and what they were taken from.

    Attributes:
        tokens: the sample.
        points: hooks whose states are kept, in the order in which data flows.
        spots: what is measured at them.
        streams: streams that were collected.
        n_samples: samples read.
        skipped: samples that could not be read: their index, their id if it is known, and why.
        fingerprint: of the samples read, whatever their order: the exclusive or of their digests.
        templated: samples whose prompt the chat template was applied to.
        honest: most tokens that the honest preset takes of them; None: all.
    """

    tokens: MergedSample
    points: tuple[Point, ...]
    spots: tuple[Spot, ...]
    streams: tuple[Stream, ...]
    n_samples: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: int = 0
    templated: int = 0
    honest: int | None = None


def collect(
    model: Any,
    dataset: Samples,
    plan: SamplingPlan,
    counted: Counted | None = None,
    *,
    progress: bool,
    run: RunDirectory | None = None,
) -> States:
    """Run a model over a data set, keeping the states of some tokens.

    Args:
        model: the model.
        dataset: the samples.
        plan: which samples, streams and tokens.
        counted: what `count_tokens` has told of them; None: it is asked here.
        progress: show a progress bar on stderr.
        run: keeps the states in files, resumes where it was left, and shares the work with
            other processes. Without it, states stay in memory.

    Raises:
        DataError: two samples have one id, or all were skipped; with `on_error` "raise", a sample
            cannot be read; a file of the run directory is damaged.
    """
    if plan.points is None or plan.spots is None:
        points, spots = state_points(model)
        plan = replace(plan, points=points, spots=spots)
    if run is None:
        part = Part(TokenSample(plan.k, plan.groups, plan.seed))
        others: list[Part] = []
    else:
        part, others = run.parts(plan.k, plan.groups, plan.seed)
    reader = Reader(
        model, dataset, plan.n_samples, plan.batch_size, plan.on_error, plan.chat_template
    )
    done = {number for each in (part, *others) for number in each.batches}
    numbers = range(len(reader.ranges))
    mine = run.share(numbers, done) if run else [*numbers]
    if done and progress and run:
        samples = sum(len(reader.ranges[number]) for number in done)
        tqdm.write(
            f"Resuming {run.path}: {samples:,} of {plan.n_samples:,} samples are done.",
            file=sys.stderr,
        )
    counted = (counted or count_tokens(model, dataset, plan)) if mine else Counted()
    committed = time.monotonic()
    with (
        torch.no_grad(),
        Staging() as staging,
        _bar(reader, counted, part, mine, run, progress) as bar,
    ):
        part.sample.speed_up(counted.limits, staging)
        for batch in reader.batches(mine):
            for items, inputs in batch.parts:
                _take(model, part, items, inputs, plan)
            part.skipped += batch.skipped
            part.batches.append(batch.number)
            bar.step()
            if run and time.monotonic() - committed >= COMMIT_SECONDS:
                staging.drain()
                run.commit(part)
                committed = time.monotonic()
        staging.drain()
    if run:
        if mine:
            run.commit(part)
        number_of = len(reader.ranges)
        others = run.gather(
            lambda: run.parts(plan.k, plan.groups, plan.seed)[1],
            lambda found: len({n for each in (part, *found) for n in each.batches}) == number_of,
        )
    found = _merge([part, *others], dataset, plan)
    check_counted(found.tokens, counted.limits)
    return found


def _take(
    model: Any,
    part: Part,
    items: list[Item],
    inputs: Inputs,
    plan: SamplingPlan,
) -> None:
    """Run the model on a batch, and keep what belongs to the sample."""
    for item in items:
        if (earlier := part.ids.setdefault(digest(item.id), item.index)) != item.index:
            raise _same_id(item.id, earlier, item.index)
        part.fingerprint ^= item.mark
    part.templated += sum(inputs.templated)
    (layout, tokens), patches = inputs.on_cpu, None
    if PATCH in plan.groups:
        patches = find_patches(model.family, layout, inputs)
    wanted = part.sample.plan(
        layout,
        tokens,
        [item.id for item in items],
        [item.document for item in items],
        patches,
    )
    for stream in plan.streams if wanted else ():
        # The tower is the same in every stream.
        kept = [
            (i, point)
            for i, point in enumerate(plan.points or ())
            if not point.tower or (patches is not None and stream == plan.streams[0])
        ]
        before = main_stream_hooks(model) if stream == "main" else []
        run_pass(model, inputs, [*before, *part.sample.hooks(stream, kept)])


def _merge(
    parts: list[Part],
    dataset: Samples,
    plan: SamplingPlan,
) -> States:
    """What the processes have collected, as if one had collected it."""
    ids: dict[int, int] = {}
    fingerprint = templated = 0
    batches = Counter(number for part in parts for number in part.batches)
    if twice := [number for number, times in batches.items() if times > 1]:
        raise DataError(
            f"Two processes have done the same batches (#{min(twice)} …), so tokens would count "
            f"twice. {REMEDY}"
        )
    for part in parts:
        fingerprint ^= part.fingerprint
        templated += part.templated
        for name, index in part.ids.items():
            if (earlier := ids.setdefault(name, index)) != index:
                raise _same_id(dataset[index].id, *sorted((earlier, index)))
    skipped = sorted((entry for part in parts for entry in part.skipped), key=_index)
    if not ids:
        raise DataError(
            f"All {len(skipped)} samples were skipped; the first: {skipped[0]['reason']}"
        )
    tokens = MergedSample(plan.k, plan.modalities, [part.sample for part in parts])
    kept = plan.points or (), plan.spots or ()
    return States(
        tokens, *kept, plan.streams, len(ids), skipped, fingerprint, templated, plan.honest
    )


def state_points(model: Any) -> tuple[tuple[Point, ...], tuple[Spot, ...]]:
    """The states of the residual stream, each alone and with the one before."""
    points, asked = choose_points(model, None)
    return tuple(points), plan_spots(points, asked, resolve_pairs(model, ["states"]), {})


def _index(skipped: dict[str, Any]) -> int:
    index: int = skipped["index"]
    return index


def _same_id(name: str, one: int, two: int) -> DataError:
    return DataError(
        f"Samples #{one} and #{two} both have the id {name!r}, so their tokens cannot be told "
        "apart. Give every sample an id of its own."
    )


def _bar(
    reader: Reader,
    counted: Counted,
    part: Part,
    mine: list[int],
    run: RunDirectory | None,
    progress: bool,
) -> Bar:
    """The progress of this process, what it did in an earlier try included."""
    pieces = []
    for number in mine:
        batch = reader.ranges[number]
        longest = max((counted.lengths[i] for i in batch), default=1) if counted.lengths else 1
        pieces.append(Piece(len(batch), len(batch) * longest))  # rows are padded to the longest
    count = run.processes.count if run else 1
    return Bar(
        pieces,
        sum(len(reader.ranges[number]) for number in part.batches),
        desc=f"samples (1 of {count} processes)" if count > 1 else "samples",
        unit="sample",
        disable=not progress,
    )


def from_cache(
    cache: Any,
    modalities: tuple[Modality, ...] | None,
    stream: Stream,
    seed: int,
    hooks: Hooks = None,
    pairs: Pairs = None,
    heads: Heads = False,
) -> States:
    """Every token of a cache, with the states that it holds.

    Args:
        cache: a `LayoutCache` with states of the full stream, or of the modalities' views.
        modalities: None takes all that the cache has.
        stream: what the states are.
        seed: orders the tokens.
        hooks: hooks to measure; None: every component that the cache holds, a state once.
        pairs: hooks to relate; None: the known pairs among them.
        heads: heads to measure one by one.

    Raises:
        InputError: the cache holds no state, or not of these modalities, or no layout.
    """
    layout = getattr(cache, "layout", None)
    if not isinstance(cache, LayoutCache) or layout is None:
        raise InputError(
            "This cache does not know which positions are visual. Take one from "
            "model.run_with_cache(inputs, names_filter=…) with inputs = model.prepare(…)."
        )
    bridge: Any = cache.model
    links = resolve_pairs(bridge, pairs)
    asked, _ = resolve_names(bridge, hooks) if hooks is not None else (held_names(cache), None)
    ends = [name for link in links for name in link if hooks is not None or name not in asked]
    cached = CachedStates(cache, layout)
    found = {name: cached.read(name) for name in dict.fromkeys([*asked, *ends])}
    if hooks is None:
        found = {name: x for name, x in found.items() if x.groups}
        kept = drop_repeated(list(found), lambda a, b: torch.equal(found[a].x, found[b].x))
        asked = [name for name in kept if name in asked]
    elif missing_hooks := [name for name, x in found.items() if not x.groups]:
        raise InputError(
            f"The cache does not hold {missing_hooks[0]}. Cache it with "
            f"names_filter={missing_hooks[0]!r}."
        )
    if not found:
        raise InputError(
            "The cache holds no states of tokens. "
            'Cache some with names_filter=mm_lens.names(["resid_pre", "resid_post", "attn_out"]).'
        )
    groups = set.intersection(
        *(x.groups for name, x in found.items() if not is_tower(name)), {"visual", "text"}
    )
    has = tuple(m for m in MODALITIES if groups >= ({"visual", "text"} if m == "all" else {m}))
    modalities = modalities or (("visual",) if all(map(is_tower, found)) else has)
    if not modalities or (missing := [m for m in modalities if m not in has]):
        raise InputError(
            f"Not all states in the cache are there for {' and '.join(missing or MODALITIES)} "
            "tokens. Cache those of the full stream with "
            'names_filter=mm_lens.names(["resid_pre", "resid_post"]).'
        )
    names = sorted({*asked, *(name for name in ends if name in found)}, key=flow_key)
    points = [describe(bridge, name, found[name].shape) for name in names]
    check_patches(points, modalities)
    spots = plan_spots(
        points,
        asked,
        links if pairs is not None else known_pairs(bridge, points),
        choose_heads(points, heads),
    )
    tower = any(point.tower for point in points)
    patches = find_patches(bridge.family, layout, cache.inputs) if tower else None
    k = max(1, int(layout.mask("all").sum()), len(patches.tile) if patches else 0)
    tokens = TokenSample(k, (*modalities, PATCH) if tower else modalities, seed)
    labels = [f"row {i}" for i in range(layout.shape[0])]
    # Rows of one picture are one sample: intervals resample pictures, folds hold them out.
    documents = identify_documents(cache.frame)
    tokens.plan(layout, cache.inputs["input_ids"], labels, documents, patches)
    for state, point in enumerate(points):
        tokens.write(stream, state, found[point.hook].x, point)
    merged = MergedSample(tokens.k, modalities, [tokens])
    return States(merged, tuple(points), spots, (stream,), len(labels))
