"""Linearity, intrinsic dimension, anisotropy and their relatives at the hook points of a model.

`evaluate` computes any number of metrics and shares what they have in common:

```python
tokens = Tokens(x, sample, position, token_id)
estimates = evaluate(tokens, tokens_next, preset("honest") + preset("paper"), seed=0)
estimates["dimension_mle"].value
```

Metrics of one or two hooks register themselves in `METRICS` and are in every profile. What
compares two sets of tokens (layers × layers, modality × modality) are functions: `cka`, `gap`.
Streams and shards: `accumulators`. To add a metric, write one file: docs/adding_a_metric.md.
"""

from importlib import import_module
from pkgutil import iter_modules

from mm_lens._storage.hashing import sampling_key
from mm_lens.metrics.core import (
    METRICS,
    PRESETS,
    Kind,
    Metric,
    evaluate,
    preset,
)
from mm_lens.metrics.numerics.estimates import Estimate, UndefinedError, estimate
from mm_lens.metrics.numerics.neighbours import Neighbours, nearest
from mm_lens.metrics.tokens import (
    Tokens,
    concatenate,
    deduplicate,
    finite,
    subsample,
)
from mm_lens.plugins import plugins

GROUP = "mm_lens.metrics"


def load_installed() -> None:
    """Import what installed packages name in the entry point group: their metrics register."""
    for _ in plugins(GROUP, "Metric"):
        pass  # importing is all


# A metric registers itself when its file is imported: every file here, and those of packages.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
load_installed()

__all__ = [
    "METRICS",
    "PRESETS",
    "Estimate",
    "Kind",
    "Metric",
    "Neighbours",
    "Tokens",
    "UndefinedError",
    "concatenate",
    "deduplicate",
    "estimate",
    "evaluate",
    "finite",
    "load_installed",
    "nearest",
    "preset",
    "sampling_key",
    "subsample",
]


def __dir__() -> list[str]:
    return [*__all__]
