"""The metrics of a profile, site by site: one stream, modality and layer at a time.

A site reads the states of its layer and of the one before, so memory holds one pair of hooks.
Sites are independent: processes share them, and a resumed run does those that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import nan
from typing import Any, TypeAlias

import torch
from tqdm import tqdm

from mm_lens.metrics import Estimate, Metric, Tokens
from mm_lens.metrics.intervals import Replicates
from mm_lens.profiling.run_directory import RunDirectory
from mm_lens.profiling.selection import measure
from mm_lens.profiling.states import States
from mm_lens.profiling.token_sample import Modality

Place: TypeAlias = tuple[str, int, str, str, str]  # stream, layer, hook, modality, metric
Site: TypeAlias = tuple[str, Modality, int]  # stream, modality, layer


class Evaluation:
    """The metrics of all sites of some states.

    Args:
        states: what to measure.
        metrics: what to compute.
        seed: of everything random in the metrics.
        device: where to compute.
        run: keeps finished sites, and shares them with other processes.
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
        self._last: tuple[Site, Tokens | None] | None = None

    def estimates(self, progress: bool) -> list[tuple[Place, Estimate]]:
        """Every estimate, by stream, modality and layer.

        Raises:
            DataError: a file of the run directory is damaged.
        """
        sites = [
            (stream, modality, layer)
            for stream in self.states.streams
            for modality in self.states.tokens.modalities
            for layer in self.states.layers
        ]
        found = self._kept()
        done = [site for site in sites if _name(site) in found]
        mine = self.run.share(sites, done) if self.run else sites
        bar = tqdm(
            mine,
            total=len(done) + len(mine),
            initial=len(done),
            desc="metrics",
            unit="site",
            disable=not progress,
        )
        for site in bar:
            found[_name(site)] = self._evaluate(*site)
            if self.run:
                content = {name: asdict(e) for name, e in found[_name(site)].items()}
                self.run.keep_site(_name(site), content)
        if self.run:
            names = {_name(site) for site in sites}
            found = self.run.gather(self._kept, lambda found: names <= found.keys())
        return [entry for site in sites for entry in self._placed(site, found[_name(site)])]

    def _kept(self) -> dict[str, dict[str, Estimate]]:
        """Estimates of the sites in the run directory."""
        kept = self.run.sites() if self.run else {}
        return {
            site: {name: _estimate(fields) for name, fields in content.items()}
            for site, content in kept.items()
        }

    def _placed(
        self, site: Site, estimates: dict[str, Estimate]
    ) -> Iterator[tuple[Place, Estimate]]:
        stream, modality, layer = site
        for metric, estimate in estimates.items():
            yield (stream, layer, self.states.names[layer], modality, metric), estimate

    def _evaluate(self, stream: str, modality: Modality, layer: int) -> dict[str, Estimate]:
        """The metrics of a site by name; those of two hooks stand at the later one."""
        pairs = layer - 1 in self.states.layers
        doubles = [m for m in self.metrics if m.arity == 2 and pairs]
        singles = [m for m in self.metrics if m.arity == 1]
        before = self._tokens(stream, modality, layer - 1) if doubles else None
        tokens = self._tokens(stream, modality, layer)
        if tokens is None:
            return {m.name: _missing(modality) for m in (*doubles, *singles)}
        sample, most = self.states.tokens, self.states.honest or len(tokens)
        seen = sum(sample.seen().values()) if modality == "all" else sample.seen()[modality]
        numbers = {"most": most, "equal": equal_number(self.states), "seen": seen}
        results: dict[str, Estimate] = {}
        if before is not None:
            results |= measure(before, tokens, doubles, self.seed, **numbers)
        return results | measure(tokens, None, singles, self.seed, **numbers)

    def _tokens(self, stream: str, modality: Modality, layer: int) -> Tokens | None:
        """The tokens of a site; those that were asked for last are at hand."""
        site = (stream, modality, layer)
        if self._last is None or self._last[0] != site:
            found = self.states.tokens.tokens(stream, layer, modality)
            self._last = site, found.to(self.device) if found is not None else None
        return self._last[1]


def equal_number(states: States) -> int:
    """Tokens for metrics that need equal numbers: what every modality that has any can give."""
    counts = [states.tokens.count(modality) for modality in states.tokens.modalities]
    fewest = min((count for count in counts if count), default=0)
    return min(fewest, states.honest or fewest)


def _name(site: Site) -> str:
    stream, modality, layer = site
    return f"{stream}.{modality}.{layer:03}"


def _estimate(fields: dict[str, Any]) -> Estimate:
    """An estimate from its fields as JSON keeps them."""
    replicates = fields["replicates"]
    kept = Replicates(tuple(replicates["values"]), replicates["rest"], replicates["freedom"])
    return Estimate(**{**fields, "replicates": kept})


def _missing(modality: Modality) -> Estimate:
    return Estimate(nan, nan, nan, 0, 0.0, nan, f"no {modality} tokens in the data")
