"""The metrics of a profile, site by site: one stream, modality and hook (or head) at a time.

What compares the modalities has sites of its own, at "visual-text". What states are read as is told
of the residual stream alone: of nothing else does the model read words.

A site reads the states of its hook and of those that lead to it, two at a time. Sites are
independent: processes share them, and a resumed run does those that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from math import nan
from typing import Any, Literal, NamedTuple, TypeAlias

import pandas as pd
import torch
from einops import rearrange

from mm_lens.errors import InputError
from mm_lens.metrics import Estimate, Metric, Tokens, evaluate
from mm_lens.metrics.intervals import Replicates
from mm_lens.metrics.tokens import join_modalities
from mm_lens.profiling.collecting.progress import Bar, Piece
from mm_lens.profiling.collecting.token_sample import BETWEEN, PATCH, Modality
from mm_lens.profiling.points.numbers import measure
from mm_lens.profiling.points.point import Point, Spot
from mm_lens.profiling.points.readings import Readout
from mm_lens.profiling.result import COLUMNS, PLACE
from mm_lens.profiling.run_directory import RunDirectory
from mm_lens.profiling.states import States

Where: TypeAlias = Literal["visual", "text", "all", "visual-text"]
Site: TypeAlias = tuple[str, Where, Spot]  # stream, modality, hook or head
Source: TypeAlias = tuple[int, int]  # index of a hook, head
Found: TypeAlias = list[tuple[Source | None, str, Estimate]]  # None: a metric of one hook
_CACHED = 2


class Place(NamedTuple):
    """What an estimate is of: columns of the table."""

    stream: str
    layer: int
    hook: str
    component: str
    head: int
    source: str
    modality: str
    metric: str


class Evaluation:
    """The metrics of all sites of some states.

    Args:
        states: what to measure.
        metrics: what to compute.
        seed: of everything random in the metrics.
        device: where to compute.
        run: keeps finished sites, and shares them with other processes.
        readout: reads states as words, for metrics of that.

    Raises:
        InputError: a metric compares modalities that were not sampled both.
    """

    def __init__(
        self,
        states: States,
        metrics: Sequence[Metric],
        seed: int,
        device: str | torch.device = "cpu",
        run: RunDirectory | None = None,
        readout: Readout | None = None,
    ) -> None:
        check_between(metrics, states.tokens.modalities)
        self.states, self.metrics, self.seed = states, metrics, seed
        self.device, self.run, self.readout = device, run, readout
        self._last: dict[tuple[str, Modality, int], Tokens | None] = {}

    def estimates(self, progress: bool) -> list[tuple[Place, Estimate]]:
        """Every estimate, by stream, modality and hook.

        Raises:
            DataError: a file of the run directory is damaged.
        """
        sites = self._sites()
        found = self._kept()
        done = [site for site in sites if self._name(site) in found]
        mine = self.run.share(sites, done) if self.run else sites
        pieces = [self._piece(*site) for site in mine]
        with Bar(pieces, len(done), desc="metrics", unit="site", disable=not progress) as bar:
            for site in mine:
                results = found[self._name(site)] = self._evaluate(*site)
                if self.run:
                    content = [[source, name, asdict(e)] for source, name, e in results]
                    self.run.keep_site(self._name(site), content)
                bar.step()
        if self.run:
            names = {self._name(site) for site in sites}
            found = self.run.gather(self._kept, lambda found: names <= found.keys())
        return [entry for site in sites for entry in self._placed(site, found[self._name(site)])]

    def _sites(self) -> list[Site]:
        """Patches are visual tokens, and the same in every stream."""
        states = self.states
        between = any(metric.given == "modalities" for metric in self.metrics)
        wheres: list[Where] = [*states.tokens.modalities, *([BETWEEN] if between else [])]
        return [
            (stream, where, spot)
            for stream in states.streams
            for where in wheres
            for spot in states.spots
            if where != BETWEEN or spot.alone
            if not states.points[spot.point].tower
            or (where == "visual" and stream == states.streams[0])
        ]

    def _piece(self, stream: str, where: Where, spot: Spot) -> Piece:
        """What a site takes beside others: measured on a CPU at widths of 96 to 4,096."""
        point, kinds = self._point((spot.point, spot.head)), {m.kind for m in self.metrics}
        group: Modality = "all" if where == BETWEEN else where
        n = self.states.tokens.count(PATCH if point.tower else group)
        d = point.width if spot.head < 0 else point.width // point.heads
        cost = n * d * d
        if "dimension" in kinds and spot.alone:
            cost += n * n * (d + 28)
        if "linearity" in kinds:
            cost += len(spot.sources) * (20 * n * d * d + 250 * d**3)
        return Piece(1, cost + 1, (where, point.tower, d, len(spot.sources), spot.alone))

    def _name(self, site: Site) -> str:
        stream, where, spot = site
        return f"{stream}.{where}.{self.states.spots.index(spot):03}"

    def _kept(self) -> dict[str, Found]:
        """Estimates of the sites in the run directory."""
        kept = self.run.sites() if self.run else {}
        return {
            site: [
                (None if source is None else (source[0], source[1]), name, _estimate(fields))
                for source, name, fields in content
            ]
            for site, content in kept.items()
            if site.partition(".")[0] in self.states.streams  # others keep things of their own
        }

    def _placed(self, site: Site, found: Found) -> Iterator[tuple[Place, Estimate]]:
        stream, where, spot = site
        points = self.states.points
        point = points[spot.point]
        for source, metric, estimate in found:
            start = "" if source is None else points[source[0]].label(source[1])
            of = (point.layer, point.hook, point.component, spot.head, start)
            yield Place(stream, *of, where, metric), estimate

    def _evaluate(self, stream: str, where: Where, spot: Spot) -> Found:
        """The metrics of a site; those of two hooks stand at the later one."""
        target = (spot.point, spot.head)
        if where == BETWEEN:
            return self._between(stream, target)
        modality: Modality = where
        metrics = self.metrics if spot.alone else [m for m in self.metrics if m.arity == 2]
        doubles = [m for m in metrics if m.arity == 2]
        singles = [m for m in metrics if m.arity == 1 and m.given == "states"]
        results: Found = []
        for source in spot.sources if doubles else ():
            pair = self._pair(stream, modality, source, target)
            if pair is None:
                found = {m.name: _missing(modality) for m in doubles}
            else:
                before, after = pair
                numbers = self._numbers(after, modality, target)
                found = measure(before, after, doubles, self.seed, **numbers)
            results += [(source, name, estimate) for name, estimate in found.items()]
        tokens = self._tokens(stream, modality, target)
        if tokens is None:
            return [*results, *((None, m.name, _missing(modality)) for m in singles)]
        numbers = self._numbers(tokens, modality, target)
        found = measure(tokens, None, singles, self.seed, **numbers)
        found |= self._read(stream, tokens, modality, spot)
        return [*results, *((None, name, estimate) for name, estimate in found.items())]

    def _between(self, stream: str, target: Source) -> Found:
        """What compares the modalities at a hook, from as many tokens as the honest preset has."""
        chosen = [m for m in self.metrics if m.given == "modalities"]
        sides = [self._tokens(stream, modality, target) for modality in ("visual", "text")]
        missing = [name for name, side in zip(("visual", "text"), sides, strict=True) if not side]
        if missing:
            return [(None, metric.name, _missing(missing[0])) for metric in chosen]
        few = [_first(side, self.states.honest or len(side)) for side in sides if side]
        found = evaluate(join_modalities(*few), None, chosen, self.seed, given="modalities")
        return [(None, name, estimate) for name, estimate in found.items()]

    def _read(
        self, stream: str, tokens: Tokens, modality: Modality, spot: Spot
    ) -> dict[str, Estimate]:
        """What the states of the residual stream are read as."""
        chosen = [metric for metric in self.metrics if metric.given == "readings" and spot.alone]
        point = self.states.points[spot.point]
        if (
            not chosen
            or self.readout is None
            or not self.readout.reads(stream, point.hook, spot.head)
        ):
            return {}
        hooks = [each.hook for each in self.states.points]
        if self.readout.last not in hooks:
            note = f"compared with the last state, which is not there ({self.readout.last})"
            none = Estimate(nan, nan, nan, len(tokens), len(tokens) / tokens.d, nan, note)
            return {metric.name: none for metric in chosen}
        last = self._tokens(stream, modality, (hooks.index(self.readout.last), -1))
        assert last is not None, "the same tokens at every state"
        here, there = (_first(each, self.states.honest or len(each)) for each in (tokens, last))
        readings = replace(here, x=self.readout.read(here.x, there.x).to(here.x.device))
        found = evaluate(readings, None, chosen, self.seed, given="readings")
        return {name: replace(e, n_over_d=e.n_tokens / here.d) for name, e in found.items()}

    def _numbers(self, tokens: Tokens, modality: Modality, which: Source) -> dict[str, int]:
        """How many of these tokens the honest preset takes, and how many there are in the data."""
        seen = self.states.tokens.seen()
        if self._point(which).tower:
            groups: tuple[str, ...] = (PATCH,)
        else:
            groups = ("visual", "text") if modality == "all" else (modality,)
        total = sum(seen[group] for group in groups)
        # All of the sample may be there, and yet not all have a counterpart at the other hook.
        whole = total <= self.states.tokens.k
        return {
            "most": self.states.honest or len(tokens),
            "equal": equal_number(self.states),
            "seen": len(tokens) if whole else total,
        }

    def _pair(
        self, stream: str, modality: Modality, source: Source, target: Source
    ) -> tuple[Tokens, Tokens] | None:
        """The same tokens at two hooks; None if there are none."""
        before = self._tokens(stream, modality, source)
        after = self._tokens(stream, modality, target)
        if before is None or after is None:
            return None
        if self._point(source).tower != self._point(target).tower:
            # Not every patch becomes a token of the language model, nor is every token a patch.
            before, after = (
                one.take(torch.isin(one.keys(), other.keys()))
                for one, other in ((before, after), (after, before))
            )
        return before, after

    def _point(self, source: Source) -> Point:
        return self.states.points[source[0]]

    def _tokens(self, stream: str, modality: Modality, which: Source) -> Tokens | None:
        """The tokens at a hook or head; those that were asked for last are at hand."""
        index, head = which
        point = self.states.points[index]
        at = (self.states.streams[0] if point.tower else stream, modality, index)
        if at not in self._last:
            found = self.states.tokens.tokens(at[0], index, PATCH if point.tower else modality)
            while len(self._last) >= _CACHED:
                del self._last[next(iter(self._last))]
            self._last[at] = found.to(self.device) if found is not None else None
        else:
            self._last[at] = self._last.pop(at)  # used last
        tokens = self._last[at]
        if tokens is None or head < 0:
            return tokens
        heads = rearrange(tokens.x, "n (head d) -> head n d", head=point.heads)
        return replace(tokens, x=heads[head].contiguous())


def check_between(metrics: Sequence[Metric], modalities: Sequence[str]) -> None:
    """Refuse metrics that compare modalities which are not both asked for.

    Raises:
        InputError: they are not.
    """
    between = [metric.name for metric in metrics if metric.given == "modalities"]
    if between and "all" not in modalities and not {"visual", "text"} <= {*modalities}:
        raise InputError(
            f"{between[0]} compares visual and text tokens: name both among the modalities, or "
            "none, which takes all."
        )


def choose_device(model: Any) -> str:
    """Where metrics are computed: on the model's GPU if it is on one."""
    device = str(model.cfg.device)
    return device if "cuda" in device else "cpu"


