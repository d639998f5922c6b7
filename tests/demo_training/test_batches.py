"""Batches."""

from __future__ import annotations

import easy_vqa
import torch
from PIL import Image

from demo_training import canvases
from demo_training.fusion import Fusion


def test_stored_tiles_are_what_the_processor_gives(built: Fusion) -> None:
    buckets = canvases.pool(built, copies=2, limit=6, seed=1)
    views = sum(len(bucket.owner) for bucket in buckets)
    cropped = not built.sees((64, 192), (128, 0, 192, 64))
    assert 6 * 2 < views < 6 * 4 if cropped else views == 6 * 4
    square = next(bucket for bucket in buckets if bucket.size == (64, 64))
    got = built.native(canvases.normalise(square.pixels[:1], built.processor))
    first = Image.open(easy_vqa.get_train_image_paths()[0]).convert("RGB")
    expected = built.processor.image_processor(first, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
