"""Names of modality hook points, and the cache that is asked by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformer_lens import ActivationCache

from mm_lens.errors import InputError
from mm_lens.hooks import PARENTS
from mm_lens.layout import TokenLayout, check_group

GROUPS = ("visual", "text")
"""Groups that get hook points at load."""

_ALIAS = re.compile(r"blocks\.(\d+)\.hook_([a-z]+)_(\w+)")


def names(
    hook: str | Sequence[str],
    modality: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> Callable[[str], bool]:
    """A `names_filter` for hook points: `names("resid_post", modality="visual")`.

    Args:
        hook: short name(s) as in `hooks.PARENTS`: "resid_post", "attn_out", "q", …
        modality: "visual", "text", or both; None for the full stream.
        layers: blocks to take; None takes all.

    Raises:
        InputError: a hook of that name does not exist.
    """
    hooks = [hook] if isinstance(hook, str) else list(hook)
    if unknown := [h for h in hooks if h not in PARENTS]:
        raise InputError(f"No hook point is called {unknown[0]!r}. Use: {', '.join(PARENTS)}.")
    if modality is None:
        tails = {PARENTS[h] for h in hooks}
    else:
        groups = [modality] if isinstance(modality, str) else list(modality)
        tails = {f"{check_group(group)}.hook_{h}" for group in groups for h in hooks}
    wanted = None if layers is None else set(layers)

    def match(name: str) -> bool:
        root, _, rest = name.partition(".")
        layer, _, tail = rest.partition(".")
        return root == "blocks" and tail in tails and (wanted is None or int(layer) in wanted)

    return match


class LayoutCache(ActivationCache):
    """An `ActivationCache` that knows what the cached rows are.

    ``cache["resid_post", 5, "visual"]`` is ``[batch, n_visual_max, d_model]``, zero padded;
    ``cache.layout.valid("visual")`` says which rows are real.
    """

    layout: TokenLayout
    inputs: Mapping[str, Any]

    def __getitem__(self, key: Any) -> Tensor:
        """As in TransformerLens; the third place of a key may be a modality for every hook."""
        if isinstance(key, tuple) and len(key) == 3 and key[2] in GROUPS:
            # TransformerLens would overrule the modality for q, k, v, z, pre and post, and
            # answer with the full stream.
            layer = key[1] if key[1] >= 0 else self.model.cfg.n_layers + key[1]
            key = f"blocks.{layer}.{key[2]}.hook_{key[0]}"
        elif isinstance(key, str) and key not in self.cache_dict:
            key = canonical(key)
        return super().__getitem__(key)


def canonical(name: str) -> str:
    """Resolve the spelling ``blocks.3.hook_visual_q`` of ``blocks.3.visual.hook_q``."""
    if (match := _ALIAS.fullmatch(name)) and match[2] in GROUPS and match[3] in PARENTS:
        return f"blocks.{match[1]}.{match[2]}.hook_{match[3]}"
    return name
