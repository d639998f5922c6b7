"""Copies of a token up to rounding, of which a nearest-neighbour statistic may see only one.

The same image under several prompts gives the same token at the same position again, but for its
last bits: the batch, its padding and the order of sums were others. So do patches of one colour
within an image. Nothing drops them as equal, and the nearest neighbour of each is its copy.

Two rows are copies if they differ by less than rounding has been seen to add up to, as a share of
their norm: of any tokens 64 eps of float32 (measured on the demo models: at most 4), of tokens with
the same sample and position also 4 eps of 16 bit (measured in bfloat16: at most 0.25). Between
other tokens of 16 bit this would be too much: some really lie that close.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.metrics.tokens import Tokens

ANYWHERE = 64 * torch.finfo(torch.float32).eps
SAME_PLACE = 4


def first_of_copies(tokens: Tokens, seed: int = 0) -> Bool[Tensor, " n"]:
    """Which tokens to keep: of every set of copies the one with the smallest key."""
    keep = torch.ones(len(tokens), dtype=torch.bool, device=tokens.x.device)
    if len(tokens) < 2:
        return keep
    order = tokens.keys(seed).argsort(stable=True)
    x = tokens.x[order].double()
    norms = torch.linalg.vector_norm(x, dim=1)
    kept = _one_per_place(x, norms, tokens.take(order))
    rest = kept.nonzero().squeeze(1)
    kept[rest[~_one_per_state(x[rest], norms[rest])]] = False
    keep[order] = kept
    return keep


def _one_per_place(
    x: Float64[Tensor, "n d"], norms: Float64[Tensor, " n"], tokens: Tokens
) -> Bool[Tensor, " n"]:
    """The first of the rows with one sample, position and, up to rounding, state."""
    eps = torch.finfo(tokens.x.dtype).eps
    share = max(SAME_PLACE * eps if tokens.x.dtype.itemsize == 2 else 0.0, ANYWHERE)
    places = torch.stack([tokens.sample, tokens.position], 1)
    _, place = places.unique(dim=0, return_inverse=True)
    kept = torch.ones(len(x), dtype=torch.bool, device=x.device)
    open_ = torch.arange(len(x), device=x.device)
    while len(open_):  # at most as often as a place has different states
        leader = _first_rows(place[open_], open_)
        others = open_ != leader
        open_, leader = open_[others], leader[others]
        apart = torch.linalg.vector_norm(x[open_] - x[leader], dim=1)
        copies = apart <= share * norms[leader]
        kept[open_[copies]] = False
        open_ = open_[~copies]
    return kept


def _first_rows(group: Int64[Tensor, " m"], rows: Int64[Tensor, " m"]) -> Int64[Tensor, " m"]:
    """For each row the smallest row of its group."""
    _, inverse = group.unique(return_inverse=True)
    first = torch.full_like(rows, torch.iinfo(rows.dtype).max)
    first.scatter_reduce_(0, inverse, rows, "amin")
    return first[inverse]


def _one_per_state(x: Float64[Tensor, "n d"], norms: Float64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """The first of every run of rows that are next to each other, and equal up to rounding.

    Along one random direction copies lie side by side: that nothing else comes between two of them
    is as good as certain where they differ by rounding alone.
    """
    generator = derive_generator(0, "copies")
    direction = torch.randn(x.shape[1], generator=generator, dtype=x.dtype).to(x.device)
    place = (x @ direction).argsort(stable=True)
    apart = torch.linalg.vector_norm(x[place].diff(dim=0), dim=1)
    new = torch.ones(len(x), dtype=torch.bool, device=x.device)
    new[1:] = apart > ANYWHERE * norms[place][1:]
    run = new.cumsum(0)
    first = torch.full((len(x) + 1,), len(x), dtype=torch.int64, device=x.device)
    first.scatter_reduce_(0, run, place, "amin")
    kept = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    kept[first[run]] = True
    return kept
