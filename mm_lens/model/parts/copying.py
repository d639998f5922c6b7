"""Copies of a bridge and of a cache: whole, or refused.

TransformerLens puts hooks into a block that write into the block itself: those of a deep copy would
go on writing into the original, and an edit at `hook_mlp_in` of the copy would do nothing. And
neither bridge nor cache can be pickled: their hooks are functions that have no name.
"""

from __future__ import annotations

import copy
from typing import Any

from mm_lens.errors import InputError


class Copied:
    """Deep copies with hooks of their own; an error in place of a pickle."""

    def __copy__(self) -> Any:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        for block in made.__dict__.get("_modules", {}).get("blocks", ()):
            block._teardown_capture_hooks()
            block._maybe_wire_capture_hooks()
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raises InputError: there is no pickle of it."""
        raise InputError(
            f"A {type(self).__name__} cannot be pickled, nor sent to another process. Load the "
            "model there; of a cache save the tensors: torch.save(cache.cache_dict, file)."
        )
