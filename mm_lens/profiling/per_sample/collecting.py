"""One pass over the data that describes the tokens of each sample, layer by layer.

Nothing is kept of a state when the next one has come: memory does not grow with layers or samples.
With a run directory every batch is kept when it is done, and a killed run goes on with the next.

Besides the numbers of `quantities`, which follow from a sample's own states:

- `linearity_error`: what the map from the state before leaves of these tokens, fitted to other
  images (`maps`), as a share of their squares about the mean of those images: one minus an R².
  Massive tokens are left out, as from the fit.
- `lens_entropy`, where the profile has it: mean entropy of the words that these tokens are read as
  (`mm_lens.profiling.points.readings`), in nats; of the residual stream only.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from mm_lens._storage.hashing import digest, sampling_key
from mm_lens.model.streams import Stream, main_stream_hooks, state_names
from mm_lens.profiling.per_sample.maps import MODALITIES, Maps
from mm_lens.profiling.per_sample.quantities import MOST, QUANTITIES, describe_tokens
from mm_lens.profiling.points.probe import run_pass
from mm_lens.profiling.points.readings import Readout
from mm_lens.profiling.reading import Item, Reader
from mm_lens.profiling.run_directory import RunDirectory

LINEAR, LENS = "linearity_error", "lens_entropy"
COLUMNS = ("index", "id", "shared", "stream", "layer", "modality", "n_tokens", *QUANTITIES, LINEAR)
"""Of every table; `LENS` comes last, where it was asked for."""
MAX_UNITS = 9_999
"""Most units of work: their names have four digits."""


def describe_samples(
    model: Any,
    dataset: Any,
    plan: Any,
    maps: Maps,
    readout: Readout | None = None,
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
        maps: what `linearity_error` is measured by.
        readout: reads states as words, for `lens_entropy`.
        progress: show a progress bar on stderr.
        run: keeps what is done, and shares the work with other processes.
    """
    maps.gather()
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
                    read = readout if stream == "residual" else None
                    rows += _describe_batch(model, items, inputs, stream, plan.seed, maps, read)
        done[name] = rows
        if run:
            run.keep_site(name, rows)
    if run:
        done = run.gather(run.sites, lambda found: set(units) <= found.keys())
    maps.tell()
    found = pd.DataFrame([row for name in units for row in done[name]], columns=[*COLUMNS, LENS])
    found = found.astype(dict.fromkeys([*QUANTITIES, LINEAR, LENS], float))
    return found if readout else found.drop(columns=LENS)


@torch.no_grad()
def _describe_batch(
    model: Any,
    items: list[Item],
    inputs: Any,
    stream: Stream,
    seed: int,
    maps: Maps,
    readout: Readout | None,
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
        states: dict[tuple[int, str], Tensor] = {
            (row, name): state[row][chosen[name][row].to(state.device)].clone()
            for row in range(len(items))
            for name in MODALITIES
            if counts[name][row]
        }
        entropies = _mean_entropies(states, readout) if readout else {}
        for row, item in enumerate(items):
            means = {
                name: state[row][masks[name][row].to(state.device)].double().mean(0)
                for name in MODALITIES
                if counts[name][row]
            }
            for name, other in zip(MODALITIES, MODALITIES[::-1], strict=True):
                if not counts[name][row]:
                    continue
                x, earlier = states[row, name], before.get((row, name))
                numbers = describe_tokens(x, earlier, means.get(other))
                linear = maps.at(stream, name, layer)
                if linear and earlier is not None:
                    numbers[LINEAR] = linear.error(earlier, x, item.document)
                place = [item.index, item.id, f"{item.document:016x}", stream, layer, name]
                told = [numbers[q] for q in QUANTITIES]
                told += [numbers.get(LINEAR, math.nan), entropies.get((row, name), math.nan)]
                rows.append([*place, counts[name][row], *told])
        before.update(states)

    def hook_of(layer: int) -> Any:
        return lambda state, hook: note(state.detach(), layer)

    hooks = [(name, hook_of(k)) for k, name in enumerate(state_names(model.cfg.n_layers))]
    earlier = main_stream_hooks(model) if stream == "main" else []
    run_pass(model, inputs, [*earlier, *hooks])
    return sorted(rows, key=lambda row: (row[0], row[4], row[5]))


def _mean_entropies(
    states: dict[tuple[int, str], Tensor], readout: Readout
) -> dict[tuple[int, str], float]:
    """Mean entropy over the tokens of each, all of a batch read together."""
    read = readout.entropy(torch.cat([*states.values()])).double()
    parts = read.split([len(x) for x in states.values()])
    return {place: float(part.mean()) for place, part in zip(states, parts, strict=True)}


def _choose(mask: Bool[Tensor, " pos"], item: Item, seed: int) -> Tensor:
    """Positions of the tokens that are looked at: all, or those with the smallest keys."""
    positions = mask.nonzero().squeeze(1).cpu()
    if len(positions) <= MOST:
        return positions
    # Counted from the first token of the row: padding changes nothing.
    keys = sampling_key(torch.full_like(positions, digest(item.id)), positions - positions[0], seed)
    return positions[keys.argsort()[:MOST].sort().values]
