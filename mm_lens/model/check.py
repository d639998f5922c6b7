"""The check at load: do the numbers of the bridge mean what they say?

Guaranteed after a clean report, for the prompt and the synthetic image of the check:

1. the bridge's logits equal the native model's (same attention implementation);
2. every hook point fires, but for those known to be dead: asking for one of these raises;
3. an edit at each kind of hook point, per modality, changes the output.

Cost: about two dozen forward passes of a short prompt with one small image.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens._notebook import make_table
from mm_lens.errors import MMLensError, MMLensWarning
from mm_lens.model.families import Family
from mm_lens.model.hooks import PARENTS
from mm_lens.model.inputs import Inputs, prepare

PROMPT = "What is this?"

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest difference of logits, over their standard deviation, that counts as rounding."""


@dataclass(frozen=True)
class Finding:
    """Something the user of a model should know. `level` "error" means: numbers are wrong."""

    level: Literal["error", "warning", "note"]
    message: str


@dataclass(repr=False)
class Report:
    """What the check found. Also `model.report`."""

    findings: list[Finding] = field(default_factory=list)
    max_logit_difference: float = float("nan")
    """Largest absolute difference to the native model's logits, over all real positions."""

    dead_hooks: tuple[str, ...] = ()
    """Hook points that did not fire."""

    def add(self, level: Literal["error", "warning", "note"], message: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, message))

    def __repr__(self) -> str:
        lines = [f"  {finding.level}: {finding.message}" for finding in self.findings]
        return "\n".join([f"Report({self._verdict()}", *lines]) + ")"

    def _repr_html_(self) -> str:
        """The verdict, and every finding."""
        rows = [(finding.level, finding.message) for finding in self.findings]
        return make_table(["level", "finding"], rows, self._verdict())

    def _verdict(self) -> str:
        """In one line."""
        if math.isnan(self.max_logit_difference):
            return "not checked"
        count = Counter(finding.level for finding in self.findings)
        return (
            f"logits within {self.max_logit_difference:.2g} of the native model's; "
            f"{count['error']} errors, {count['warning']} warnings; "
            f"{len(self.dead_hooks)} hook points never fire (.dead_hooks)"
        )

    def announce(self) -> None:
        """Print warnings once; raise on errors.

        Raises:
            MMLensError: the bridge computes something else than the native model.
        """
        errors = [f.message for f in self.findings if f.level == "error"]
        if errors:
            raise MMLensError(
                " ".join(errors) + " Nothing measured on this bridge would hold. Please report it; "
                "load with check=False to look at it all the same."
            )
        for finding in self.findings:
            if finding.level == "warning":
                warnings.warn(finding.message, MMLensWarning, stacklevel=3)


@dataclass(frozen=True)
class Expected:
    """What the native model makes of the inputs of the check."""

    inputs: Inputs
    logits: Float[Tensor, "1 pos d_vocab"]


@torch.no_grad()
def run_native(model: Any, family: Family, processor: Any) -> Expected:
    """Run the native model; to be done before the bridge is built around it."""
    inputs = prepare(family, processor, PROMPT, family.probe_image(), device=model.device)
    return Expected(inputs, model(**inputs).logits)


@torch.no_grad()
def self_check(model: Any, expected: Expected) -> Report:
    """Check an instrumented bridge; see the module's text for what is guaranteed."""
    report, inputs = Report(), expected.inputs
    fired: set[str] = set()

    def count(tensor: Any, hook: Any) -> None:
        fired.add(hook.name)

    points = {point.name: point for point in model.hook_dict.values()}
    handles = [point.add_hook(count) for point in points.values()]
    logits = model(inputs)
    for handle, point in zip(handles, points.values(), strict=True):
        model._remove_temporary_hook(point, "fwd", handle)

    report.max_logit_difference = (logits - expected.logits).abs().max().item()
    spread = expected.logits.float().std().item()
    if not report.max_logit_difference <= TOLERANCE.get(logits.dtype, 0.2) * spread:
        report.add(
            "error",
            f"The bridge's logits differ from the native model's by "
            f"{report.max_logit_difference:.3g} (their standard deviation is {spread:.3g}).",
        )
    _check_dead(model, report, points.keys() - fired)
    _check_edits(model, report, inputs, logits)
    return report


def _check_dead(model: Any, report: Report, silent: set[str]) -> None:
    silent = {name for name in silent if model._gated_hook_reason(name) is None}
    report.dead_hooks = tuple(sorted(silent))
    unknown = sorted(name for name in silent if model._remedy_if_dead(name) is None)
    model._declare_dead(unknown, "The check at load found that nothing fires it.")
    if unknown:
        report.add(
            "warning",
            f"{len(unknown)} hook points never fire: {', '.join(unknown[:5])}"
            f"{', …' if len(unknown) > 5 else ''}. Asking for one raises.",
        )
    if known := len(silent) - len(unknown):
        report.add("note", f"{known} hook points never fire, as is known of this family.")


def _check_edits(model: Any, report: Report, inputs: Inputs, logits: Tensor) -> None:
    """Edit one kind of activation at a time in the middle of the model.

    The edit mirrors each vector: a change of scale would be lost in the next norm.
    """
    layer = model.cfg.n_layers // 2
    for hook in PARENTS:
        for group in ("visual", "text"):
            name = f"blocks.{layer}.{group}.hook_{hook}"
            if name not in model._hook_registry or name in report.dead_hooks:
                continue

            def mirror(rows: Tensor, hook: Any) -> Tensor:
                return rows.flip(-1)

            edited = model.run_with_hooks(inputs, fwd_hooks=[(name, mirror)])
            if torch.equal(edited, logits):
                report.add("warning", f"An edit at {name} does not change the output.")
