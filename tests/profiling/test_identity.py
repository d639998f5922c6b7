"""A run is resumed with the same model, data and options alone."""

from __future__ import annotations

import pytest
import torch
from disturbed_runs import interrupt
from made_data import profile
from tiny import random_image

from mm_lens import InputError
from mm_lens.data.datasets import ImageFolder, Sample

CHANGES = {
    "tokens": ({"tokens": 61}, r"options\.k is 60 there and 61 here"),
    "batch size": ({"batch_size": 4}, r"options\.batch_size is 2 there and 4 here"),
    "seed": ({"seed": 1}, r"options\.seed is 0"),
    "streams": ({"streams": ["residual"]}, r"options\.streams"),
    "metrics": ({"metrics": ["anisotropy"]}, r"options\.metrics"),
    "on_error": ({"on_error": "skip"}, r"options\.on_error"),
    "samples": ({"samples": 10}, r"data\.n_samples is 12 there and 10 here"),
}


def test_a_run_of_something_else_is_refused_with_the_difference_named(model, data, begun):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    for change, (options, message) in CHANGES.items():
        with pytest.raises(InputError, match=message):
            profile(model, data, begun, **options)
        after = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
        assert after == before, change
    both = {"seed": 1, "batch_size": 4}
    with pytest.raises(InputError, match=r"batch_size.*; .*seed"):
        profile(model, data, begun, **both)


def test_a_run_on_other_data_is_refused(model, data, begun):
    image = data[7].image.copy()
    image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))
    other = [*data]
    other[7] = Sample(data[7].id, data[7].text, image, None)
    with pytest.raises(InputError, match=r"data\.content"):
        profile(model, other, begun)


class Plain:
    """A sequence that can tell nothing about itself."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_a_run_on_another_sequence_is_refused(model, data, tmp_path, monkeypatch, every_batch):
    interrupt(model, Plain(data), tmp_path / "run", monkeypatch)
    other = Plain([Sample(s.id, s.text + "?", s.image, None) for s in data])
    with pytest.raises(InputError, match=r"data\.content"):
        profile(model, other, tmp_path / "run")


def test_a_file_that_has_changed_since_is_refused(model, tmp_path, monkeypatch, every_batch):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(9):
        random_image(20, 30, i).save(folder / f"{i}.bmp")  # all of one size in bytes
    options = {"batch_size": 2, "streams": ["residual"]}
    interrupt(model, ImageFolder(folder), tmp_path / "run", monkeypatch, 3, **options)
    random_image(20, 30, 99).save(folder / "1.bmp")
    with pytest.raises(InputError, match=r"data\.content"):
        profile(model, ImageFolder(folder), tmp_path / "run", **options)


def test_a_run_of_another_model_is_refused(fresh, data, begun):
    weight = fresh.original_model.get_output_embeddings().weight
    with torch.no_grad():
        weight[0, 0] += 1e-6
    with pytest.raises(InputError, match=r"model\.weights"):
        profile(fresh, data, begun)
    with torch.no_grad():
        weight[0, 0] -= 1e-6
    text = fresh.original_model.config.text_config
    eps, text.rms_norm_eps = text.rms_norm_eps, 0.1
    with pytest.raises(InputError, match=r"model\.config"):
        profile(fresh, data, begun)
    text.rms_norm_eps = eps
    fresh.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(InputError, match=r"model\.inputs"):
        profile(fresh, data, begun)
