"""How much memory a run takes beside the model and its forward passes, told before it starts.

- *States*: `streams x hooks x tokens x width` numbers of each modality, in memory or on disk.
- *Staging*: four buffers of pinned memory, each for the rows of the widest hook in one batch.
- *Allocator*: freed blocks below 32 MB that the C library keeps, by measurement (`SPARE`).
- *Metrics*: the tokens of two hooks, and what the widest kind of metric makes of them, where the
  model is. What it makes of them was measured (`PEAKS`, by `benchmarks/metrics_memory.py`).

All are upper bounds where the number of tokens is not known beforehand. With a limit, hooks are
measured in several passes over the data where that keeps it (`points.budget`); else it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mm_lens.arguments import describe_value
from mm_lens.errors import InputError
from mm_lens.metrics import Metric
from mm_lens.profiling.collecting.staging import BUFFERS
from mm_lens.profiling.collecting.token_sample import PATCH
from mm_lens.profiling.per_sample.maps import HELD
from mm_lens.profiling.points.budget import GIB, Holding, restrict
from mm_lens.profiling.points.point import Point, Spot

SPARE = 2**27
"""Bytes that a process keeps beside what is counted: measured -48 to 149 MiB in nine profiles
(`benchmarks/profile_memory.py --told`)."""
BLOCK = 8192
"""Rows of 16 bit that are turned into float64 at a time."""
PEAKS: dict[tuple[str, bool], tuple[tuple[float, ...], ...]] = {
    ("linearity", True): ((2.0, 4.0, 2.0, 34.0, 2.1, 36),),
    ("linearity", False): ((2.4, 3.2, 1.7, 45.3, 7.9, 0),),
    ("anisotropy", True): ((2.5, 4.6, 1.8, 2.7, 5.1, 20),),
    ("anisotropy", False): ((4.9, 1.25, 0.1, 4.7, 5.5, 69),),
    ("dimension", True): ((4.0, 1.0, 0, 0, 11, 0), (2.0, 0, 0, 0, 272, 1536)),
    ("dimension", False): ((4.0, 1.0, 0, 0, 11, 0), (2.4, 0, 0, 0, 288, 14_100)),
}
"""Bytes that a kind of metric takes at most, for the paper's definitions (True) and for the others:
the largest of these sums of n d float64 numbers, n d numbers as the model gives them, `BLOCK` rows
of float64 where these have 16 bit, d², n and d float64 numbers. Other kinds: as linearity."""
_UNITS = {"B": 1} | {
    f"{letter}{tail}B": base**power
    for power, letter in enumerate("KMGT", 1)
    for tail, base in (("", 1000), ("i", 1024))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?i?B)")


@dataclass(frozen=True)
class Limits:
    """Bytes that a run may take beside the model; None: any."""

    host: int | None = None
    gpu: int | None = None


def read_limits(memory: Any) -> Limits:
    """What a caller means by "24GB", "24GB,gpu=60GB" or "gpu=60GB"; None: no limit.

    Raises:
        InputError: it is none of these.
    """
    if memory is None:
        return Limits()
    found: dict[str, int] = {}
    parts = memory.split(",") if isinstance(memory, str) else [""]
    for part in parts:
        name, _, size = part.strip().rpartition("=")
        match = _SIZE.fullmatch(size.strip())
        where = name.strip() or "host"
        if match is None or where not in ("host", "gpu") or where in found:
            raise InputError(
                f"memory says how much a run may take, as '24GB' (host) or '24GB,gpu=60GB', in MB, "
                f"GB, MiB or GiB; not {describe_value(memory)}."
            )
        found[where] = int(float(match[1]) * _UNITS[match[2].replace("k", "K")])
    return Limits(**found)


@dataclass(frozen=True)
class Demand:
    """Bytes that a run takes at most, beside the model and its forward passes.

    Attributes:
        states: of the states in memory.
        staging: of pinned memory on the way from a GPU.
        metrics: of the metrics, where they are computed.
        reading: of the states of a few hooks in host memory, on their way to a GPU.
        massive: of the metrics, in addition, where there are massive tokens.
        disk: of the run directory.
        on_gpu: whether metrics are computed on a GPU.
        maps: of the maps that each sample is measured by, in memory.
    """

    states: int
    staging: int
    metrics: int
    reading: int
    massive: int
    disk: int
    on_gpu: bool
    maps: int = 0

    @property
    def host(self) -> int:
        """Of host memory, without what massive tokens add."""
        metrics = self.reading if self.on_gpu else self.metrics
        return self.states + self.staging + metrics + self.maps + SPARE

    @property
    def gpu(self) -> int:
        """Of a GPU's memory, without what massive tokens add."""
        return self.metrics if self.on_gpu else 0

    def most(self, where: str) -> int:
        """With what massive tokens add: on "host" or "gpu"."""
        here = self.on_gpu == (where == "gpu")
        return int(getattr(self, where)) + self.massive * here

    def describe(self) -> str:
        """One sentence that says it beforehand."""
        computed = ("reading", self.reading) if self.on_gpu else ("metrics", self.metrics)
        parts = [("states", self.states), ("staging", self.staging), computed, ("maps", self.maps)]
        parts.append(("spare", SPARE))
        named = ", ".join(f"{name} {_show(size)}" for name, size in parts if size)
        said = f"Beside the model and its forward passes it takes up to {_show(self.host)} of host"
        said += f" memory ({named})"
        said += f", {_show(self.gpu)} of the GPU's (metrics)" * self.on_gpu
        said += f", {_show(self.massive)} more with massive tokens" * bool(self.massive)
        return said + f", {_show(self.disk)} of disk" * bool(self.disk) + "."


