"""What the check at load found."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Literal

from mm_lens.errors import MMLensError, MMLensWarning


@dataclass(frozen=True)
class Finding:
    """Something the user of a model should know. `level` "error" means: numbers are wrong."""

    level: Literal["error", "warning", "note"]
    message: str


@dataclass
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
