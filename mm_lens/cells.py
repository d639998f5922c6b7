"""The metrics of a profile, cell by cell: one stream, modality and layer at a time.

A cell reads the states of its layer and of the one before, so memory holds one pair of hooks.
Cells are independent: processes share them, and a run that was killed does those that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import nan
from typing import Any, TypeAlias

import torch
from tqdm import tqdm

from mm_lens.metrics import Estimate, Metric, Tokens, evaluate
from mm_lens.metrics.intervals import Replicates
from mm_lens.rundir import RunDirectory
from mm_lens.sampling import Modality
from mm_lens.states import States

Place: TypeAlias = tuple[str, int, str, str, str]  # stream, layer, hook, modality, metric
Cell: TypeAlias = tuple[str, Modality, int]  # stream, modality, layer


class Evaluation:
    """The metrics of all cells of some states.

    Args:
        states: what to measure.
        metrics: what to compute.
        seed: of everything random in the metrics.
        device: where to compute.
        run: keeps finished cells, and shares them with other processes.
    """

    def __init__(
        self,
        states: States,
        metrics: Sequence[Metric],
        seed: int,
        device: str | torch.device = "cpu",
        run: RunDirectory | None = None,
    ) -> None:
        self.states, self.metrics, self.seed = states, metrics, seed
        self.device, self.run = device, run
        self._last: tuple[Cell, Tokens | None] | None = None

    def estimates(self, progress: bool) -> list[tuple[Place, Estimate]]:
        """Every estimate, by stream, modality and layer.

        Raises:
            DataError: a file of the run directory is damaged.
        """
        cells = [
            (stream, modality, layer)
            for stream in self.states.streams
            for modality in self.states.tokens.modalities
            for layer in self.states.layers
        ]
        found = self._kept()
        done = [cell for cell in cells if _name(cell) in found]
        mine = self.run.share(cells, done) if self.run else cells
        bar = tqdm(
            mine,
            total=len(done) + len(mine),
            initial=len(done),
            desc="metrics",
            unit="cell",
            disable=not progress,
        )
        for cell in bar:
            found[_name(cell)] = self._evaluate(*cell)
            if self.run:
                content = {name: asdict(e) for name, e in found[_name(cell)].items()}
                self.run.keep_cell(_name(cell), content)
        if self.run:
            names = {_name(cell) for cell in cells}
            found = self.run.gather(self._kept, lambda found: names <= found.keys())
        return [entry for cell in cells for entry in self._placed(cell, found[_name(cell)])]

    def _kept(self) -> dict[str, dict[str, Estimate]]:
        """Estimates of the cells in the run directory."""
        kept = self.run.cells() if self.run else {}
        return {
            cell: {name: _estimate(fields) for name, fields in content.items()}
            for cell, content in kept.items()
        }

    def _placed(
        self, cell: Cell, estimates: dict[str, Estimate]
    ) -> Iterator[tuple[Place, Estimate]]:
        stream, modality, layer = cell
        for metric, estimate in estimates.items():
            yield (stream, layer, self.states.names[layer], modality, metric), estimate

    def _evaluate(self, stream: str, modality: Modality, layer: int) -> dict[str, Estimate]:
        """The metrics of a cell by name; those of two hooks stand at the later one."""
        pairs = layer - 1 in self.states.layers
        doubles = [m for m in self.metrics if m.arity == 2 and pairs]
        singles = [m for m in self.metrics if m.arity == 1 and not m.equal_n]
        equal = [m for m in self.metrics if m.arity == 1 and m.equal_n]
        before = self._tokens(stream, modality, layer - 1) if doubles else None
        tokens = self._tokens(stream, modality, layer)
        if tokens is None:
            return {m.name: _missing(modality) for m in (*doubles, *singles, *equal)}
        results: dict[str, Estimate] = {}
        if before is not None:
            results |= evaluate(before, tokens, doubles, self.seed)
        results |= evaluate(tokens, None, singles, self.seed)
        # The first tokens of the sample are a smaller sample of the same kind.
        fewer = torch.arange(min(equal_number(self.states), len(tokens)), device=self.device)
        return results | evaluate(tokens.take(fewer), None, equal, self.seed)

    def _tokens(self, stream: str, modality: Modality, layer: int) -> Tokens | None:
        """The tokens of a cell; those that were asked for last are at hand."""
        cell = (stream, modality, layer)
        if self._last is None or self._last[0] != cell:
            found = self.states.tokens.tokens(stream, layer, modality)
            self._last = cell, found.to(self.device) if found is not None else None
        return self._last[1]


def equal_number(states: States) -> int:
    """Tokens for metrics that need equal numbers: what every modality that has any can give."""
    counts = [states.tokens.count(modality) for modality in states.tokens.modalities]
    return min((count for count in counts if count), default=0)


def _name(cell: Cell) -> str:
    stream, modality, layer = cell
    return f"{stream}.{modality}.{layer:03}"


def _estimate(fields: dict[str, Any]) -> Estimate:
    """An estimate from its fields as JSON keeps them."""
    replicates = fields["replicates"]
    kept = Replicates(tuple(replicates["values"]), replicates["rest"])
    return Estimate(**{**fields, "replicates": kept})


def _missing(modality: Modality) -> Estimate:
    return Estimate(nan, nan, nan, 0, 0.0, nan, f"no {modality} tokens in the data")
