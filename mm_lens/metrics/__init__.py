"""Linearity, intrinsic dimension and anisotropy of the tokens at a hook point.

``evaluate`` computes any number of metrics and shares what they have in common::

    tokens = Tokens(x, sample, position, token_id)
    estimates = evaluate(tokens, tokens_next, preset("honest") + preset("paper"), seed=0)
    estimates["dimension_mle"].value

To add a metric, write a function of a family's intermediates and decorate it with the family's
``metric``; to add a family, write the intermediates.
"""

from mm_lens.metrics import anisotropy, dimension, gride, linearity, spectrum
from mm_lens.metrics.core import (
    METRICS,
    PRESETS,
    Estimate,
    Family,
    Metric,
    UndefinedError,
    evaluate,
    preset,
)
from mm_lens.metrics.neighbours import Neighbours, nearest
from mm_lens.metrics.tokens import Tokens, deduplicate, finite, sampling_key, subsample

__all__ = [
    "METRICS",
    "PRESETS",
    "Estimate",
    "Family",
    "Metric",
    "Neighbours",
    "Tokens",
    "UndefinedError",
    "anisotropy",
    "deduplicate",
    "dimension",
    "evaluate",
    "finite",
    "gride",
    "linearity",
    "nearest",
    "preset",
    "sampling_key",
    "spectrum",
    "subsample",
]
