"""The weights that ship: small, complete, and different in the fusion alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from built_demos import NAMES
from transformers import AutoConfig

import mm_lens
from mm_lens import demo


def test_ships_small_and_complete(folder: Path) -> None:
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert sum(files.values()) <= 10e6
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)


def test_shape_of_the_model(model: Any) -> None:
    text = model.config.get_text_config()
    assert text.num_hidden_layers >= 8
    assert text.hidden_size != text.vocab_size
    assert text.num_key_value_heads < text.num_attention_heads
    assert model.get_input_embeddings().weight.shape == (text.vocab_size, text.hidden_size)


def test_only_the_fusion_differs() -> None:
    """Same language model but for the row of an added token, same tower."""
    one, two = (AutoConfig.from_pretrained(demo.path(f"demo/{name}")) for name in NAMES)
    tower = [config.vision_config.to_dict() for config in (one, two)]
    text = [config.text_config.to_dict() for config in (one, two)]
    assert {key for key in tower[0] if tower[0][key] != tower[1][key]} <= {"dtype"}
    different = {key for key in text[0] if text[0][key] != text[1][key]}
    assert different - {"dtype"} == {"vocab_size"}
    assert text[0]["vocab_size"] == text[1]["vocab_size"] + 1


@pytest.mark.parametrize("name", NAMES)
def test_models_of_scenes_answer_questions_about_scenes(name: str) -> None:
    """28 questions of the test split; by guessing about four in ten are right."""
    folder = demo.path(f"demo/{name}-scenes")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10e6
    model = mm_lens.load(f"demo/{name}-scenes")
    data = mm_lens.datasets.load("scenes", "test", limit=28, seed=0)
    options: Any = {"max_tokens": 3, "conditions": ["given"], "progress": False}
    assert mm_lens.evaluate(model, data, **options).answers["right"].mean() >= 0.85
