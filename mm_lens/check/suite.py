"""The suite: which checks there are, and how one model is run through them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from mm_lens._notebook import make_table
from mm_lens.arguments import suggest
from mm_lens.check import checks, interventions, runs, views, writing
from mm_lens.check.subject import Fault, Subject
from mm_lens.check.traces import changed, find_traces
from mm_lens.errors import InputError
from mm_lens.model.bridge import VisionLanguageBridge

Verdict: TypeAlias = Literal["holds", "fails", "exception"]

CHECKS: Mapping[str, Callable[[Subject], None]] = {
    "text only": checks.text_only,
    "one image": checks.one_image,
    "several images": checks.several_images,
    "left padding": checks.left_padding,
    "right padding": checks.right_padding,
    "row without image": checks.row_without_image,
    "rows of a batch": checks.rows_of_a_batch,
    "read": views.read,
    "edit": views.edit,
    "gradient": views.gradient,
    "places": checks.places,
    "places of two images": checks.places_of_two_images,
    "segments": checks.segments,
    "bound tokens": checks.bound_tokens,
    "generation": writing.greedy,
    "beams": writing.beams,
    "sampling": writing.sampled,
    "generation with hooks": writing.under_hooks,
    "rerun": checks.rerun,
    "patching": interventions.patching_tables,
    "ablation": interventions.ablation_tables,
    "knock-out": interventions.knockouts,
    "patterns": interventions.patterns,
    "logit lens": checks.last_layer,
    "profile": runs.batch_sizes,
    "save and resume": runs.save_and_resume,
    "bfloat16": checks.half_precision,
}
"""Name of each check, as in `Family.exceptions`, and what it runs: it raises where it fails."""


@dataclass(frozen=True)
class Outcome:
    """What came of one check. `reason`: why it fails, or why the family is excepted from it."""

    check: str
    verdict: Verdict
    reason: str
    seconds: float


@dataclass(frozen=True, repr=False)
class Table:
    """What holds of a model. `ok`: nothing fails but what the family declares."""

    model: str
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Whether no check fails, and each declared exception is one."""
        return all(outcome.verdict != "fails" for outcome in self.outcomes)

    def __repr__(self) -> str:
        lines = [
            f"  {o.check:22} {o.verdict:10} {o.seconds:6.1f} s  {o.reason}".rstrip()
            for o in self.outcomes
        ]
        return "\n".join([f"{self.model}: {self._summary()}", *lines])

    def _repr_html_(self) -> str:
        """The verdict, and every check."""
        rows = [(o.check, o.verdict, f"{o.seconds:.1f}", o.reason) for o in self.outcomes]
        return make_table(["check", "verdict", "seconds", "reason"], rows, self._summary())

    def _summary(self) -> str:
        counts = [
            f"{sum(o.verdict == verdict for o in self.outcomes)} {word}"
            for verdict, word in (("holds", "hold"), ("fails", "fail"), ("exception", "excepted"))
        ]
        return ", ".join(counts)


def run_suite(
    native: Any,
    model: VisionLanguageBridge,
    only: Collection[str] = (),
    sample: bool = False,
) -> Table:
    """Run a model through the suite.

    Args:
        native: a Hugging Face model with the same weights, not wrapped.
        model: the bridge.
        only: names of checks; none: all of them.
        sample: fewer tokens and blocks: seconds instead of minutes for a small model.

    Raises:
        InputError: there is no such check.
    """
    if unknown := [name for name in only if name not in CHECKS]:
        known = f"Use one of: {', '.join(CHECKS)}.{suggest(unknown[0], CHECKS)}"
        raise InputError(f"No check is called {unknown[0]!r}. {known}")
    subject = Subject(native, model, sample)
    chosen = [name for name in CHECKS if not only or name in only]
    return Table(model.cfg.model_name, tuple(_run(subject, name) for name in chosen))


def _run(subject: Subject, name: str) -> Outcome:
    declared = subject.model.family.exceptions.get(name, "")
    start = time.perf_counter()
    fault = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before = [find_traces(x) for x in (subject.native, subject.model.original_model)]
            CHECKS[name](subject)
            after = [find_traces(x) for x in (subject.native, subject.model.original_model)]
        for was, now in zip(before, after, strict=True):
            if left := changed(was, now):
                raise Fault(f"the check leaves another {left} behind")
    except Exception as error:  # whatever a model's code raises is a check that fails
        fault = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    seconds = time.perf_counter() - start
    if declared and not fault:
        return Outcome(name, "fails", f"declared as an exception, but holds: {declared}", seconds)
    if declared:
        return Outcome(name, "exception", declared, seconds)
    return Outcome(name, "fails" if fault else "holds", fault, seconds)
