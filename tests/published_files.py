"""Published files of OmniFusion in miniature, ways to spoil them, and their conversion.

A plugin of conftest.py: the fixtures are every test's.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal

import pytest
import torch
from mm_lens_adapters.omnifusion import (
    OmniFusionForConditionalGeneration,
)
from tiny import random_image, tiny_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
)
from upstream import (
    PROMPT,
    random_parts,
    write_tower,
    write_upstream,
)

import mm_lens

QUESTION = "What is it?"


SHARD = 60_000  # bytes: three files


@pytest.fixture(scope="module")
def parts():
    return random_parts()


@pytest.fixture(scope="module")
def tower(parts, tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("clip") / "tower", parts)


@pytest.fixture
def source(parts, tmp_path):
    write_upstream(tmp_path / "source", parts)
    return tmp_path / "source"


@pytest.fixture(scope="module")
def converted(parts, tower, tmp_path_factory):
    """A conversion that tests only read."""
    path = tmp_path_factory.mktemp("converted")
    write_upstream(path / "source", parts)
    return convert(path / "source", path / "out", tower)


def convert(source, out, tower, **options):
    options = {"shard_bytes": SHARD, "progress": False, **options}
    return mm_lens.convert("omnifusion", source, out, vision_tower=str(tower), **options)


def loaded(path):
    """Model and processor, as anybody loads them with transformers."""
    model, info = AutoModelForImageTextToText.from_pretrained(
        path, output_loading_info=True, dtype="auto"
    )
    assert not any(info.values()), info
    assert isinstance(model, OmniFusionForConditionalGeneration)
    return model.eval(), AutoProcessor.from_pretrained(path, use_fast=False)


def asked(processor, question=QUESTION, seed=0):
    """Inputs of the model, and what the published pipeline gets."""
    text = f"{PROMPT}<SOI><image><EOI><USER>{question}<BOT>"
    inputs = processor(images=random_image(31, 57, seed), text=text, return_tensors="pt")
    plain = tiny_tokenizer(image_token=None)
    ids = [plain(part, add_special_tokens=False).input_ids for part in (PROMPT, question)]
    return inputs, (inputs["pixel_values"], *ids)


def contents(directory):
    """A digest of every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def edit(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def special(**vectors):
    def damage(root):
        path = root / "special_embeddings.pt"
        entries = {**torch.load(path), **vectors}
        torch.save({k: v for k, v in entries.items() if v is not None}, path)

    return damage


def killed(source, out, tower, monkeypatch, module, name, call):
    """Convert in a process of its own that kills itself when a function is called the n-th time."""
    pid = os.fork()
    if pid == 0:
        calls, real = [], getattr(module, name)

        def fatal(*arguments, **keywords):
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **keywords)

        monkeypatch.setattr(module, name, fatal)
        convert(source, out, tower)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
