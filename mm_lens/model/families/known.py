"""What is known already of the tensors of a call: their layout, and that pictures and text match.

Finding it out takes dozens of small operations. On a GPU the forward pass would wait for each, with
one row on a CPU they are a tenth of it. So they run on the CPU, and once: tensors that have been
seen are told by identity, and by the changes in place that torch counts of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ref

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mm_lens.layout.layout import TokenLayout
from mm_lens.model.families.declaration import Family
from mm_lens.model.families.placeholders import check_images

Stamp = tuple[tuple[str, int, int], ...]
"""Name, identity and count of changes of every tensor."""

_ASIDE = ("cache_position", "labels", "past_key_values", "position_ids")
"""Arguments that no layout depends on; a cache that holds something is another matter."""

_KNOWN: Any = WeakTensorKeyDictionary()


class Known:
    """What has been found out of some tensors, none of which it keeps alive.

    Attributes:
        matches: whether placeholders and pictures were found to match.
        selections: of groups of tokens, for whoever makes them.
    """

    def __init__(self, stamp: Stamp = (), of: tuple[Any, ...] = ()) -> None:
        self.matches = False
        self.selections: dict[str, Any] = {}
        self._stamp, self._of = stamp, tuple(ref(x) for x in of)
        self._host: TokenLayout | None = None
        self._tokens: Tensor | None = None
        self._there: dict[torch.device, TokenLayout] = {}

    def is_of(self, stamp: Stamp) -> bool:
        """Whether these are the tensors, unchanged: an identity is used again after a death."""
        return self._stamp == stamp and all(x() is not None for x in self._of)

    def layout(self, family: Family, inputs: Mapping[str, Any]) -> TokenLayout:
        """The layout of these tensors, on the CPU."""
        if self._host is None:
            self._host = family.layout(on_cpu(inputs))
        return self._host

    def tokens(self, inputs: Mapping[str, Any]) -> Int[Tensor, "batch pos"]:
        """The tokens, on the CPU."""
        tokens: Tensor = inputs["input_ids"]
        if tokens.device.type == "cpu":  # to keep these would keep all of it for ever
            return tokens
        if self._tokens is None:
            self._tokens = tokens.cpu()
        return self._tokens

    def layout_there(self, family: Family, inputs: Mapping[str, Any]) -> TokenLayout:
        """The layout of these tensors, where they are."""
        device = inputs["input_ids"].device
        if device not in self._there:
            self._there[device] = self.layout(family, inputs).to(device)
        return self._there[device]


def recall(family: Family, inputs: Mapping[str, Any]) -> Known:
    """What is known of these keyword arguments; nothing yet, if they are new."""
    tokens, past = inputs.get("input_ids"), inputs.get("past_key_values")
    if not isinstance(tokens, Tensor) or (past is not None and past.get_seq_length() > 0):
        return Known()
    tensors = {k: v for k, v in inputs.items() if isinstance(v, Tensor) and k not in _ASIDE}
    plain = (v for k, v in inputs.items() if k not in tensors and k not in _ASIDE)
    if not all(v is None or isinstance(v, bool | int | float | str) for v in plain):
        return Known()
    if any(v.is_inference() for v in tensors.values()):  # of these, changes are not counted
        return Known()
    marks = [(k, id(v), v._version) for k, v in sorted(tensors.items())]
    stamp = (("family", id(family), 0), *marks)
    found: Known | None = _KNOWN.get(tokens)
    if found is None or not found.is_of(stamp):
        # Not of the tokens: it is kept as long as they are.
        others = [v for v in tensors.values() if v is not tokens]
        found = _KNOWN[tokens] = Known(stamp, (family, *others))
    return found


def require_match(family: Family, inputs: Mapping[str, Any]) -> None:
    """Refuse image placeholders and pictures that do not match; see `placeholders.check_images`."""
    known = recall(family, inputs)
    if not known.matches:
        check_images(family, inputs)
        known.matches = True


def on_cpu(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with tokens, masks and sizes on the CPU; of pixels, only the shape is read."""
    return {
        k: v.cpu() if isinstance(v, Tensor) and not v.is_floating_point() else v
        for k, v in inputs.items()
    }
