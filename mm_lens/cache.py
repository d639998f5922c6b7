"""Names of modality hook points, and the cache that is asked by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.components_utils import get_act_name

from mm_lens.binding import READ, Binding
from mm_lens.context import Frame
from mm_lens.errors import InputError
from mm_lens.hooks import PARENTS
from mm_lens.layout import TokenLayout

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
        InputError: no hook point of that name, modality or layer can exist.
    """
    hooks = [hook] if isinstance(hook, str) else list(hook)
    if unknown := [h for h in hooks if h not in PARENTS]:
        raise InputError(f"No hook point is called {unknown[0]!r}. Use: {', '.join(PARENTS)}.")
    if modality is None:
        tails = {PARENTS[h] for h in hooks}
    else:
        groups = [modality] if isinstance(modality, str) else list(modality)
        if unknown := [group for group in groups if group not in GROUPS]:
            raise InputError(
                f"There are no hook points for {unknown[0]!r}, only for {', '.join(GROUPS)}. Leave "
                "modality out for all tokens; select others from the full stream with "
                "layout.mask(...)."
            )
        tails = {f"{group}.hook_{h}" for group in groups for h in hooks}
    if layers is not None and min(layers, default=0) < 0:
        raise InputError("Layers are counted from 0 here: the filter does not know the last one.")
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

    frame: Frame
    """The forward pass it comes from."""

    @property
    def layout(self) -> TokenLayout:
        """What every position of the cached forward pass is."""
        return self.frame.layout

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Keyword arguments of the forward pass."""
        return self.frame.inputs

    def __getitem__(self, key: Any) -> Tensor:
        """As in TransformerLens; the third place of a key may be a modality for every hook.

        Raises:
            KeyError: nothing of this name was cached; the message says if nothing ever can be.
            InputError: `model.bound(…)` holds inputs of another layout.
        """
        tensor = self.read(key)
        binding: Binding | None = cast(Any, self.model).__dict__.get("_bound")
        if binding is not None:
            binding.check_read(self.frame)
        READ[tensor] = self.frame  # for tools that are given the tensor alone
        return tensor

    def read(self, key: Any) -> Tensor:
        """As ``cache[key]``, whatever is bound: for tools that match positions themselves.

        Raises:
            KeyError: as there.
        """
        if key in self.cache_dict:
            return self.cache_dict[key]
        name = canonical(self._name(key))
        if name not in self.cache_dict and (remedy := cast(Any, self.model)._remedy_if_dead(name)):
            raise KeyError(f"{name} never fires in this model. {remedy}")
        return self.cache_dict[name]

    def _name(self, key: Any) -> str:
        if isinstance(key, str):
            return str(get_act_name(key))
        hook, layer, *rest = (*key, None) if len(key) == 1 else key
        if layer is not None and layer < 0:
            layer += self.model.cfg.n_layers
        if rest and rest[0] in GROUPS:
            # TransformerLens would overrule the modality for q, k, v, z, pre and post, and answer
            # with the full stream.
            return f"blocks.{layer}.{rest[0]}.hook_{hook}"
        return str(get_act_name(hook, layer, *rest))


def canonical(name: str) -> str:
    """Resolve the spelling ``blocks.3.hook_visual_q`` of ``blocks.3.visual.hook_q``."""
    if (match := _ALIAS.fullmatch(name)) and match[2] in GROUPS and match[3] in PARENTS:
        return f"blocks.{match[1]}.{match[2]}.hook_{match[3]}"
    return name
