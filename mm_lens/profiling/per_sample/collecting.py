"""One pass over the data that describes the tokens of each sample, layer by layer.

Nothing is kept of a state when the next one comes: memory does not grow with layers or samples.
With a run directory every batch is kept when it is done, and a killed run goes on with the next.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from mm_lens._storage.hashing import digest, sampling_key
from mm_lens.model.streams import Stream, main_stream_hooks, state_names
from mm_lens.profiling.per_sample.quantities import MOST, QUANTITIES, describe_tokens
from mm_lens.profiling.points.probe import run_pass
from mm_lens.profiling.reading import Item, Reader
from mm_lens.profiling.run_directory import RunDirectory

COLUMNS = ("index", "id", "shared", "stream", "layer", "modality", "n_tokens", *QUANTITIES)
MODALITIES = ("visual", "text")
MAX_UNITS = 9_999
"""Most units of work: their names have four digits."""


def describe_samples(
    model: Any,
    dataset: Any,
    plan: Any,
    *,
    progress: bool,
    run: RunDirectory | None = None,
) -> pd.DataFrame:
    """A row for each sample, stream, state and modality that it has; see `quantities`.

    Args:
        model: from `mm_lens.load`.
        dataset: the samples.
        plan: which of them, in which streams (`mm_lens.profiling.states.SamplingPlan`); its seed
            chooses tokens where a sample has more than `MOST`.
        progress: show a progress bar on stderr.
        run: keeps what is done, and shares the work with other processes.
    """
    reader = Reader(
        model, dataset, plan.n_samples, plan.batch_size, plan.on_error, plan.chat_template
    )
    span = -(-len(reader.ranges) // MAX_UNITS) or 1
    units = [f"sample.geometry.{k:04d}" for k in range(-(-len(reader.ranges) // span))]
    done: dict[str, Any] = {k: v for k, v in run.sites().items() if k in units} if run else {}
    mine = run.share(units, done) if run else units
    for name in tqdm(mine, desc="each sample", unit="batch", disable=not progress):
        start = units.index(name) * span
        numbers = range(start, min(start + span, len(reader.ranges)))
        rows: list[list[Any]] = []
        for batch in reader.batches(numbers):
            for items, inputs in batch.parts:
                for stream in plan.streams:
                    rows += _describe_batch(model, items, inputs, stream, plan.seed)
        done[name] = rows
        if run:
            run.keep_site(name, rows)
    if run:
        done = run.gather(run.sites, lambda found: set(units) <= found.keys())
    found = pd.DataFrame([row for name in units for row in done[name]], columns=list(COLUMNS))
    return found.astype(dict.fromkeys(QUANTITIES, float))


@torch.no_grad()
def _describe_batch(
    model: Any, items: list[Item], inputs: Any, stream: Stream, seed: int
) -> list[list[Any]]:
    masks = {name: inputs.layout.mask(name) for name in MODALITIES}
    counts = {name: mask.sum(1).tolist() for name, mask in masks.items()}
    chosen = {
        name: [_choose(mask[row], item, seed) for row, item in enumerate(items)]
        for name, mask in masks.items()
    }
    rows: list[list[Any]] = []
    before: dict[tuple[int, str], Tensor] = {}

    def note(state: Tensor, layer: int) -> None:
        for row, item in enumerate(items):
            means = {
                name: state[row][masks[name][row].to(state.device)].double().mean(0)
                for name in MODALITIES
                if counts[name][row]
            }
            for name, other in zip(MODALITIES, MODALITIES[::-1], strict=True):
                if not counts[name][row]:
                    continue
                x = state[row][chosen[name][row].to(state.device)]
                numbers = describe_tokens(x, before.get((row, name)), means.get(other))
                before[row, name] = x.clone()
                place = [item.index, item.id, f"{item.document:016x}", stream, layer, name]
                rows.append([*place, counts[name][row], *(numbers[q] for q in QUANTITIES)])

    def hook_of(layer: int) -> Any:
        return lambda state, hook: note(state.detach(), layer)

    hooks = [(name, hook_of(k)) for k, name in enumerate(state_names(model.cfg.n_layers))]
    earlier = main_stream_hooks(model) if stream == "main" else []
    run_pass(model, inputs, [*earlier, *hooks])
    return sorted(rows, key=lambda row: (row[0], row[4], row[5]))


def _choose(mask: Bool[Tensor, " pos"], item: Item, seed: int) -> Tensor:
    """Positions of the tokens that are looked at: all, or those with the smallest keys."""
    positions = mask.nonzero().squeeze(1).cpu()
    if len(positions) <= MOST:
        return positions
    # Counted from the first token of the row: padding changes nothing.
    keys = sampling_key(torch.full_like(positions, digest(item.id)), positions - positions[0], seed)
    return positions[keys.argsort()[:MOST].sort().values]
