"""Whether the placeholders of a call and its pictures match: else the model would not see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.model.families.declaration import Family


def video_token(family: Family) -> int | None:
    """Id of the placeholder of videos; None if the model knows none."""
    config = getattr(family, "config", None)
    found = [getattr(config, f"video_token_{end}", None) for end in ("id", "index")]
    return next((i for i in found if isinstance(i, int)), None)


def _refuse_videos(family: Family, inputs: Mapping[str, Any]) -> None:
    """Raise if there is a video: its tokens would count as text."""
    token = video_token(family)
    tokens, past = inputs.get("input_ids"), inputs.get("past_key_values")
    written = token is not None and tokens is not None and bool((tokens == token).any())
    decoding = past is not None and past.get_seq_length() > 0  # a model may sample it
    if inputs.get("pixel_values_videos") is not None or (written and not decoding):
        raise InputError(
            "The prompt holds a video. mm_lens knows the tokens of images only: those of a video "
            "would count as text. Give its frames as images: prepare(text, [frame, …])."
        )


def check_images(family: Family, inputs: Mapping[str, Any]) -> None:
    """Raise if image placeholders and images do not match: the model would not see the picture.

    Raises:
        InputError: naming both numbers and the remedy.
    """
    tokens, past = inputs.get("input_ids"), inputs.get("past_key_values")
    _refuse_videos(family, inputs)
    if tokens is None or inputs.get("mm_encoder_outputs"):
        return  # embeddings hold the image already
    if tokens.shape[1] == 1 and past is not None and past.get_seq_length() > 0:
        return  # a decoding step; a model may sample the placeholder
    placeholders = int((tokens == family.image_token_id).sum())
    expected = family.image_token_counts(inputs)
    if expected is None:
        if placeholders:
            raise InputError(
                f"The prompt holds {placeholders} image placeholders, but no image came with it "
                "(pixel_values is missing): the model would answer blind. Pass what "
                "model.prepare(text, images) returns instead of the bare tokens; for a tool that "
                "takes only tokens, wrap it in `with model.bound(inputs): ...`."
            )
        return
    _check_rows(family, inputs)
    if placeholders != sum(expected):
        raise InputError(
            f"The prompt holds {placeholders} image placeholders, but the {len(expected)} image(s) "
            f"make {sum(expected)} tokens ({expected}). Make tokens and pixels in one call: "
            "model.prepare(text, images)."
        )


def _check_rows(family: Family, inputs: Mapping[str, Any]) -> None:
    """Raise if there are more or fewer tiles, or patches, than pictures of these sizes make."""
    pixels = inputs["pixel_values"]
    if inputs.get(family.sizes) is None or not isinstance(pixels, Tensor):
        return
    counts = family.rows_per_image("pixel_values", inputs)
    held, kind = len(pixels), "rows"
    if pixels.ndim == 5 and counts is not None and sum(counts) == held:
        grid = family.tower_grid(inputs)
        most = 0 if grid is None else max(grid.tiles)
        # Padded with zeros to the most tiles of a batch, of which these may be some rows.
        if most and (pixels.shape[1] < most or bool(pixels[:, most:].any())):
            counts, held, kind = [most], pixels.shape[1], "tiles of each image"
    if counts is not None and sum(counts) != held:
        sizes = ", ".join(f"{width}×{height}" for height, width in family.image_sizes(inputs))
        raise InputError(
            f"pixel_values holds {held} {kind}, but pictures of {sizes} px make {sum(counts)}: it "
            "is of other pictures. Make tokens and pixels in one call: model.prepare(text, images)."
        )
