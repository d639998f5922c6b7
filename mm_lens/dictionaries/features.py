"""Features of a coder at tokens: on the picture, and by modality.

A feature that fires on image tokens only tells the modalities apart as the mean does already: how
often it fires is stated beside how strongly. `explained` says how much of the activations the coder
accounts for, at the same tokens: a coder that was trained on text often explains little of an
image, and what its features say there is then about little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float32
from torch import Tensor

from mm_lens.arguments import require_whole, resolve_numbers
from mm_lens.dictionaries.coders import Coder
from mm_lens.dictionaries.splicing import check_coder, decode, encode, point_name
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.looking.token_tensor import TokenValues
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logits import keep_logits
from mm_lens.model.streams import resolve_layers


@torch.no_grad()
def feature_values(
    model: VisionLanguageBridge,
    inputs: Inputs,
    coder: Coder,
    features: Sequence[int],
    where: Any = "visual",
    *,
    layer: int,
    hook: str = "resid_post",
) -> Float32[TokenValues, "feature batch pos"]:
    """Activation of some features at each token, drawn on the picture by `.plot()`.

    ```python
    feature_values(model, inputs, coder, [7, 30], layer=4).plot()
    ```

    Args:
        model: the model.
        inputs: what `model.prepare` returned.
        coder: what `load_coder` returned, or anything with `encode` and `decode`.
        features: their numbers.
        where: which tokens.
        layer: block, negative ones from the end.
        hook: where the coder reads; see `splice_hooks`.

    Returns:
        NaN where no value was asked for; the first axis has the features.

    Raises:
        InputError: there is no such token, layer or feature; activations of another width.
        HookError: no such hook point.
    """
    mask, x = _read(model, inputs, coder, where, layer, hook)
    found = encode(coder, x)
    numbers = resolve_numbers("features=", "feature", features, found.shape[-1])
    out = torch.full((len(numbers), *mask.shape), math.nan)
    out[:, mask] = rearrange(found[:, list(numbers)], "n feature -> feature n").float().cpu()
    return TokenValues.of(
        out, inputs, "activation of the feature", [f"feature {number}" for number in numbers]
    )


@torch.no_grad()
def feature_table(
    model: VisionLanguageBridge,
    samples: Inputs | Iterable[Inputs],
    coder: Coder,
    where: Sequence[Any] | Mapping[str, Any] = ("visual", "text"),
    *,
    layer: int,
    hook: str = "resid_post",
    least: int = 1,
) -> pd.DataFrame:
    """How often and how strongly each feature fires in each group, the most frequent first.

    Args:
        model: the model.
        samples: what it is run on.
        coder: see `feature_values`.
        where: groups, or a mapping from names to groups, boxes, masks.
        layer: see `feature_values`.
        hook: see `feature_values`.
        least: tokens at which a feature must fire in one of the groups to be listed.

    Returns:
        A row for each feature and group: feature, group, share (of the group's tokens at which it
        fires), mean (where it fires, else NaN), top, n_tokens. In `.attrs`, by group, "explained"
        (share of the variance; NaN of transcoders) and "active" (features that fire at a token).

    Raises:
        InputError: no token of a group; no such layer; activations of another width.
        HookError: no such hook point.
    """
    require_whole("least", least, 0)
    groups = dict(where) if isinstance(where, Mapping) else {str(g): g for g in where}
    sums = {name: _Sums() for name in groups}
    for inputs in [samples] if isinstance(samples, Inputs) else samples:
        for name, group in groups.items():
            mask, x = _read(model, inputs, coder, group, layer, hook, required=False)
            if bool(mask.any()):
                sums[name].add(coder, x)
    if empty := [name for name, found in sums.items() if not found.n]:
        raise InputError(f"The samples hold no position of {empty[0]!r}.")
    fired = torch.stack([found.fired for found in sums.values()])
    listed = (fired >= least).any(0).nonzero()[:, 0]
    order = listed[fired[:, listed].sum(0).argsort(descending=True, stable=True)].tolist()
    table = pd.DataFrame(
        {
            "feature": feature,
            "group": name,
            "share": float(found.fired[feature] / found.n),
            "mean": float(found.total[feature] / found.fired[feature])
            if found.fired[feature]
            else math.nan,
            "top": float(found.top[feature]),
            "n_tokens": found.n,
        }
        for feature in order
        for name, found in sums.items()
    )
    table.attrs["explained"] = {name: found.explained() for name, found in sums.items()}
    table.attrs["active"] = {name: float(x.fired.sum() / x.n) for name, x in sums.items()}
    return table


class _Sums:
    """Running sums over the tokens of a group."""

    def __init__(self) -> None:
        self.n = 0
        self.fired = self.total = self.top = torch.zeros(0)
        self.missed = self.square = torch.zeros((), dtype=torch.float64)
        self.sum: Any = 0
        self.transcodes = False

    def add(self, coder: Coder, x: Tensor) -> None:
        features = encode(coder, x)
        found = features.double().cpu()
        made = decode(coder, features, x)
        if not self.n:
            self.fired = self.total = torch.zeros(found.shape[1], dtype=torch.float64)
            self.top = torch.zeros(found.shape[1], dtype=torch.float64)
        self.n += len(found)
        self.fired = self.fired + (found > 0).sum(0)
        self.total = self.total + found.sum(0)
        self.top = self.top.maximum(found.max(0).values)
        self.transcodes = getattr(coder, "transcodes", made.shape != x.shape)
        if not self.transcodes:
            wide = x.double().cpu()
            self.missed = self.missed + (wide - made.double().cpu()).square().sum()
            self.square = self.square + wide.square().sum()
            self.sum = self.sum + wide.sum(0)

    def explained(self) -> float:
        """One minus what the coder misses over the spread about the mean."""
        if self.transcodes:
            return math.nan
        return float(1 - self.missed / (self.square - self.sum.square().sum() / self.n))


def _read(
    model: VisionLanguageBridge,
    inputs: Inputs,
    coder: Coder,
    where: Any,
    layer: int,
    hook: str,
    required: bool = True,
) -> tuple[Tensor, Tensor]:
    """Which tokens, and the activations of these."""
    check_inputs(model, inputs)
    check_coder(coder)
    (block,) = resolve_layers([layer], model.cfg.n_layers)
    name = point_name(model, hook, block)
    mask = group_mask(inputs.layout, where).cpu()
    if required and not mask.any():
        raise InputError(f"These inputs hold no position of {where!r} to read.")
    _, cache = model.run_with_cache(inputs, names_filter=[name], **keep_logits(model, 1))
    x = cache[name]
    return mask, x[mask.to(x.device)].flatten(1)
