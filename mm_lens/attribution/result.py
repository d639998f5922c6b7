"""What an attribution gives: one number for each token, and whether they add up."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from mm_lens.layout.layout import TokenLayout
from mm_lens.layout.regions import Axis, find_regions


@dataclass(frozen=True, eq=False)
class Attribution:
    """One number for each token; on the CPU.

    Attributes:
        method: that made it.
        values: NaN where nothing was asked for.
        layout: of the inputs.
        metric: what is attributed, for each row.
        baseline: the metric where the tokens are those of the baseline; None for methods that
            compare with none.
    """

    method: str
    values: Float32[Tensor, "batch pos"] = field(repr=False)
    layout: TokenLayout = field(repr=False)
    metric: Float[Tensor, " batch"]
    baseline: Float[Tensor, " batch"] | None = None

    @property
    def gap(self) -> Float[Tensor, " batch"] | None:
        """Sum of the values less what they should add up to, the metric less its baseline."""
        if self.baseline is None:
            return None
        return self.values.nansum(1) - (self.metric - self.baseline)

    def by(self, axis: Axis) -> pd.DataFrame:
        """Sums over regions: a row for each row of the batch and region (`mm_lens.regions`).

        Columns: row, region, value, and share of the sum of all absolute values of the row.

        Raises:
            InputError: there is no such axis, or a region has no position.
        """
        whole = self.values.abs().nansum(1)
        return pd.DataFrame(
            {"row": row, "region": label, "value": float(part), "share": float(share)}
            for label, mask in find_regions(self.layout, axis)
            for row, (part, share) in enumerate(
                zip(
                    torch.where(mask, self.values, 0).nansum(1),
                    torch.where(mask, self.values.abs(), 0).nansum(1) / whole,
                    strict=True,
                )
            )
        )