def describe_memory(holding: Holding, demand: Demand | None = None) -> dict[str, Any]:
    """How the run kept within its budget, and what it takes, ready for JSON."""
    said = holding.describe() + (f" {demand.describe()}" if demand else "")
    return {
        "said": said,
        "bytes": holding.bytes,
        "budget": holding.budget,
        "passes": len(holding.passes),
        "fewer_tokens": holding.fewer,
        "takes": None if demand is None else {**asdict(demand), "host": demand.host},
    }


def keep_within(
    limits: Limits,
    holding: Holding,
    plan: Any,
    metrics: Sequence[Metric],
    counts: Mapping[str, int] | None,
    itemsize: int,
    device: str,
    maps: int = 0,
) -> tuple[Holding, Demand]:
    """What a run takes, in as many passes over the data as keep it within the limits.

    Args:
        limits: in bytes.
        holding: how the run would be done without them.
        plan: what is sampled (`states.SamplingPlan`).
        metrics: what is computed.
        counts: tokens of each group in the data; None: not known.
        itemsize: bytes of a number.
        device: where metrics are computed.
        maps: bytes of the maps that samples are measured by, all together.

    Raises:
        InputError: it takes more, and more passes do not help.
    """
    needs = Needs(plan, metrics, counts, itemsize, "cuda" in device, maps)
    in_files = holding.budget is None
    demand = needs.demand(holding)
    room = None if limits.host is None else limits.host - demand.most("host") + demand.states
    if room is not None and 0 < room < demand.states:
        holding = holding.within(room) or holding  # what is too much is said below, with the rest
        demand = needs.demand(holding)
    for where, limit in (("host", limits.host), ("gpu", limits.gpu)):
        if limit is not None and demand.most(where) > limit:
            name = "host" if where == "host" else "GPU"
            states = "" if in_files else "states on disk (run_dir=, --states DIR), "
            raise InputError(
                f"The run would take {_show(demand.most(where))} of {name} memory, of "
                f"{_show(limit)} that it may. {demand.describe()} Less is taken by {states}fewer "
                "tokens (tokens=), fewer or narrower hooks (hooks=), or metrics without linearity "
                "(metrics=)."
            )
    return holding, demand


