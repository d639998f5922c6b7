"""The largest eigenvalue of a large symmetric matrix without the others: Lanczos' iteration.

Krylov space with full reorthogonalisation (Lanczos 1950, Paige 1972). It stops when the residual r
bounds the error of the eigenvalue, r² / gap, at 1e-13 of it; without convergence, or for a small
matrix, the full decomposition decides. Cost: two passes over the matrix per 2 steps, some 20 steps
for a dominant direction and 150 for noise, against ~9 d³ operations.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

_SMALL = 192
_STEPS = 256
_CHECK = 8
_TOLERANCE = 1e-13


def largest(
    a: Float64[Tensor, "d d"],
) -> tuple[Float64[Tensor, ""], Float64[Tensor, " d"]]:
    """Largest eigenvalue of a positive semidefinite matrix, and its eigenvector."""
    if len(a) > _SMALL and (found := _lanczos(a)) is not None:
        return found
    values, vectors = torch.linalg.eigh(a)
    return values[-1], vectors[:, -1]


def _lanczos(
    a: Float64[Tensor, "d d"],
) -> tuple[Float64[Tensor, ""], Float64[Tensor, " d"]] | None:
    d = len(a)
    steps = min(_STEPS, d)
    basis, projected = a.new_zeros(steps, d), a.new_zeros(steps, steps)
    q = torch.randn(d, generator=derive_generator(0, "lanczos"), dtype=a.dtype).to(a.device)
    q = q / q.norm()
    for k in range(steps):
        basis[k] = q
        w = a @ q
        for _ in range(2):  # twice is enough (Kahan, Parlett)
            overlap = basis[: k + 1] @ w
            projected[k, : k + 1] += overlap
            w = w - overlap @ basis[: k + 1]
        left = w.norm()
        if (k + 1) % _CHECK == 0 or k + 1 == steps or not bool(left > 0):
            # Rows of `projected` are the lower triangle: all that eigh reads.
            values, vectors = torch.linalg.eigh(projected[: k + 1, : k + 1])
            residual = left * vectors[-1, -1].abs()
            gap = values[-1] - values[-2] if k else values[-1]
            if bool(residual.square() <= _TOLERANCE * values[-1] * gap):
                return values[-1], vectors[:, -1] @ basis[: k + 1]
            if not bool(left > 0):
                return None
        q = w / left
    return None
