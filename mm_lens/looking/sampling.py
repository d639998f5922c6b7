"""States of groups of tokens over many inputs, and which picture each token is of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

from mm_lens._storage.hashing import digest, sampling_key
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.looking.token_values import read_states
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs


def picture_ids(inputs: Inputs) -> list[int]:
    """Id of the pictures of each row, or of its text where it has none."""
    found = []
    for images, text in zip(inputs.images, inputs.text, strict=True):
        shown = "".join(f"{i.size} {sha256(i.tobytes()).hexdigest()}" for i in images)
        found.append(digest(shown or text))
    return found


def each_inputs(
    model: VisionLanguageBridge, samples: Inputs | Iterable[Inputs]
) -> Iterator[Inputs]:
    """The inputs one after the other.

    Raises:
        InputError: one is none.
    """
    for inputs in [samples] if isinstance(samples, Inputs) else samples:
        check_inputs(model, inputs)
        yield inputs


@dataclass(frozen=True, eq=False)
class Gathered:
    """States of the tokens of a group.

    Attributes:
        states: of each layer that was asked for; on the CPU, in float32 or wider.
        picture: of each token, numbered from 0 in the order in which they came.
        n_pictures: how many there are.
        places: of each token, the inputs (numbered as they came), the row and the position.
    """

    states: dict[int, Float[Tensor, "n d"]] = field(repr=False)
    picture: Int64[Tensor, " n"] = field(repr=False)
    n_pictures: int
    places: Int64[Tensor, "n 3"] = field(repr=False)

    def of_pictures(self, chosen: Bool[Tensor, " picture"]) -> Gathered:
        """The tokens of some pictures, numbered as before."""
        here = chosen[self.picture]
        return Gathered(
            {k: x[here] for k, x in self.states.items()},
            self.picture[here],
            self.n_pictures,
            self.places[here],
        )


def gather(
    model: VisionLanguageBridge,
    samples: Inputs | Iterable[Inputs],
    where: Any,
    layers: Sequence[int],
    *,
    most: int | None = None,
    seed: int = 0,
) -> Gathered:
    """Collect the states of a group; memory: layers × tokens × width.

    Args:
        model: the model.
        samples: what it is run on.
        where: the group, as in `mm_lens.token_values`.
        layers: states.
        most: tokens of each row, drawn at random; None takes all.
        seed: of the draws.

    Raises:
        InputError: there is no token of the group in any row.
    """
    states: dict[int, list[Tensor]] = {k: [] for k in layers}
    pictures: list[int] = []
    places: list[Tensor] = []
    for number, inputs in enumerate(each_inputs(model, samples)):
        ids = picture_ids(inputs)
        mask = _some(group_mask(inputs.layout, where).cpu(), ids, most, seed)

        def read(k: int, state: Tensor, mask: Tensor = mask) -> None:
            rows = state[mask.to(state.device)]
            states[layers[k]].append(rows.to(torch.promote_types(rows.dtype, torch.float32)).cpu())

        read_states(model, inputs, layers, read)
        here = mask.nonzero()
        pictures += [ids[row] for row in here[:, 0].tolist()]
        places.append(torch.nn.functional.pad(here, (1, 0), value=number))
    if not pictures:
        raise InputError(f"The samples hold no position of {where!r}.")
    order = {picture: k for k, picture in enumerate(dict.fromkeys(pictures))}
    return Gathered(
        {k: torch.cat(found) for k, found in states.items()},
        torch.tensor([order[p] for p in pictures]),
        len(order),
        torch.cat(places),
    )


def _some(mask: Bool[Tensor, "batch pos"], ids: Sequence[int], most: int | None, seed: int) -> Any:
    """At most so many positions of each row, the same in every run."""
    if most is None:
        return mask
    sample = torch.tensor(ids)[:, None].expand(mask.shape)
    position = (mask.cumsum(1) - 1).expand(mask.shape)
    keys = sampling_key(sample.reshape(-1), position.reshape(-1), seed).view(mask.shape)
    keys = keys.masked_fill(~mask, torch.iinfo(torch.int64).max)
    return mask & (keys.argsort(1).argsort(1) < most)


def mean_of_pictures(
    values: Float[Tensor, " n"],
    picture: Int64[Tensor, " n"],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean over pictures of the mean over each one's tokens, and its interval over pictures.

    The bounds are NaN of a single picture.
    """
    _, whose = picture.unique(return_inverse=True)
    n = int(whose.max()) + 1
    total = torch.zeros(n, dtype=torch.float64).index_add_(0, whose, values.double().cpu())
    means = total / torch.bincount(whose, minlength=n)
    if n < 2:
        return float(means.mean()), float("nan"), float("nan")
    generator = derive_generator(seed, "pictures")
    low, high = bootstrap_ci(means, confidence=confidence, generator=generator)
    return float(means.mean()), float(low), float(high)
