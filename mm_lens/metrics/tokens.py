"""The tokens a metric sees: hidden states with the identity of every row.

Three operations keep a sample of tokens honest before any number is computed from it:

- `subsample` keeps the `n` rows with the smallest key, a hash of (seed, sample, position).
  The choice depends on nothing else: not on the order of the rows, the batch size, the layer or the
  number of processes, and a smaller sample is always part of a larger one. Sequences that share a
  sample (questions about one image) would share their keys: they bring keys of their own.
- `deduplicate` keeps one row of every exact repetition. Newline embeddings repeat, and a
  causal model gives an identical prefix identical states at every layer; a nearest-neighbour
  statistic sees each repetition as a point at distance zero.
- `finite` drops rows that hold an infinity or a NaN, and says how many.

Cost: one pass over the rows each, plus a sort of `n` integers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mm_lens._storage.hashing import sampling_key
from mm_lens.errors import InputError

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Tokens:
    """Hidden states of `n` tokens and where each of them comes from.

    Attributes:
        x: Hidden states, any float dtype, any device.
        sample: Id of the image or document of each token: the unit that is resampled and held out.
        position: Position in its sequence; 0 is where massive activations gather.
        token_id: Id in the vocabulary.
        key: What the choice of a smaller sample goes by; None: a hash of sample and position.
            Needed where several sequences share a sample: else they are chosen together.
        modality: A number for each modality among the tokens; None: all are of one. What is a
            usual norm differs between them.

    Raises:
        InputError: The tensors differ in length, or the states are not of 16, 32 or 64 bit.
    """

    x: Float[Tensor, "n d"]
    sample: Int64[Tensor, " n"]
    position: Int64[Tensor, " n"]
    token_id: Int64[Tensor, " n"]
    key: Int64[Tensor, " n"] | None = None
    modality: Int64[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        if self.x.dtype not in DTYPES:
            raise InputError(
                f"States of {self.x.dtype} cannot be measured: it keeps too few digits to tell "
                "neighbours apart, and torch hardly computes on it. Run the model in bfloat16, or "
                "convert what you have: x.to(torch.bfloat16)."
            )
        lengths = [len(column) for column in self._columns.values()]
        if len(set(lengths)) > 1:
            raise InputError(
                f"x, sample, position and token_id (and key) have {lengths} rows: give one entry "
                "per token."
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def d(self) -> int:
        """Width of the hidden state."""
        return self.x.shape[1]

    def take(self, rows: Int64[Tensor, " m"] | Bool[Tensor, " n"]) -> Tokens:
        """The given rows, by index or by mask."""
        return replace(self, **{name: column[rows] for name, column in self._columns.items()})

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        return replace(self, **{name: column.to(device) for name, column in self._columns.items()})

    def keys(self, seed: int = 0) -> Int64[Tensor, " n"]:
        """`key`, or the `sampling_key` where there is none."""
        return sampling_key(self.sample, self.position, seed) if self.key is None else self.key

    @property
    def _columns(self) -> dict[str, Tensor]:
        """The tensors there are, by name."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}


