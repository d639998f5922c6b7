"""The states of a model's blocks, collected for a bounded sample of tokens.

State 0 is what enters block 0 (`blocks.0.hook_resid_pre`: the embeddings, image features included),
state l is what leaves block l - 1 (`blocks.{l-1}.hook_resid_post`). The last state is taken before
the final norm; Hugging Face's `hidden_states[-1]` is after it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from mm_lens.cache import LayoutCache
from mm_lens.datasets import Sample
from mm_lens.errors import DataError, InputError, MMLensError
from mm_lens.inputs import Inputs
from mm_lens.layout import TokenLayout
from mm_lens.profile import Samples
from mm_lens.sampling import MODALITIES, Modality, TokenSample, digest
from mm_lens.streams import Stream, main_stream_hooks

OnError: TypeAlias = Literal["raise", "skip"]


@dataclass
class States:
    """A sample of tokens, their states, and what they were taken from.

    Attributes:
        tokens: the sample.
        names: hook of every state.
        layers: states that were collected, ascending.
        streams: streams that were collected.
        n_samples: samples read.
        skipped: samples that could not be read: their id or index, and why.
        fingerprint: of the samples read, whatever their order: the exclusive or of their digests.
    """

    tokens: TokenSample
    names: tuple[str, ...]
    layers: tuple[int, ...]
    streams: tuple[Stream, ...]
    n_samples: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    fingerprint: int = 0


def state_names(n_layers: int) -> tuple[str, ...]:
    """Hook of every state of a model."""
    return (
        "blocks.0.hook_resid_pre",
        *(f"blocks.{i}.hook_resid_post" for i in range(n_layers)),
    )


def collect(
    model: Any,
    dataset: Samples,
    *,
    n_samples: int,
    streams: tuple[Stream, ...],
    modalities: tuple[Modality, ...],
    k: int,
    batch_size: int,
    seed: int,
    progress: bool,
    on_error: OnError,
) -> States:
    """Run a model over the first `n_samples` of a data set, keeping `k` tokens per modality.

    Raises:
        DataError: two samples have one id, or all were skipped; with `on_error` "raise", a sample
            cannot be read.
        InputError: the sample of tokens would not fit into memory.
    """
    names = state_names(model.cfg.n_layers)
    _check_memory(k * len(names) * len(streams) * 2, model.cfg)
    states = States(
        TokenSample(k, len(names), modalities, seed), names, tuple(range(len(names))), streams
    )
    reader = _Reader(dataset, n_samples, batch_size, on_error, states.skipped)
    # Of the logits, nothing is needed: at real size they would be most of the memory.
    forward = inspect.signature(model.original_model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}
    with (
        torch.no_grad(),
        tqdm(total=n_samples, desc="samples", unit="sample", disable=not progress) as bar,
    ):
        for samples, inputs in reader.batches(model, bar):
            states.n_samples += len(samples)
            documents = [_document(sample) for sample in samples]
            for sample, document in zip(samples, documents, strict=True):
                states.fingerprint ^= digest(repr((sample.id, sample.text, document)))
            wanted = states.tokens.plan(
                inputs.layout, inputs.input_ids, [sample.id for sample in samples], documents
            )
            for stream in streams if wanted else ():
                capture = states.tokens.hooks(stream, names)
                before = main_stream_hooks(model) if stream == "main" else []
                model.run_with_hooks(inputs, fwd_hooks=[*before, *capture], **options)
    if not states.n_samples:
        raise DataError(
            f"All {len(states.skipped)} samples were skipped; the first: "
            f"{states.skipped[0]['reason']}"
        )
    return states


def _document(sample: Sample) -> int:
    """Id of what a sample shares with others: its image, or its text where it has none.

    Several questions about one image repeat its tokens; held out or resampled one by one they
    would pass for independent.
    """
    if sample.image is None:
        return digest(sample.text)
    image = sample.image
    return digest(repr((image.mode, image.size)).encode() + image.tobytes())


class _Reader:
    """Samples in batches that are ready for the model; keeps account of those left out."""

    def __init__(
        self,
        dataset: Samples,
        n_samples: int,
        batch_size: int,
        on_error: OnError,
        skipped: list[dict[str, str]],
    ) -> None:
        self.dataset, self.n_samples, self.batch_size = dataset, n_samples, batch_size
        self.on_error, self.skipped = on_error, skipped
        self.ids: set[str] = set()

    def batches(self, model: Any, bar: Any) -> Iterator[tuple[list[Sample], Inputs]]:
        """Batches, in order; `bar` advances with what has been worked on."""
        for start in range(0, self.n_samples, self.batch_size):
            stop = min(start + self.batch_size, self.n_samples)
            samples = [s for i in range(start, stop) if (s := self._read(i)) is not None]
            yield from self._prepare(model, samples)
            bar.update(stop - start)

    def _read(self, index: int) -> Sample | None:
        try:
            sample = self.dataset[index]
        except (MMLensError, OSError) as error:
            self._skip(f"#{index}", error)
            return None
        if sample.id in self.ids:
            raise DataError(
                f"Two samples have the id {sample.id!r}, so their tokens cannot be told apart. "
                "Give every sample an id of its own."
            )
        self.ids.add(sample.id)
        return sample

    def _prepare(self, model: Any, samples: list[Sample]) -> Iterator[tuple[list[Sample], Inputs]]:
        if not samples:
            return
        try:
            inputs = model.prepare([s.text for s in samples], [s.image for s in samples])
        except MMLensError as error:
            if len(samples) > 1:  # one of them spoils the batch: find it
                for sample in samples:
                    yield from self._prepare(model, [sample])
            else:
                self._skip(samples[0].id, error)
        else:
            yield samples, inputs

    def _skip(self, name: str, error: Exception) -> None:
        if self.on_error == "raise":
            raise error
        self.skipped.append({"sample": name, "reason": str(error)})


def _check_memory(rows: int, cfg: Any) -> None:
    need = rows * cfg.d_model * torch.empty((), dtype=cfg.dtype).element_size()
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > 0.8 * have:
        raise InputError(
            f"The sampled states would take {need / 2**30:.0f} GiB of this machine's "
            f"{have / 2**30:.0f} GiB memory. Lower `tokens` or profile one stream at a time."
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
    tokens = TokenSample(max(1, int(layout.mask("all").sum())), len(names), modalities, seed)
    labels = [f"row {i}" for i in range(layout.shape[0])]
    tokens.plan(layout, cache.inputs["input_ids"], labels, [digest(label) for label in labels])
    for state, (x, _) in found.items():
        tokens.write(stream, state, x)
    return States(tokens, names, tuple(found), (stream,), len(labels))


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
