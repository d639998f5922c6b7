"""The fusions are the shipped ones."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoProcessor

from demo_training import parts
from demo_training.fusion import Fusion


def test_the_fusions_are_the_shipped_ones(folder: Path, built: Fusion) -> None:
    shipped = AutoConfig.from_pretrained(folder)
    for part in ("vision_config", "text_config"):
        a, b = getattr(shipped, part).to_dict(), getattr(built.model.config, part).to_dict()
        assert {k for k in b if k != "dtype" and a.get(k) != b[k]} == set()
    assert shipped.vision_config.image_size == parts.TILE
    loaded = AutoProcessor.from_pretrained(folder)
    assert loaded.tokenizer.get_vocab() == built.processor.tokenizer.get_vocab()
    assert loaded.chat_template == built.processor.chat_template
