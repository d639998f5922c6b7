"""Whether a processor is that of the model: compared before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.image_utils import SizeDict

from mm_lens.errors import InputError


def edge_sizes(size: Any) -> SizeDict:
    """Edges in pixels, however an image processor keeps them: a plain dict, or one number."""
    if size is None or isinstance(size, Mapping):
        return SizeDict(**(size or {}))
    return SizeDict(height=size, width=size) if isinstance(size, int) else size


MOST_PIXELS = 2**25
"""Of a picture after resizing its shortest edge: 400 MB as float32. At 336 px that is 297 times as
wide as high, of which the crop at the centre keeps a three-hundredth."""


def check_resized(size: tuple[int, int], shortest: int) -> None:
    """Refuse a picture that would be made enormous, to be cropped to its centre.

    Args:
        size: (height, width) of the picture.
        shortest: to which its shortest edge is resized.

    Raises:
        InputError: naming both sizes.
    """
    height, width = (shortest * edge // min(size) for edge in size)
    if height * width > MOST_PIXELS:
        raise InputError(
            f"A picture of {size[1]}×{size[0]} px would be resized to {width}×{height} px before "
            f"its centre is cropped, more than the {MOST_PIXELS:,} pixels that are resized here. "
            "Crop the part that you mean: the model sees no other than the centre."
        )


def require_equal(processor: Any, entries: Mapping[str, tuple[Any, str]]) -> None:
    """Refuse a processor whose entries are not what follows from the model's configuration.

    Args:
        processor: the processor.
        entries: for each of its entries the value that it must have, and where that comes from.

    Raises:
        InputError: naming the entry, both values, and the file to mend.
    """
    for name, (wanted, source) in entries.items():
        found = getattr(processor, name, None)
        if found != wanted:
            raise InputError(
                f"The processor has {name}={found!r}, but the model needs {wanted!r} ({source}). "
                f"Use the processor of the same checkpoint, or mend {name} in its "
                "processor_config.json."
            )
