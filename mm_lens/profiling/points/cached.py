"""States in a cache, whether it holds the full stream or the views of modalities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.layout.layout import TokenLayout
from mm_lens.model.cache import LayoutCache
from mm_lens.profiling.points.point import (
    FLOW,
    HEADED,
    OUTSIDE,
    TAILS,
    component_of,
    flow_key,
    is_tower,
)
from mm_lens.profiling.points.probe import Shape
from mm_lens.profiling.points.selection import take_once


@dataclass(frozen=True)
class Cached:
    """The states at a hook over all positions, and the modalities that the cache has them for."""

    x: Float[Tensor, "batch pos *rest"]
    groups: set[str] = field(default_factory=set)

    @property
    def shape(self) -> Shape:
        """Numbers per token, and the heads that share them."""
        return Shape(self.x.shape[2:].numel(), self.x.shape[2] if self.x.ndim == 4 else 0)


def held_names(cache: LayoutCache) -> list[str]:
    """The hooks of all components that a cache holds, whole or in views."""
    known: Any = cast(Any, cache).model
    names = take_once(known, [name for name in cache.cache_dict if name in known.hook_dict])
    components = {*FLOW, *OUTSIDE, *(f"tower.{short}" for short in FLOW)}
    return sorted((n for n in names if component_of(n) in components), key=flow_key)


class CachedStates:
    """Reads the hooks of a cache, each spread over all positions."""

    def __init__(self, cache: LayoutCache, layout: TokenLayout) -> None:
        self.cache, self.layout = cache, layout
        self.model: Any = cast(Any, cache).model
        self.held: dict[int, Tensor] = {}
        known = self.model.hook_dict
        for name, x in cache.cache_dict.items():  # by hook point: a hook may have many names
            if name in known:
                self.held[id(known[name])] = x

    def read(self, name: str) -> Cached:
        """The states at a hook; no groups if the cache has none.

        Raises:
            InputError: they are not of all tokens, or not of all heads.
        """
        x = self._get(name)
        if is_tower(name):
            return self._of_patches(name, x)
        if x is not None:
            whole = self._with_batch(name, x)
            self._check_heads(name, whole)
            return Cached(whole, {"visual", "text"})
        full, groups = torch.zeros(*self.layout.shape, 1), set[str]()
        for group in ("visual", "text"):
            view = self._get(self._view(name, group))
            if view is None:
                continue
            valid, mask = self.layout.valid(group), self.layout.mask(group)
            rows = view if view.shape[:2] == valid.shape else view[None]
            if not groups:
                full = rows.new_zeros(*self.layout.shape, *rows.shape[2:])
            full[mask.to(rows.device)] = rows[valid.to(rows.device)]
            groups.add(group)
        if groups:
            self._check_heads(name, full)
        # A modality without tokens has no view, and nothing is missing.
        empty = {g for g in ("visual", "text") if not self.layout.mask(g).any()}
        return Cached(full, groups and groups | empty)

    def _get(self, name: str) -> Tensor | None:
        point = self.model.hook_dict.get(name)
        return None if point is None else self.held.get(id(point))

    @staticmethod
    def _view(name: str, group: str) -> str:
        block, _, rest = name.partition(".")
        layer, _, tail = rest.partition(".")
        short = next((short for short, where in TAILS.items() if where == tail), "")
        return f"{block}.{layer}.{group}.hook_{short}"

    def _with_batch(self, name: str, x: Tensor) -> Tensor:
        """With the batch that `remove_batch_dim` has taken off."""
        batch, pos = self.layout.shape
        if tuple(x.shape[:2]) == (batch, pos) and x.ndim > 2:
            return x
        if batch == 1 and x.shape[0] == pos and x.ndim > 1:
            return x[None]
        there = x.shape[min(1, x.ndim - 1)]
        raise InputError(
            f"{name} has {there} positions, the inputs {pos}. Cache without pos_slice."
        )

    def _check_heads(self, name: str, x: Tensor) -> None:
        """Refuse a part of the heads, whose number would pass for that of all."""
        if component_of(name) not in HEADED:
            return
        cfg = self.model.cfg
        count = int(cfg.n_heads)
        if component_of(name) in ("k", "v"):
            count = int(getattr(cfg, "n_key_value_heads", None) or count)
        if x.shape[2:].numel() not in (count * int(cfg.d_head), int(cfg.n_heads * cfg.d_head)):
            raise InputError(
                f"{name} holds {x.shape[2:].numel()} numbers per token, which are not those of "
                f"{count} heads of {cfg.d_head}. Cache the hook whole, and choose with heads=[…]."
            )

    def _of_patches(self, name: str, x: Tensor | None) -> Cached:
        grid = self.model.family.tower_grid(self.cache.inputs)
        if x is None or grid is None:
            return Cached(torch.zeros(0, 0, 1))
        per_tile = grid.rows * grid.cols
        if sum(grid.tiles) == 1 and x.shape[0] - per_tile in (0, 1):
            x = x[None]
        if x.shape[0] != sum(grid.tiles) or x.shape[1] - per_tile not in (0, 1):
            raise InputError(
                f"{name} has shape {tuple(x.shape)}, but the tower saw {sum(grid.tiles)} tiles of "
                f"{per_tile} patches. Cache it whole."
            )
        return Cached(x, {"visual", "text"})
