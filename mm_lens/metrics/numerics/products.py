"""Products of tall matrices, `AᵀB` summed over the tokens: what every second moment is made of.

`gram` uses the symmetry of `AᵀA`. The *split* form multiplies in float32, summing blocks of
rows in float64, at half the time; a row of large norm would drown the others' digits there, so
rows above 8 times the median norm take float64 (relative error 2e-7; 4e-4 without that). Light rows
are scaled to entries near one, which float32 can square. Where float32 products are rounded further
(TF32, bfloat16), nothing is split.

Cost: 2 n d² operations, about 1.1 n d² for a wide Gram matrix.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

_COLUMNS = 512
_ROWS = 2048
_HEAVY = 8.0


def keeps_float32(device: torch.device) -> bool:
    """Whether float32 products keep all 24 bits here (TF32 and bfloat16 modes drop the last)."""
    probe = torch.full((64, 64), 1 + 2.0**-20, device=device)
    with torch.autocast(device.type, enabled=False):
        return torch.equal(probe @ torch.eye(64, device=device), probe)


def split_rows(*parts: Float64[Tensor, "n _"]) -> Bool[Tensor, " n"] | None:
    """Rows whose norm is over 8 times the median one in any of the matrices.

    None where float32 products do not keep their digits: then float64 has to do it all.
    """
    if not keeps_float32(parts[0].device):
        return None
    squares = torch.stack([part.square().sum(1) for part in parts])
    return (squares > _HEAVY**2 * squares.median(1, keepdim=True).values).any(0)


def product(
    a: Float64[Tensor, "n c"], b: Float64[Tensor, "n d"], heavy: Bool[Tensor, " n"] | None = None
) -> Float64[Tensor, "c d"]:
    """`aᵀ b`; in the split form if the heavy rows are given."""
    if heavy is None:
        return a.T @ b
    total = a[heavy].T @ b[heavy]
    (light_a, scale_a), (light_b, scale_b) = _scaled(a[~heavy]), _scaled(b[~heavy])
    with torch.autocast(a.device.type, enabled=False):
        for part_a, part_b in zip(light_a.split(_ROWS), light_b.split(_ROWS), strict=True):
            total += (part_a.T @ part_b).double() * scale_a * scale_b
    return total


def _scaled(
    x: Float64[Tensor, "n d"],
) -> tuple[Float32[Tensor, "n d"], Float64[Tensor, ""]]:
    """In float32 with a largest entry near one, and the power of two that was divided by."""
    largest = x.abs().amax() if x.numel() else x.new_zeros(())
    scale = torch.where(largest > 0, torch.exp2(largest.log2().floor()), 1.0)
    return (x / scale).float(), scale


def gram(
    a: Float64[Tensor, "n d"], heavy: Bool[Tensor, " n"] | None = None
) -> Float64[Tensor, "d d"]:
    """`aᵀ a`, the lower block triangle computed once and mirrored."""
    d = a.shape[1]
    if d <= _COLUMNS:
        return product(a, a, heavy)
    result = a.new_empty(d, d)
    for start in range(0, d, _COLUMNS):
        block = slice(start, start + _COLUMNS)
        rows = product(a[:, block], a[:, : start + _COLUMNS], heavy)
        result[block, : start + _COLUMNS] = rows
        result[:start, block] = rows[:, :start].T
    return result
