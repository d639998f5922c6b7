"""The cache that knows what the cached positions are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.utilities.components_utils import get_act_name

from mm_lens.layout.layout import TokenLayout
from mm_lens.model.binding import READ, Binding
from mm_lens.model.forward import Frame
from mm_lens.model.hooks import GROUPS, canonical


class LayoutCache(ActivationCache):
    """An `ActivationCache` that knows what the cached rows are.

    `cache["resid_post", 5, "visual"]` is `[batch, n_visual_max, d_model]`, zero padded;
    `cache.layout.valid("visual")` says which rows are real.
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
        """As `cache[key]`, whatever is bound: for tools that match positions themselves.

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
