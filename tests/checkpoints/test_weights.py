"""Weight files of both kinds, in one file or many, against what torch and safetensors read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from mm_lens.checkpoints.weights import (
    MemoryFile,
    Spec,
    TensorFile,
    names_of_weights,
    read_object,
    weight_files,
)
from mm_lens.errors import MMLensError

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.arange(4).half(),
    "c": torch.tensor([True, False]),
    "d": torch.full((1, 2, 1), 3, dtype=torch.int64),
    "e": torch.tensor(0.5, dtype=torch.bfloat16),
}


def write(directory, parts, suffix, index=True):
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    where = {}
    for i, names in enumerate(parts, 1):
        number = f"-{i:05}-of-{len(parts):05}" if len(parts) > 1 else ""
        file = f"{stem}{number}.{suffix}"
        where |= dict.fromkeys(names, file)
        tensors = {name: TENSORS[name] for name in names}
        (save_file if suffix == "safetensors" else torch.save)(tensors, directory / file)
    if index and len(parts) > 1:
        (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("parts", [["abcde"], ["ab", "cde"]], ids=len)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_every_tensor_is_read_as_it_was_saved(suffix, parts, index, tmp_path):
    write(tmp_path, parts, suffix, index)
    files = weight_files(tmp_path)
    assert [list(file.specs) for file in files] == [sorted(part) for part in parts]
    for file in files:
        assert isinstance(file, TensorFile)
        with file.open() as read:
            for name, spec in file.specs.items():
                assert spec == Spec(tuple(TENSORS[name].shape), TENSORS[name].dtype)
                assert torch.equal(read(name), TENSORS[name])


def test_a_file_in_memory_is_one_too(tmp_path):
    file = MemoryFile(tmp_path / "x", TENSORS)
    assert isinstance(file, TensorFile)
    assert file.specs["a"] == Spec((2, 3), torch.float32)
    with file.open() as read:
        assert read("a") is TENSORS["a"]


def test_safetensors_come_first_and_other_files_are_none():
    both = ["model.safetensors", "pytorch_model.bin", "training_args.bin", "x.safetensors"]
    assert names_of_weights(both) == ["model.safetensors"]
    assert names_of_weights(both[1:]) == ["pytorch_model.bin"]
    assert names_of_weights(both[2:]) == []
    assert names_of_weights(["model.safetensors.index.json", "pytorch_model.bin"]) == [
        "pytorch_model.bin"
    ]


def test_what_is_incomplete_is_named(tmp_path):
    with pytest.raises(MMLensError, match="holds no weights"):
        weight_files(tmp_path)
    write(tmp_path, ["ab", "cde"], "safetensors", index=False)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MMLensError, match=r"holds 1 weight files, but .*00001.* is one of 2"):
        weight_files(tmp_path)
    write(tmp_path, ["ab", "bcde"], "safetensors")
    with pytest.raises(MMLensError, match=r"b is both in model-00001.* and in model-00002"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "truncated or no JSON"), ("[1]", "no JSON object")]
)
def test_a_file_that_is_no_json_object_is_named(content, message, tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(MMLensError, match=r"config\.json is missing"):
        read_object(path)
    path.write_text(content)
    with pytest.raises(MMLensError, match=message):
        read_object(path)
