"""Clean activations on their way to the corrupted positions they match."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens.errors import HookError, InputError
from mm_lens.layout.layout import TEXT, TokenLayout
from mm_lens.layout.regions import Regions
from mm_lens.model.cache import LayoutCache
from mm_lens.model.inputs import Inputs


def read_clean(cache: LayoutCache, name: str) -> Float[Tensor, "batch pos ..."]:
    """An activation of a cache, with its batch dimension.

    Raises:
        HookError: it was not cached.
        InputError: only some of the positions were cached.
    """
    try:
        found = cache.read(name).detach()
    except KeyError as error:
        raise HookError(
            f"The clean cache does not hold {name}. Run model.run_with_cache(clean, "
            "names_filter=mm_lens.names(…)) with this hook point and all layers that are read."
        ) from error
    if not cache.has_batch_dim:  # taken away by remove_batch_dim: from a batch of one
        found = found[None]
    if found.shape[:2] != cache.layout.shape:
        raise InputError(
            f"The clean cache holds {name} of shape {tuple(found.shape)}, but the clean input has "
            f"{cache.layout.shape} [batch, pos]. Run model.run_with_cache(clean) without pos_slice."
        )
    return found


class Move:
    """Clean positions that go to corrupted ones: `target[i]` gets the mean of the `source` of i."""

    def __init__(self, row: Tensor, target: Tensor, source: Tensor) -> None:
        self.row, self.target, self.source = row, target, source
        self.groups: list[tuple[Tensor, Tensor, int]] | None = None

    def values(self, clean: Tensor) -> Tensor:
        """What the targets get, [n, ...]."""
        if self.groups is None:
            return clean[self.row, self.source]
        out = clean.new_empty(len(self.row), *clean.shape[2:])
        for targets, positions, row in self.groups:
            out[targets] = clean[row, positions].mean(0)
        return out


def average_sources(
    moves: list[Move], here: Regions, there: Regions, corrupted: Inputs, cache: LayoutCache
) -> list[Move]:
    """The same moves, every target getting the mean of the clean region's tokens of its kind; the
    mean of all its tokens if it has none of this kind."""
    if here.labels != there.labels:
        raise InputError(
            f'resample="mean" needs the same regions in both inputs, but the axis {here.axis!r} '
            f"has {len(here)} in the corrupted input and {len(there)} in the clean one, or others. "
            'Use Grid(rows, cols), or resample="nearest".'
        )
    kinds, clean_kinds = _kinds(corrupted.layout), _kinds(cache.layout)
    for move, mask in zip(moves, there.masks, strict=True):
        move.groups = []
        kind = kinds[move.row, move.target]
        for row in move.row.unique().tolist():
            for k in kind[move.row == row].unique().tolist():
                positions = (mask[row] & (clean_kinds[row] == k)).nonzero()[:, 0]
                if not len(positions):
                    positions = mask[row].nonzero()[:, 0]
                targets = ((move.row == row) & (kind == k)).nonzero()[:, 0]
                move.groups.append((targets, positions, row))
    return moves


def _kinds(layout: TokenLayout) -> Tensor:
    """0 overview, 1 tiles, 2 newlines, 3 text, 4 padding [batch, pos]."""
    text = torch.where(layout.modality == TEXT, 3, 4)
    patch = torch.where(layout.tile == 0, 0, 1)
    return torch.where(layout.mask("visual"), torch.where(layout.newline, 2, patch), text)


def patch(
    tensor: Tensor,
    hook: Any,
    parts: list[tuple[Move, int | None]],
    clean: Tensor,
    batch: int,
) -> Tensor:
    """Patch copy j of the batch with part j."""
    # In place where there are no gradients, as TransformerLens does: the skip connection past
    # `resid_mid` has the edit, too.
    out = tensor.clone() if tensor.requires_grad else tensor
    clean = clean.to(out.device, out.dtype)
    for j, (move, head) in enumerate(parts):
        rows, values = move.row + j * batch, move.values(clean)
        if head is None:
            out[rows, move.target] = values
        else:
            out[rows, move.target, head] = values[:, head]
    return out
