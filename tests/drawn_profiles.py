"""A profile made of known curves, to be drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mm_lens.metrics import METRICS
from mm_lens.profiling.result import COLUMNS, Profile

FEW = ("linearity_heldout_without_massive", "dimension_mle", "anisotropy")


NAMES = (
    "linearity_heldout_without_massive",
    "linearity_paper",
    "dimension_mle",
    "dimension_paper",
    "anisotropy",
)


def make_profile(names=NAMES, streams=("residual", "main"), layers=9, seed=0) -> Profile:
    """A made-up profile with intervals, chance levels, and some values missing."""
    rng, rows = np.random.default_rng(seed), []
    for stream in streams:
        for modality in ("visual", "text", "all"):
            for name in names:
                known = METRICS.get(name)
                for layer in range(known.arity - 1 if known else 0, layers):
                    value = rng.uniform(0.2, 0.9) * (30 if known and known.unit else 1)
                    row = [
                        value,
                        0.9 * value,
                        1.1 * value,
                        40_000 + layer,
                        5.0,
                        value / 20,
                        "2 copies",
                    ]
                    if modality == "text" and layer == 3:
                        row = [np.nan, np.nan, np.nan, 0, 0.0, np.nan, "constant </script> states"]
                    hook = f"blocks.{max(layer - 1, 0)}.hook_resid_{'post' if layer else 'pre'}"
                    where = [hook, "resid_post" if layer else "resid_pre", -1, ""]
                    rows.append(["m", stream, layer, *where, modality, name, *row])
    about = {"model": {"name": "model"}, "data": {"name": "data", "n_samples": 7, "n_skipped": 0}}
    return Profile(pd.DataFrame(rows, columns=list(COLUMNS)), about)