def concatenate(*parts: Tokens) -> Tokens:
    """The rows of all parts, in order.

    Raises:
        InputError: Some have keys (modalities) and others none.
    """
    if len({frozenset(part._columns) for part in parts}) > 1:
        raise InputError(
            "Some tokens have a key or a modality and others none: give all of them one, or none."
        )
    names = parts[0]._columns
    return Tokens(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def join_modalities(visual: Tokens, text: Tokens) -> Tokens:
    """The tokens of both, told apart by `Tokens.modality`: visual 0, text 1."""
    sides = enumerate((visual, text))
    return concatenate(
        *(replace(side, modality=torch.full_like(side.sample, number)) for number, side in sides)
    )


def split_modalities(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Visual and text tokens of those that `join_modalities` joined.

    Raises:
        InputError: It does not say which tokens are whose.
    """
    if tokens.modality is None:
        raise InputError(
            "A metric between modalities needs tokens of both, and Tokens.modality to tell them "
            "apart: 0 for visual, 1 for text."
        )
    visual, text = (
        replace(tokens.take(tokens.modality == number), modality=None) for number in (0, 1)
    )
    return visual, text


def subsample(tokens: Tokens, n: int, seed: int = 0) -> Tokens:
    """The `n` tokens with the smallest keys (`Tokens.keys`), in their order.

    All tokens (still in that order) when there are no more than `n`.
    """
    order = tokens.keys(seed).argsort(stable=True)
    return tokens.take(order[:n])


def unique_rows(x: Float[Tensor, "n d"]) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " m"]]:
    """Index of the first row of every set of equal rows, ascending, and the size of each set."""
    n = len(x)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    columns = torch.arange(x.shape[1], device=x.device)
    weights = sampling_key(columns, columns, seed=1) | 1
    # + 0 makes -0 and 0 the same bits. Weights are odd, so that no single difference can vanish.
    blocks = ((block + 0).view(integer).long() for block in x.split(256))
    hashes = torch.cat([(bits * weights).sum(1) for bits in blocks])
    order = hashes.argsort(stable=True)
    new = torch.ones(n, dtype=torch.bool, device=x.device)
    suspects = (hashes[order][1:] == hashes[order][:-1]).nonzero().squeeze(1) + 1
    # Equal hashes are only a suspicion; the rows themselves decide.
    new[suspects] = (x[order[suspects]] != x[order[suspects - 1]]).any(1)
    starts = new.nonzero().squeeze(1)
    counts = torch.diff(starts, append=torch.tensor([n], device=x.device))
    first, place = order[starts].sort()
    return first, counts[place]


def deduplicate(tokens: Tokens) -> tuple[Tokens, int]:
    """One token of every set of exactly equal hidden states, and how many were dropped."""
    first, _ = unique_rows(tokens.x)
    return tokens.take(first), len(tokens) - len(first)


def finite(*tokens: Tokens) -> tuple[list[Tokens], int]:
    """The rows that are finite in every given set of tokens, and how many were dropped."""
    keep = finite_rows(*(t.x for t in tokens))
    return ([*tokens], 0) if keep is None else ([t.take(keep) for t in tokens], int((~keep).sum()))


def finite_rows(*states: Float[Tensor, "n _"]) -> Bool[Tensor, " n"] | None:
    """Which rows are finite in all of the states; None: all are."""
    if all(_all_finite(x) for x in states):
        return None
    return torch.stack([x.isfinite().all(1) for x in states]).all(0)


def not_finite(dropped: int, n: int) -> str:
    """What is said of dropped rows; "" if there are none."""
    return f"{dropped} of {n} tokens not finite, dropped" if dropped else ""


def rounding(tokens: Tokens) -> float:
    """Expected squared rounding error of a token's state; 0 where it was not rounded to 16 bit.

    An entry lies anywhere between two numbers, which are eps times a power of two apart: a variance
    of eps² / 24 of its square, averaged over where it lies between powers of two.
    """
    dtype = tokens.x.dtype
    if dtype.itemsize > 2 or not len(tokens):
        return 0.0
    blocks = tokens.x.split(8192)
    squares = sum(float(block.double().square().sum()) for block in blocks)
    return torch.finfo(dtype).eps ** 2 / 24 * squares / len(tokens)


def rounded(tokens: Tokens, error: float, size: float, of: str, most: float = 1e-3) -> list[str]:
    """A note where squared rounding errors make more than this share of what is measured."""
    if not error > most * size:
        return []
    dtype = str(tokens.x.dtype).removeprefix("torch.")
    return [f"rounding to {dtype} makes {error / size:.1%} of {of}"]


def _all_finite(x: Float[Tensor, "n d"]) -> bool:
    """Whether no entry is infinite or NaN; the extremes of a tensor tell, and are cheaper."""
    return x.numel() == 0 or bool(torch.stack(x.aminmax()).isfinite().all())


def centre(x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """Deviations from the mean; columns constant up to rounding become exactly zero."""
    if len(x) == 0:
        return x
    low, high = x.amin(0), x.amax(0)
    rounding = 8 * torch.finfo(x.dtype).eps * torch.maximum(-low, high)
    centred = x - x.mean(0)
    centred[:, high - low <= rounding] = 0
    return centred
