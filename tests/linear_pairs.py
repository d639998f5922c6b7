"""States of two hooks that are related by a map, and the fit of it in numpy."""

from __future__ import annotations

import numpy as np
import torch
from made_tokens import normal, tokens_of
from torch import Tensor

from mm_lens.metrics import METRICS, Estimate, evaluate

NAMES = [name for name, metric in METRICS.items() if metric.kind == "linearity"]


def run(x: Tensor, y: Tensor, samples: int | None = None) -> dict[str, Estimate]:
    return evaluate(tokens_of(x, samples), tokens_of(y, samples), NAMES)


def pair(seed: int, n: int, d: int) -> tuple[Tensor, Tensor]:
    """A residual update, partly linear, with columns of very different scale."""
    x = normal(seed, n, d) @ normal(seed + 1, d, d) * torch.logspace(-2, 2, d).double() + 3
    return x, x + torch.tanh(x) @ normal(seed + 2, d, d) / d + 0.3 * normal(seed + 3, n, d)


def svd_r2(x: Tensor, y: Tensor, cut: float = 0.0) -> float:
    """In-sample R² by a truncated SVD of the standardised inputs, in numpy."""
    a, b = x.double().numpy(), y.double().numpy()
    a, b = a - a.mean(0), b - b.mean(0)
    spread = np.linalg.norm(a, axis=0)
    varies = spread > 1e-12 * np.abs(x.double().numpy()).max()
    u, s, _ = np.linalg.svd(a[:, varies] / spread[varies], full_matrices=False)
    u = u[:, s > cut * s[0]]
    return float(1 - np.linalg.norm(b - u @ (u.T @ b)) ** 2 / np.linalg.norm(b) ** 2)
