"""A command killed after its result was written, and before its states were gone."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from tiny import random_image, tiny_llava_next

from mm_lens.cli import commands as cli
from mm_lens.profiling import run_directory


@pytest.fixture
def arguments(tmp_path, monkeypatch) -> list[str]:
    """A command; its pictures, at which nobody looks, are not drawn."""
    monkeypatch.setattr("mm_lens.drawing.report.write", lambda profile, directory: iter(()))
    for part in tiny_llava_next():
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for i in range(2):
        random_image(20 + i, 30, i).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "runs").mkdir()
    given = {name: tmp_path / name for name in ("model", "images")}
    options = ["--model", str(given["model"]), "--data", str(given["images"]), "--no-check"]
    options += ["--streams", "residual", "--metrics", "mean_cosine"]
    return ["profile", *options, "--out", str(tmp_path / "runs" / "one")]


def run_killed(arguments: list[str], where: str, moment: int = 1) -> None:
    """Run a command in a process of its own, which is killed at the n-th call of `os.<where>`
    that has to do with the result or, where that is complete, with the run directory."""
    process = os.fork()
    if process == 0:
        left, out = [moment], Path(arguments[-1])
        change = getattr(os, where)

        def dies(path, *args, **kwargs):
            name = Path(path)
            if where == "rename" or (out.exists() and f"{out}.partial" in str(name)):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return change(path, *args, **kwargs)

        setattr(os, where, dies)
        cli.run(arguments)
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("moment", [1, 2, 5])
def test_the_same_command_is_done(arguments, tmp_path, capsys, moment):
    runs = tmp_path / "runs"
    run_killed(arguments, "unlink", moment)
    assert sorted(path.name for path in runs.iterdir()) == ["one", "one.partial"]
    before = (runs / "one" / "provenance.json").read_bytes()
    assert cli.run(arguments) == 0
    assert f"{runs / 'one'} is complete" in capsys.readouterr().out
    assert [path.name for path in runs.iterdir()] == ["one"]
    assert (runs / "one" / "provenance.json").read_bytes() == before
    assert cli.run(arguments) == 1  # from now on it is one that has ended by itself
    assert "exists already" in capsys.readouterr().err


def test_another_command_finds_a_result_and_nothing_else(arguments, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs"
    run_killed(arguments, "unlink")
    monkeypatch.setattr(sys, "argv", ["mm-lens", "another"])
    assert cli.run([*arguments, "--seed", "3"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in runs.iterdir()] == ["one"]
    assert cli.run([*arguments, "--seed", "3", "--overwrite", "--quiet"]) == 0
    provenance = json.loads((runs / "one" / "provenance.json").read_text())
    assert provenance["options"]["seed"] == 3


def test_killed_before_the_result_has_its_name_it_is_resumed(arguments, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    run_killed(arguments, "rename")
    assert not (runs / "one").exists()
    assert (runs / "one.partial" / run_directory.WRITTEN).exists()
    monkeypatch.setattr("mm_lens.profiling.states._take", None)  # nothing is left to run
    assert cli.run([*arguments, "--quiet"]) == 0
    assert [path.name for path in runs.iterdir()] == ["one"]


def test_a_result_that_was_replaced_since_is_not_taken_for_this_one(arguments, tmp_path):
    runs = tmp_path / "runs"
    run_killed(arguments, "unlink")
    (runs / "one" / "provenance.json").write_text("{}")
    assert not run_directory.has_served(runs / "one.partial", runs / "one" / "provenance.json")
