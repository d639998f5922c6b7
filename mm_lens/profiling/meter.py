"""`measuring`: a profile of whatever forward passes run inside of a `with`.

Hooks take the rows of sampled tokens out of every pass, as `profile` does; the loop is the user's.
A pass counts when it is over and every hook has fired: one that fails half-way leaves nothing
behind, and a loop may run it again.

**Which tokens are the same.** A row of a batch is a sample. `Meter.label` names the rows of the
next pass, as `profile` names them after its data set; without it a row is named after its tokens
and pixels. A sample counts once: rows that were seen before are left out, with a warning. The steps
of `generate` are more tokens of the rows that they began with, and text.

**Edits.** A meter sits at its hook points in front of hooks that are attached inside of the `with`:
it sees what these have done further up, not what they do at the same point.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens.hook_points import LensHandle

from mm_lens._storage.checked import read_file, write_file
from mm_lens._storage.fingerprint import weights_digest
from mm_lens._storage.hashing import digest
from mm_lens.data.samples import Sample
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.metrics import Metric
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.running.frames import Frame
from mm_lens.profiling import provenance
from mm_lens.profiling.collecting.token_sample import MODALITIES, MergedSample, TokenSample
from mm_lens.profiling.evaluation import (
    Evaluation,
    choose_device,
    collect_replicates,
    describe_samples,
    describe_tokens,
    tabulate,
)
from mm_lens.profiling.memory import describe_memory
from mm_lens.profiling.points.budget import hold, honest_number
from mm_lens.profiling.points.pairs import Pairs
from mm_lens.profiling.points.patches import find_patches
from mm_lens.profiling.points.point import Point, Spot
from mm_lens.profiling.points.selection import Heads, Hooks, name_hooks
from mm_lens.profiling.reading import Pass, Rows, name_rows
from mm_lens.profiling.result import Profile
from mm_lens.profiling.run import choose_metrics, choose_spots, make_readout
from mm_lens.profiling.run_directory import Part
from mm_lens.profiling.states import SamplingPlan, States

STREAM: Literal["residual"] = "residual"


def measuring(
    model: Any,
    hooks: Hooks = None,
    metrics: Sequence[str] | None = None,
    *,
    presets: Sequence[str] = ("honest", "paper"),
    pairs: Pairs = None,
    heads: Heads = False,
    modalities: Sequence[Literal["visual", "text", "all"]] | None = None,
    tokens: int | None = None,
    seed: int = 0,
    budget: float | None = None,
    data_name: str | None = None,
) -> Meter:
    """Measure the forward passes of a loop of your own.

    ```python
    with mm_lens.measuring(model, hooks=["attn_out", "z"], metrics=["anisotropy"]) as meter:
        for inputs in loader:
            model(inputs)         # or generate, run_with_hooks, …
    meter.profile                 # as mm_lens.profile gives
    ```

    Args:
        model: from `mm_lens.load`.
        hooks, metrics, presets, pairs, heads, modalities, tokens, seed, budget: as in
            `mm_lens.profile`; all hooks share every pass, so that a budget can only mean fewer
            tokens.
        data_name: name of the data in the provenance.

    Raises:
        InputError: an argument is wrong, or the states do not fit into the budget.
    """
    if not isinstance(model, VisionLanguageBridge):
        raise InputError("A meter needs a model: measuring(mm_lens.load(…), hooks=[…]).")
    chosen = choose_metrics(metrics, presets)
    points, spots = choose_spots(model, hooks, pairs, heads, chosen)
    kinds = tuple(modalities or MODALITIES)
    holding = hold(model, points, spots, [STREAM], kinds, chosen, tokens, budget, one_pass=True)
    plan = SamplingPlan(
        n_samples=0,
        streams=(STREAM,),
        modalities=kinds,
        k=holding.tokens,
        honest=honest_number(model, tokens, holding),
        batch_size=0,
        seed=seed,
        on_error="raise",
        points=points,
        spots=spots,
    )
    options = {"hooks": name_hooks(hooks), "presets": None if metrics else list(presets)}
    return Meter(model, plan, chosen, {**options, "memory": describe_memory(holding)}, data_name)


class Meter:
    """What `measuring` gives: a context manager that collects, and the profile of what it has seen.

    Attributes:
        points: the hooks whose states are kept.
    """

    def __init__(
        self,
        model: Any,
        plan: SamplingPlan,
        metrics: Sequence[Metric],
        about: dict[str, Any],
        data_name: str | None,
    ) -> None:
        self.model, self.plan, self.metrics, self.about = model, plan, metrics, about
        self.data_name = data_name or "measured"
        self.points: tuple[Point, ...] = plan.points or ()
        self.spots: tuple[Spot, ...] = plan.spots or ()
        self._own = Part(TokenSample(plan.k, plan.groups, plan.seed))
        self._others: list[Part] = []
        self._begun, self._started = provenance.now(), time.monotonic()
        self._handles: list[tuple[Any, LensHandle]] = []
        self._labels: list[Sample | str] | None = None
        self._rows: Rows | None = None
        self._pass: Pass | None = None
        self._trouble: dict[str, int] = {}
        self._profile: Profile | None = None

    # ---- in the loop ----

    def __enter__(self) -> Meter:
        if self._handles:
            raise InputError("This meter is at work already. Make another one.")
        known = self.model.hook_dict
        for state, point in enumerate(self.points):

            def keep(x: Tensor, hook: Any, state: int = state, point: Point = point) -> None:
                self._keep(state, point, x)

            handle = known[point.hook].add_hook(keep, is_permanent=True)
            self._handles.append((known[point.hook], handle))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        gone = [p.name for p, handle in self._handles if not any(handle is h for h in p.fwd_hooks)]
        for point, handle in self._handles:
            handle.hook.remove()
            point.fwd_hooks = [h for h in point.fwd_hooks if h is not handle]
        self._handles = []
        if gone and kind is None:
            self._note(f"the meter was taken off {gone[0]} inside of the `with` (reset_hooks?)")
        self._finish()
        self._labels = self._rows = None
        if kind is None and self._trouble:
            warnings.warn(
                f"Not all that ran was measured: {self._said()}.", MMLensWarning, stacklevel=2
            )

    def label(self, rows: Sequence[Sample | str]) -> None:
        """Name the rows of the next forward pass: samples of a data set, or ids.

        The rows of two passes with one id are one sample; a `Sample` also says which rows share an
        image, as `mm_lens.profile` takes it.
        """
        self._labels = list(rows)

    def _keep(self, state: int, point: Point, x: Tensor) -> None:
        if not self.model.context.is_running:
            if not point.tower:
                _ = self.model.context.frame  # raises, saying what to call
            self._note("the vision tower ran outside of a forward pass: its patches are left out")
            return
        frame = self.model.context.frame
        if self._pass is None or self._pass.frame is not frame:
            self._finish()
            self._pass = self._begin(frame)
        for group in self._own.sample.groups(point):
            if (state, group) in self._pass.wanted:
                rows = self._own.sample.reservoirs[group].rows(x).cpu()
                self._pass.found[state, group] = rows

    def _begin(self, frame: Frame) -> Pass:
        layout, sample = frame.layout.to("cpu"), self._own.sample
        if layout.shape[0] > 1:
            self.model.report.require("a meter on a batch of rows", "batch")
        given = frame.inputs.get("input_ids")
        tokens = torch.full(layout.shape, -1) if given is None else given.cpu()
        before = self._rows
        if frame.decoding and before is not None and len(before.names) == len(tokens):
            rows, start = before, before.attended  # a step of generation
        elif frame.decoding:
            self._note("a step of generation was left out, whose beginning was not seen")
            rows, start = replace(name_rows(frame, None), counts=torch.zeros(len(tokens)) > 0), None
        else:
            labels, self._labels = self._labels, None
            rows, start = self._first_seen(name_rows(frame, labels)), None
        patches = find_patches(self.model.family, layout, frame.inputs)
        ids = torch.tensor([digest(name) for name in rows.names])
        documents = torch.tensor(rows.documents)
        offers = sample.offers(layout, tokens, ids, documents, patches, start)
        for group, offer in offers.items():
            of = offer.rows if patches is None or not offer.per_tile else patches.row
            offers[group] = offer.take(rows.counts[of])
        some = {group for group, offer in offers.items() if sample.reservoirs[group].look(offer)}
        wanted = {
            (state, group)
            for state, point in enumerate(self.points)
            for group in sample.groups(point)
            if group in some
        }
        attended = layout.mask("all").sum(1)
        rows = replace(rows, attended=attended if start is None else start + attended)
        return Pass(frame, rows, offers, wanted)

    def _first_seen(self, rows: Rows) -> Rows:
        """Without the rows that were seen before."""
        seen = {index for part in (self._own, *self._others) for index in part.ids}
        ids = [digest(name) for name in rows.names]
        counts = [each not in seen and ids.index(each) == row for row, each in enumerate(ids)]
        for _ in range(counts.count(False)):
            self._note("a row was seen before: it is left out")
        return replace(rows, counts=torch.tensor(counts))

    def _finish(self) -> None:
        """Take in the pass that is over."""
        over, self._pass = self._pass, None
        if over is None:
            return
        self._profile = None
        if missing := [at for at in over.wanted if at not in over.found]:
            hook = self.points[min(missing)[0]].hook
            self._note(f"a forward pass was left out, since {hook} did not fire in it")
            self._rows = None
            return
        own, rows = self._own, over.rows
        for group, offer in over.offers.items():
            reservoir = own.sample.reservoirs[group]
            if reservoir.plan(offer):
                for state, point in enumerate(self.points):
                    if group in own.sample.groups(point):
                        reservoir.put(STREAM, state, over.found[state, group])
        for row, name in enumerate(rows.names):
            if rows.counts[row] and digest(name) not in own.ids:
                own.ids[digest(name)] = len(own.ids)
                own.fingerprint ^= rows.marks[row]
        self._rows = rows

    def _note(self, what: str) -> None:
        self._trouble[what] = self._trouble.get(what, 0) + 1

    def _said(self) -> str:
        return "; ".join(f"{what} ({n} times)" for what, n in self._trouble.items())

    # ---- what was seen ----

    @property
    def profile(self) -> Profile:
        """The profile of all that was seen, as `mm_lens.profile` gives it.

        Raises:
            InputError: no forward pass was seen.
        """
        if not self.model.context.is_running:
            self._finish()
        if self._profile is None:
            self._profile = self._evaluate()
        return self._profile

    def _evaluate(self) -> Profile:
        parts, plan = [self._own, *self._others], self.plan
        ids = {index for part in parts for index in part.ids}
        if not ids:
            raise InputError(f"The meter has seen no whole forward pass. {self._said()}".strip())
        fingerprint = 0
        for part in parts:
            fingerprint ^= part.fingerprint
        tokens = MergedSample(plan.k, plan.modalities, [part.sample for part in parts])
        states = States(
            tokens,
            self.points,
            self.spots,
            (STREAM,),
            len(ids),
            [],
            fingerprint,
            honest=plan.honest,
        )
        device = choose_device(self.model)
        seconds, begun = {"states": round(time.monotonic() - self._started, 2)}, time.monotonic()
        readout = make_readout(self.model, self.metrics)
        found = Evaluation(states, self.metrics, plan.seed, device, None, readout).estimates(False)
        seconds["metrics"] = round(time.monotonic() - begun, 2)
        model = provenance.describe_model(self.model)
        return Profile(
            tabulate(model["name"], found),
            {
                "started": self._begun,
                "seconds": seconds,
                "versions": provenance.versions(),
                "threads": torch.get_num_threads(),
                "processes": len(parts),
                "model": model,
                "data": {"name": self.data_name, **describe_samples(states, from_data=False)},
                "tokens": describe_tokens(states),
                "memory": self.about["memory"],
                "measured": dict(self._trouble),
                "options": {
                    "streams": [STREAM],
                    "modalities": list(plan.modalities),
                    "presets": self.about["presets"],
                    "metrics": [metric.name for metric in self.metrics],
                    "hooks": self.about["hooks"],
                    "tokens": plan.k,
                    "seed": plan.seed,
                },
            },
            collect_replicates(found),
        )

    # ---- several processes ----

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What two meters must have in common to be merged."""
        return {
            "hooks": [point.hook for point in self.points],
            "modalities": list(self.plan.modalities),
            "tokens": self.plan.k,
            "seed": self.plan.seed,
            "model": provenance.describe_model(self.model)["name"],
            "weights": weights_digest(self.model),
        }

    def save(self, path: str | Path) -> None:
        """Write what was seen to a file, for `merge` in another process.

        Raises:
            OSError: it cannot be written.
        """
        self._finish()
        content = io.BytesIO()
        parts = [part.pack(STREAM, self.points) for part in (self._own, *self._others)]
        torch.save({"identity": self._identity, "parts": parts}, content)
        write_file(Path(path), content.getvalue())

    def merge(self, *others: Meter | str | Path) -> None:
        """Take in what other meters have seen: of other processes, or from files of `save`.

        Raises:
            InputError: they were made otherwise, or have seen samples that this one has.
            DataError: a file is damaged.
            OSError: a file cannot be read.
        """
        for other in others:
            identity, parts = self._read(other)
            for name, value in self._identity.items():
                if identity.get(name) != value:
                    raise InputError(
                        f"These meters differ in their {name}: {identity.get(name)} and {value}. "
                        "Make all of them alike."
                    )
            seen = {index for part in (self._own, *self._others) for index in part.ids}
            if twice := seen & {index for part in parts for index in part.ids}:
                raise InputError(
                    f"Both meters have seen {len(twice)} of the same samples, whose tokens would "
                    "count twice. Give every process samples of its own."
                )
            self._others += parts
            self._profile = None

    def _read(self, other: Meter | str | Path) -> tuple[dict[str, Any], list[Part]]:
        if isinstance(other, Meter):
            other._finish()
            return other._identity, [other._own, *other._others]
        found = torch.load(io.BytesIO(read_file(Path(other))), weights_only=True)
        parts = []
        for entry in found["parts"]:
            part = Part(TokenSample(self.plan.k, self.plan.groups, self.plan.seed))
            part.unpack(entry, STREAM)
            parts.append(part)
        return found["identity"], parts
