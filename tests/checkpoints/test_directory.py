"""Directories that others made are looked at before they are read."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from mm_lens.checkpoints import directory
from mm_lens.checkpoints.directory import check_directory, check_regular, count_numbers
from mm_lens.errors import MMLensError


@pytest.mark.parametrize("name", ["a.png", "sub/tokenizer.json"])
def test_pipes_are_refused(tmp_path, name):
    (tmp_path / "sub").mkdir()
    check_regular(tmp_path)
    os.mkfifo(tmp_path / name)
    with pytest.raises(MMLensError, match=f"{name} is not a file, but a pipe or a device"):
        check_regular(tmp_path)


def test_devices_behind_links_are_refused(tmp_path):
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(MMLensError, match=r"config\.json is not a file"):
        check_directory(tmp_path)


def test_links_to_files_are_fine(tmp_path):
    (tmp_path / "blob").write_text("{}")
    (tmp_path / "config.json").symlink_to(tmp_path / "blob")  # as in the cache of the hub
    check_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("config.json", "{", "truncated or no JSON file"),
        ("tokenizer.json", "[" * 10**5, "nested too deep"),
        ("processor_config.json", "[]", "holds no JSON object"),
        ("model.safetensors.index.json", "{}", "has no weight_map"),
        (
            "pytorch_model.bin.index.json",
            json.dumps({"weight_map": {"a": "../b.bin"}}),
            "names '../b.bin', which is not a file beside it",
        ),
        (
            "model.safetensors.index.json",
            json.dumps({"weight_map": {"a": "/etc/passwd"}}),
            "not a file beside it",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(MMLensError, match=told) as raised:
        check_directory(tmp_path)
    assert str(tmp_path / name) in str(raised.value)


def test_a_template_has_a_size(tmp_path, monkeypatch):
    (tmp_path / "chat_template.jinja").write_text("abc")
    check_directory(tmp_path)
    monkeypatch.setattr(directory, "MAX_TEMPLATE", 2)
    with pytest.raises(MMLensError, match="3 bytes, more than the 2"):
        check_directory(tmp_path)


def test_numbers_are_counted_without_reading_them(tmp_path):
    assert count_numbers(tmp_path) is None
    one, other = {"a": torch.zeros(3, 4)}, {"b": torch.zeros(5, dtype=torch.int8)}
    torch.save(one, tmp_path / "pytorch_model.bin")
    assert count_numbers(tmp_path) == 12
    save_file(one, tmp_path / "model-00001-of-00002.safetensors")
    save_file(other, tmp_path / "model-00002-of-00002.safetensors")
    assert count_numbers(tmp_path) == 17
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x")
    with pytest.raises(MMLensError, match="truncated or damaged"):
        count_numbers(tmp_path)
