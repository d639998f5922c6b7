"""The states of a model's blocks, collected for a bounded sample of tokens.

State 0 is what enters block 0 (`blocks.0.hook_resid_pre`: the embeddings, image features included),
state l is what leaves block l - 1 (`blocks.{l-1}.hook_resid_post`). The last state is taken before
the final norm; Hugging Face's `hidden_states[-1]` is after it.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mm_lens._storage.checked import REMEDY
from mm_lens._storage.hashing import digest
from mm_lens.data.datasets import Samples
from mm_lens.errors import DataError, InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.cache import LayoutCache
from mm_lens.model.inputs import Inputs
from mm_lens.model.streams import Stream, main_stream_hooks, state_names
from mm_lens.profiling.reading import Item, OnError, Reader, work_ahead
from mm_lens.profiling.run_directory import Part, RunDirectory
from mm_lens.profiling.token_sample import MODALITIES, MergedSample, Modality, TokenSample

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
    honest: int | None = None


@dataclass
class States:
    """A sample of tokens, their states, and what they were taken from.

    Attributes:
        tokens: the sample.
        names: hook of every state.
        layers: states that were collected, ascending.
        streams: streams that were collected.
        n_samples: samples read.
        skipped: samples that could not be read: their index, their id if it is known, and why.
        fingerprint: of the samples read, whatever their order: the exclusive or of their digests.
        templated: samples whose prompt the chat template was applied to.
        honest: most tokens that the honest preset takes of them; None: all.
    """

    tokens: MergedSample
    names: tuple[str, ...]
    layers: tuple[int, ...]
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
    *,
    progress: bool,
    run: RunDirectory | None = None,
) -> States:
    """Run a model over a data set, keeping the states of some tokens.

    Args:
        model: the model.
        dataset: the samples.
        plan: which samples, streams and tokens.
        progress: show a progress bar on stderr.
        run: keeps the states in files, resumes where it was left, and shares the work with
            other processes. Without it, states stay in memory.

    Raises:
        DataError: two samples have one id, or all were skipped; with `on_error` "raise", a sample
            cannot be read; a file of the run directory is damaged.
        InputError: the sample of tokens would not fit into memory.
    """
    names = state_names(model.cfg.n_layers)
    if run is None:
        _check_memory(plan.k * len(names) * len(plan.streams) * 2, model.cfg)
        part = Part(TokenSample(plan.k, plan.modalities, plan.seed))
        others: list[Part] = []
    else:
        part, others = run.parts(plan.k, plan.modalities, plan.seed)
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
    committed = time.monotonic()
    with torch.no_grad(), _bar(reader, part, mine, run, progress) as bar:
        for batch in work_ahead(reader.read, mine):
            for items, inputs in batch.parts:
                _take(model, part, items, inputs, plan.streams, names)
            part.skipped += batch.skipped
            part.batches.append(batch.number)
            bar.update(batch.size)
            if run and time.monotonic() - committed >= COMMIT_SECONDS:
                run.commit(part)
                committed = time.monotonic()
    if run:
        if mine:
            run.commit(part)
        number_of = len(reader.ranges)
        others = run.gather(
            lambda: run.parts(plan.k, plan.modalities, plan.seed)[1],
            lambda found: len({n for each in (part, *found) for n in each.batches}) == number_of,
        )
    return _merge([part, *others], dataset, plan, names)


def _take(
    model: Any,
    part: Part,
    items: list[Item],
    inputs: Inputs,
    streams: tuple[Stream, ...],
    names: tuple[str, ...],
) -> None:
    """Run the model on a batch, and keep what belongs to the sample."""
    for item in items:
        if (earlier := part.ids.setdefault(digest(item.id), item.index)) != item.index:
            raise _same_id(item.id, earlier, item.index)
        part.fingerprint ^= digest(repr((item.id, item.text, item.document)))
    part.templated += sum(inputs.templated)
    wanted = part.sample.plan(
        inputs.layout,
        inputs.input_ids,
        [item.id for item in items],
        [item.document for item in items],
    )
    # Of the logits, nothing is needed: at real size they would be most of the memory.
    forward = inspect.signature(model.original_model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}
    for stream in streams if wanted else ():
        capture = part.sample.hooks(stream, names)
        before = main_stream_hooks(model) if stream == "main" else []
        model.run_with_hooks(inputs, fwd_hooks=[*before, *capture], **options)


def _merge(
    parts: list[Part],
    dataset: Samples,
    plan: SamplingPlan,
    names: tuple[str, ...],
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
    layers = tuple(range(len(names)))
    about = (tokens, names, layers, plan.streams, len(ids), skipped, fingerprint)
    return States(*about, templated, plan.honest)


def _index(skipped: dict[str, Any]) -> int:
    index: int = skipped["index"]
    return index


def _same_id(name: str, one: int, two: int) -> DataError:
    return DataError(
        f"Samples #{one} and #{two} both have the id {name!r}, so their tokens cannot be told "
        "apart. Give every sample an id of its own."
    )


def _bar(
    reader: Reader, part: Part, mine: list[int], run: RunDirectory | None, progress: bool
) -> Any:
    """The progress of this process, what it did in an earlier try included."""
    before = sum(len(reader.ranges[number]) for number in part.batches)
    now = sum(len(reader.ranges[number]) for number in mine)
    count = run.processes.count if run else 1
    return tqdm(
        total=before + now,
        initial=before,
        desc=f"samples (1 of {count} processes)" if count > 1 else "samples",
        unit="sample",
        disable=not progress,
    )


def _check_memory(rows: int, cfg: Any) -> None:
    need = rows * cfg.d_model * torch.empty((), dtype=cfg.dtype).element_size()
    have = psutil.virtual_memory().total
    if need > 0.8 * have:
        raise InputError(
            f"The sampled states would take {need / 2**30:.0f} GiB of this machine's "
            f"{have / 2**30:.0f} GiB memory. Keep them on disk with `run_dir`, lower `tokens`, or "
            "profile one stream at a time."
        )


def from_cache(
    cache: Any, modalities: tuple[Modality, ...] | None, stream: Stream, seed: int
) -> States:
    """Every token of a cache, with the states that it holds.

    Args:
        cache: a `LayoutCache` with states of the full stream, or of the modalities' views.
        modalities: None takes all that the cache has.
        stream: what the states are.
        seed: orders the tokens.

    Raises:
        InputError: the cache holds no state, or not of these modalities, or no layout.
    """
    layout = getattr(cache, "layout", None)
    if not isinstance(cache, LayoutCache) or layout is None:
        raise InputError(
            "This cache does not know which positions are visual. Take one from "
            "model.run_with_cache(inputs, names_filter=…) with inputs = model.prepare(…)."
        )
    names = state_names(cache.model.cfg.n_layers)
    found = {state: _state(cache, name, layout) for state, name in enumerate(names)}
    found = {state: (x, groups) for state, (x, groups) in found.items() if groups}
    if not found:
        raise InputError(
            "The cache holds no states of the residual stream. "
            'Cache them with names_filter=mm_lens.names(["resid_pre", "resid_post"]).'
        )
    groups = set.intersection(*(groups for _, groups in found.values()))
    has = tuple(m for m in MODALITIES if groups >= ({"visual", "text"} if m == "all" else {m}))
    modalities = modalities or has
    if not modalities or (missing := [m for m in modalities if m not in has]):
        raise InputError(
            f"Not all states in the cache are there for {' and '.join(missing or MODALITIES)} "
            "tokens. Cache those of the full stream with "
            'names_filter=mm_lens.names(["resid_pre", "resid_post"]).'
        )
    tokens = TokenSample(max(1, int(layout.mask("all").sum())), modalities, seed)
    labels = [f"row {i}" for i in range(layout.shape[0])]
    tokens.plan(layout, cache.inputs["input_ids"], labels, [digest(label) for label in labels])
    for state, (x, _) in found.items():
        tokens.write(stream, state, x)
    merged = MergedSample(tokens.k, modalities, [tokens])
    return States(merged, names, tuple(found), (stream,), len(labels))


def _state(
    cache: LayoutCache, name: str, layout: TokenLayout
) -> tuple[Float[Tensor, "batch pos d"], set[str]]:
    """A state spread over all positions, and the modalities that the cache has it for."""
    if name in cache.cache_dict:
        full = cache.cache_dict[name]
        full = full if full.ndim == 3 else full[None]  # remove_batch_dim
        if full.shape[:2] != layout.shape:
            raise InputError(
                f"{name} has {full.shape[1]} positions, the inputs {layout.shape[1]}. "
                "Cache without pos_slice."
            )
        return full, {"visual", "text"}
    full = torch.zeros(*layout.shape, 1)
    groups: set[str] = set()
    block, _, tail = name.rpartition(".")
    for group in ("visual", "text"):
        view = cache.cache_dict.get(f"{block}.{group}.{tail}")
        if view is None:
            continue
        rows = view if view.ndim == 3 else view[None]
        if not groups:
            full = rows.new_zeros(*layout.shape, rows.shape[-1])
        full[layout.mask(group).to(rows.device)] = rows[layout.valid(group).to(rows.device)]
        groups.add(group)
    # A modality without tokens has no view, and nothing is missing.
    empty = {g for g in ("visual", "text") if not layout.mask(g).any()}
    return full, groups and groups | empty
