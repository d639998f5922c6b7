"""A tiny model and pictures on disk, and commands run on them."""

from __future__ import annotations

import json

import pytest
from conftest import load_tiny
from tiny import random_image

from mm_lens.cli import commands
from mm_lens.cli.samples import opened

QUESTION = "What is it?"


@pytest.fixture(scope="module")
def bridges():
    """One of each kind of attention, opened once for all commands."""
    return {a: load_tiny(attention=a, check=False) for a in ("sdpa", "eager")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for seed in range(2):
        found.append(str(folder / f"{seed}.png"))
        random_image(31, 57, seed).save(found[-1])
    return found


@pytest.fixture
def mm_lens(monkeypatch, bridges, pictures, tmp_path, capsys):
    """Run a command on the first picture; what it prints, as JSON, as text, and its page."""
    monkeypatch.setattr(
        opened, "load_model", lambda name, *, attention, **options: bridges[attention]
    )

    def run(command, *extra):
        page = tmp_path / "page.html"
        given = [command, pictures[0], QUESTION, "--model", "org/tiny", *extra]
        assert commands.run([*given, "--json", "--out", str(page)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert commands.run(given) == 0
        text = capsys.readouterr().out
        assert (found["model"], found["image"], found["question"]) == (
            "org/tiny",
            pictures[0],
            QUESTION,
        )
        return found, text, page.read_text("utf-8")

    return run
