"""What the check at load found, and which tools refuse because of it."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from mm_lens._notebook import make_table
from mm_lens.errors import MMLensError, MMLensWarning

Need: TypeAlias = Literal["residual", "pattern", "rerun", "batch", "cache", "mask"]
"""What a tool may need of a model: points 4, 3 and 5 to 8 of the text of `mm_lens.model.check`."""


@dataclass(frozen=True)
class Finding:
    """Something the user of a model should know. `level` "error" means: numbers are wrong.

    `spoils` says of which tools; None: of all.
    """

    level: Literal["error", "warning", "note"]
    message: str
    spoils: Need | None = None


@dataclass(repr=False)
class Report:
    """What the check found. Also `model.report`."""

    findings: list[Finding] = field(default_factory=list)
    max_logit_difference: float = float("nan")
    """Largest absolute difference to the native model's logits, over all real positions."""

    dead_hooks: tuple[str, ...] = ()
    """Hook points that did not fire."""

    def add(
        self,
        level: Literal["error", "warning", "note"],
        message: str,
        spoils: Need | None = None,
    ) -> None:
        """Add a finding."""
        self.findings.append(Finding(level, message, spoils))

    def require(self, tool: str, *needs: Need) -> None:
        """Refuse a tool whose numbers would be wrong on this model.

        Args:
            tool: names it in the message.
            needs: what it takes for granted.

        Raises:
            MMLensError: the check at load found that this does not hold.
        """
        for finding in self.findings:
            if finding.level == "error" and finding.spoils in needs:
                raise MMLensError(
                    f"{tool}: refused, since its numbers would be wrong on this model. "
                    f"{finding.message} Load with check=False to look at them all the same."
                )

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
        """Print warnings once, and what some tools will refuse; raise where nothing holds.

        Raises:
            MMLensError: the bridge computes something else than the native model.
        """
        errors = [f.message for f in self.findings if f.level == "error" and f.spoils is None]
        if errors:
            raise MMLensError(
                " ".join(errors) + " Nothing measured on this bridge would hold. Please report it; "
                "load with check=False to look at it all the same."
            )
        for finding in self.findings:
            if finding.level != "note":
                warnings.warn(finding.message, MMLensWarning, stacklevel=3)