class Needs:
    """What the parts of a run take.

    Args:
        plan, metrics, counts, itemsize, maps: as in `keep_within`.
        on_gpu: whether the model is on a GPU.
    """

    def __init__(
        self,
        plan: Any,
        metrics: Sequence[Metric],
        counts: Mapping[str, int] | None,
        itemsize: int,
        on_gpu: bool,
        maps: int = 0,
    ) -> None:
        self.plan, self.metrics, self.itemsize, self.on_gpu = plan, metrics, itemsize, on_gpu
        self.maps = maps
        self.groups = ("visual", "text") if "all" in plan.modalities else tuple(plan.modalities)
        self.counts = counts or {}

    def demand(self, holding: Holding) -> Demand:
        """What a run takes that is done so."""
        points, in_files = self.plan.points, holding.budget is None
        held = max(self._states(restrict(points, spots)[0]) for spots in holding.passes)
        disk = self._states(points, extra=8) if in_files else 0  # with their checksums
        metrics = massive = reading = 0
        for spot in self.plan.spots:
            for modality in self.plan.modalities:
                computed, more, read = self._at(spot, modality)
                metrics, massive = max(metrics, computed), max(massive, more)
                reading = max(reading, read)
        held = 0 if in_files else held
        maps = min(self.maps, HELD) if in_files else self.maps
        disk += self.maps if in_files else 0
        return Demand(held, self._staging(), metrics, reading, massive, disk, self.on_gpu, maps)

    def number(self, group: str) -> int:
        """Most tokens of a modality, or patches, in the sample."""
        k: int = self.plan.k
        of = ("visual", "text") if group == "all" else (group,)
        known = [self.counts.get(each, k) for each in of]
        return min(k, sum(known))

    def _states(self, points: Sequence[Point], extra: int = 0) -> int:
        """Of the states of some hooks, each with so many bytes more."""
        streams, tokens = len(self.plan.streams), sum(self.number(g) for g in self.groups)
        return sum(
            (self.number(PATCH) if point.tower else streams * tokens)
            * (point.width * self.itemsize + extra)
            for point in points
        )

    def _staging(self) -> int:
        """Of the rows of one batch: of all its tokens, where the sample may take them all."""
        if not self.on_gpu:
            return 0
        widest: int = max(point.width for point in self.plan.points)
        rows = max(self.number(group) for group in self.groups)
        if self.counts:
            share = self.plan.batch_size / max(self.plan.n_samples, 1)
            rows = min(rows, int(share * max(self.counts[group] for group in self.groups)) + 1)
        return BUFFERS * rows * widest * self.itemsize

    def _at(self, spot: Spot, modality: str) -> tuple[int, int, int]:
        """Of the metrics at a hook; in addition with massive tokens; of reading the states."""
        points, s = self.plan.points, self.itemsize
        n = self.number(PATCH if points[spot.point].tower else modality)
        ends = [(spot.point, spot.head), *spot.sources]
        whole = [points[i].width for i, _ in ends]
        own, *sources = [_width(points[i], head) for i, head in ends]
        held = n * s * (whole[0] + max([*whole[1:], whole[0]])) + 2 * 48 * n
        held += n * s * (own + max([0, *sources])) * (spot.head >= 0)
        metrics = self.metrics if spot.alone else [m for m in self.metrics if m.arity == 2]
        found, extra = 0, 0
        for metric in metrics:
            for source in (sources or ()) if metric.arity == 2 else (own,):
                few = self._taken(metric, modality, n)
                rows = own + (source if metric.arity == 2 else 0)
                part = few * rows * s * (few < n)  # a smaller sample of them
                found = max(found, part + peak(metric, few, source, own, s))
                if metric.twin or metric.leaves_out_massive:
                    extra = max(extra, few * rows * s)
        return held + found, extra, 4 * n * max(whole) * s

    def _taken(self, metric: Metric, modality: str, n: int) -> int:
        """How many of the tokens a metric is computed from (`points.numbers`)."""
        if metric.takes_all:
            return n
        most = min(n, self.plan.honest or n)
        if not metric.equal_n:
            return most
        numbers = [self.number(each) for each in self.plan.modalities]
        return min(most, *(number for number in numbers if number), most)


def peak(metric: Metric, n: int, source: int, d: int, itemsize: int) -> int:
    """Bytes that a metric takes of `n` tokens at most, beside the tokens: see `PEAKS`.

    Args:
        metric: the metric; those of its kind share what they take.
        n: tokens.
        source: width of the first hook; of metrics of one hook, the same as `d`.
        d: width of the hook.
        itemsize: bytes of a number as the model gives it.
    """
    phases = PEAKS.get((metric.kind, metric.takes_all), PEAKS["linearity", metric.takes_all])
    mean, squares = (source + d) / 2, (source * source + source * d) / 2
    if metric.kind != "linearity":
        squares = min(squares, n * n)
    block = min(n, BLOCK) * mean * (itemsize == 2)
    sizes = (8 * n * mean, itemsize * n * mean, 8 * block, 8 * squares, 8 * n, 8 * mean)
    return int(max(sum(a * b for a, b in zip(each, sizes, strict=True)) for each in phases))


def _width(point: Point, head: int) -> int:
    return point.width if head < 0 else point.width // max(point.heads, 1)


def _show(size: int) -> str:
    return f"{size / GIB:.3g} GiB"
