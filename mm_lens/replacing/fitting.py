"""What maps and subspaces are fitted on: states of a group of tokens, batch by batch.

Kept of the inputs are checksums of their pictures, so that what is fitted on some pictures is not
tried on the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mm_lens._storage.checked import tensor_checksum
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import GROUPS
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logits import keep_logits

States = dict[str, Float[Tensor, "batch pos d"]]


def read_states(
    model: VisionLanguageBridge, others: Iterable[Inputs], group: str, names: Sequence[str]
) -> Iterator[tuple[Inputs, Bool[Tensor, "batch pos"], States]]:
    """Each of `others` that has tokens of the group: which these are, and states by hook point.

    Raises:
        InputError: no such group, or one of `others` is no inputs.
    """
    if group not in GROUPS:
        raise InputError(f"What is replaced is one of {', '.join(GROUPS)}, not {group!r}.")
    for inputs in [others] if isinstance(others, Inputs) else others:
        check_inputs(model, inputs)
        mask = group_mask(inputs.layout, group)
        if not bool(mask.any()):
            continue
        with torch.no_grad(), model.text_only_allowed():
            _, cache = model.run_with_cache(
                inputs, names_filter=list(names), **keep_logits(model, 1)
            )
        yield inputs, mask, {name: cache[name] for name in names}


def picture_sums(inputs: Inputs) -> frozenset[str]:
    """A checksum of each picture, or of all where they cannot be told apart."""
    pixels: Any = inputs.tensors.get("pixel_values")
    if pixels is None:
        return frozenset()
    each = list(pixels) if len(pixels) == inputs.layout.shape[0] else [pixels]
    return frozenset(tensor_checksum(one.contiguous()) for one in each)


def require_others(seen: frozenset[str], samples: Sequence[tuple[Inputs, Any]]) -> None:
    """Refuse samples whose pictures a fit has seen.

    Raises:
        InputError: one of them has such a picture.
    """
    for i, (inputs, _) in enumerate(samples):
        if picture_sums(inputs) & seen:
            raise InputError(
                f"The picture of sample {i} is one that was fitted on: the fit knows it, and would "
                "do better than on a new one. Fit on other pictures."
            )
