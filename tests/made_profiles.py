"""Profiles with planted values and errors, for tests of what is made of profiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from mm_lens.metrics import METRICS
from mm_lens.profiling.result import COLUMNS, Profile

GROUPS = 16
T = 2.131449545559323  # 0.975 quantile of Student's t with 15 degrees of freedom, from tables
TILED, WHOLE = "LlavaNextForConditionalGeneration", "OmniFusionForConditionalGeneration"
HEADLINE = (
    "linearity_heldout_without_massive",
    "linearity_paper",
    "dimension_mle",
    "dimension_paper",
    "anisotropy_without_massive",
    "anisotropy",
)
Shape = Callable[[np.ndarray], np.ndarray]


def noise(seed: int) -> np.ndarray:
    """Deviations of 16 groups: they sum to zero and make a standard error of one."""
    z = np.random.default_rng(seed).normal(size=GROUPS)
    z -= z.mean()
    return z / np.linalg.norm(z) * np.sqrt(GROUPS / (GROUPS - 1))


def state_hook(layer: int) -> str:
    """The hook of a state."""
    return f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"


def planted(
    name: str = "demo/a",
    architecture: str = TILED,
    shapes: Mapping[str, Shape | float] | None = None,
    *,
    n_layers: int = 9,
    error: float = 0.01,
    seed: int = 0,
    metrics: tuple[str, ...] = HEADLINE,
    streams: tuple[str, ...] = ("residual", "main"),
    modalities: tuple[str, ...] = ("visual", "text"),
    n_tokens: int = 2000,
    replicates: bool = True,
) -> Profile:
    """A profile whose values are functions of depth and whose layers err together.

    Args:
        name: of the model.
        architecture: of the model.
        shapes: value by depth, by metric or family; "family@stream" goes before "family".
        n_layers: of the model.
        error: standard error of every value.
        seed: profiles of one seed err alike, so that their differences are exact.
        metrics: in the table.
        streams: in the table.
        modalities: in the table.
        n_tokens: behind every value.
        replicates: whether it has any.
    """
    shapes, z, rows, copies = dict(shapes or {}), noise(seed), [], []
    for stream in streams:
        for modality in modalities:
            for metric in metrics:
                known = METRICS[metric]
                keys = (metric, f"{known.kind}@{stream}", known.kind)
                shape = next((shapes[key] for key in keys if key in shapes), 0.5)
                for layer in range(known.arity - 1, n_layers + 1):
                    depth = np.array((layer - (known.arity - 1) / 2) / n_layers)
                    value = float(shape(depth) if callable(shape) else shape)
                    low, high = value - T * error, value + T * error
                    hook, source = (state_hook(n) for n in (layer, layer - 1))
                    component = hook.rpartition("hook_")[2]
                    of = [component, -1, source if known.arity == 2 else ""]
                    place = [name, stream, layer, hook, *of, modality, metric]
                    rows.append([*place, value, low, high, n_tokens, 20.0, 0.05, ""])
                    copies.append([stream, layer, modality, metric, 0.0, *(value + error * z)])
    provenance = {
        "model": {"name": name, "architecture": architecture, "n_layers": n_layers},
        "data": {"name": "data", "n_samples": 500, "n_skipped": 0, "fingerprint": "00ff"},
        "options": {"seed": 0},
    }
    columns = ["stream", "layer", "modality", "metric", "rest", *(f"g{i}" for i in range(GROUPS))]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Profile(table, provenance, pd.DataFrame(copies, columns=columns) if replicates else None)
