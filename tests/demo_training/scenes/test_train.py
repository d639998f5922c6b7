"""The recipe, from nothing to models that load and answer, in miniature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from built_demos import NAMES

import mm_lens
from demo_training.scenes import evaluate, train
from mm_lens.data import datasets
from mm_lens.data.samples import DataSet


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of each stage on three scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    stages = "--see 2 --read 2 --connect 2 --answer 2 --images 3 --batch 2 --questions 2"
    with pytest.MonkeyPatch.context() as patch:
        command = ["train", "--out", str(folder), "--device", "cpu", *stages.split()]
        patch.setattr("sys.argv", command)
        train.main()
    return folder


@pytest.fixture(scope="module")
def asked() -> DataSet:
    """Questions about other scenes."""
    return datasets.load("scenes", "test", seed=3)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_makes_a_model_that_loads(trained: Path, asked: DataSet, name: str) -> None:
    model = mm_lens.load(trained / name, check=False)
    parts = torch.load(trained / "tower.pt", weights_only=True)["tower"]
    tower = dict(evaluate.open_model(trained / name)[0].model.vision_tower.named_parameters())
    still = {key for key, weight in tower.items() if torch.equal(weight, parts[key])}
    # The last layer is not read, and so learns nothing.
    last = ("encoder.layers.3.", "post_layernorm.")
    assert still == {key for key in tower if key.startswith(last)}
    sample = asked[0]
    prepared = model.prepare(sample.text, sample.image)
    assert prepared.layout.counts("visual").item() >= (train.SIZE.tile // 8) ** 2


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_generate(trained: Path, asked: DataSet, name: str) -> None:
    """Right where `generate` gives the answer: asked is what the model itself answers."""
    model, processor = evaluate.open_model(trained / name)
    with torch.no_grad():
        model.lm_head.weight.copy_(40 * torch.randn_like(model.lm_head.weight))
    pictures = evaluate.group(asked, 2)
    said = {}
    for row in [row for rows in pictures for row in rows]:
        text, images = evaluate.prompt(processor, row.text), [row.images[0].draw()]
        inputs = processor(text=[text], images=images, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        said[row.id] = int(logits.argmax())
    found = evaluate.first_words(model, processor, pictures)
    assert found == [[said[row.id] for row in rows] for rows in pictures]
