"""Training, from nothing to a model that answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from built_demos import NAMES
from transformers import AutoModelForImageTextToText, AutoProcessor

from demo_training import train


def run_training(options: str) -> None:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train", "--threads", "1", "--device", "cpu", *options.split()])
        train.main()
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_training(tmp_path: Path) -> None:
    """Two steps of each stage on three images: both fusions start from the same parts."""
    sizes = "--images 3 --batch 2 --questions 2"
    stages = "--see 2 --read 2 --negate 2 --connect 2 --answer 0"
    run_training(f"--out {tmp_path} {sizes} {stages}")
    started = torch.load(tmp_path / train.PARTS_FILE, weights_only=True)["parts"]
    connected = {}
    for name in NAMES:
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / name)
        assert model.num_parameters() < 2e6
        AutoProcessor.from_pretrained(tmp_path / name)
        connected[name] = model
        language = model.model.language_model.layers.state_dict()
        for key, value in language.items():  # kept as it was while tower and connectors learn
            assert torch.equal(value, started[f"language.model.layers.{key}"])
        moved = [
            not torch.equal(value, started[f"tower.{key}"])
            for key, value in model.model.vision_tower.state_dict().items()
            if "position_ids" not in key
        ]
        assert any(moved)
    run_training(f"--out {tmp_path} {sizes} --only {' '.join(NAMES)} --again --answer 2")
    for name in NAMES:
        before = connected[name].state_dict()
        after = AutoModelForImageTextToText.from_pretrained(tmp_path / name).state_dict()
        still = {key for key in before if torch.equal(before[key], after[key])}
        # Layer -2 is read, so the last vision layer and what follows it never get a gradient.
        assert still == {
            key
            for key in before
            if "tower.encoder.layers.3." in key or "post_layernorm" in key or "position_ids" in key
        }