def equal_number(states: States) -> int:
    """Tokens for metrics that need equal numbers: what every modality that has any can give."""
    counts = [states.tokens.count(modality) for modality in states.tokens.modalities]
    if any(point.tower for point in states.points):
        counts.append(states.tokens.count(PATCH))
    fewest = min((count for count in counts if count), default=0)
    return min(fewest, states.honest or fewest)


def describe_samples(states: States, *, from_data: bool = True) -> dict[str, Any]:
    """Which samples the tokens are of, ready for JSON."""
    return {
        "n_samples": states.n_samples,
        "fingerprint": f"{states.fingerprint:016x}" if states.fingerprint else None,
        "n_skipped": len(states.skipped),
        "skipped": states.skipped,
        "n_templated": states.templated if from_data else None,
    }


def describe_tokens(states: States) -> dict[str, Any]:
    """How many tokens there were and are, ready for JSON."""
    return {
        "seen": states.tokens.seen(),
        "sampled": {m: states.tokens.count(m) for m in states.tokens.modalities},
        "for_dimension": equal_number(states),
    }


def tabulate(model: str, found: Sequence[tuple[Place, Estimate]]) -> pd.DataFrame:
    """The table of a profile."""
    rows = [(model, *place, *_fields(estimate)) for place, estimate in found]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def collect_replicates(found: Sequence[tuple[Place, Estimate]]) -> pd.DataFrame:
    """The replicates of every estimate that has any; see `Profile`."""
    places = [(place, e.replicates) for place, e in found if e.replicates.values]
    rows = [[getattr(place, name) for name in PLACE] for place, _ in places]
    frame = pd.DataFrame(rows, columns=list(PLACE))
    frame["rest"] = [replicates.rest for _, replicates in places]
    frame["freedom"] = [replicates.freedom for _, replicates in places]
    groups = pd.DataFrame(
        [dict(enumerate(replicates.values)) for _, replicates in places], dtype=float
    )
    return pd.concat([frame, groups.rename(columns="g{}".format)], axis=1)


def _fields(e: Estimate) -> tuple[Any, ...]:
    """In the order of the table's columns."""
    return e.value, e.low, e.high, e.n_tokens, e.n_over_d, e.chance, e.warning


def _estimate(fields: dict[str, Any]) -> Estimate:
    """An estimate from its fields as JSON keeps them."""
    replicates = fields["replicates"]
    kept = Replicates(tuple(replicates["values"]), replicates["rest"], replicates["freedom"])
    return Estimate(**{**fields, "replicates": kept})


def _first(tokens: Tokens, most: int) -> Tokens:
    """So many of them, those with the smallest keys."""
    return tokens.take(torch.arange(min(most, len(tokens)), device=tokens.x.device))


def _missing(modality: str) -> Estimate:
    return Estimate(nan, nan, nan, 0, 0.0, nan, f"no {modality} tokens in the data")
