"""`mm-lens convert`."""

from __future__ import annotations

import pickle

import torch
from published_files import loaded

from mm_lens.cli import commands as cli


def test_the_command_line_converts(source, tower, converted, tmp_path, capsys):
    arguments = ["convert", "omnifusion", str(source), str(tmp_path / "out")]
    arguments += ["--vision-tower", str(tower)]
    assert cli.run([*arguments, "--dtype", "bfloat16"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"Converted to {tmp_path / 'out'}\n"
    assert "converting to out: 100%" in captured.err
    assert loaded(tmp_path / "out")[0].dtype == torch.bfloat16
    assert cli.run(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.run([*arguments, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.run(["convert", "nothing", *arguments[2:]]) == 2
    assert "Known: omnifusion" in capsys.readouterr().err
    (source / "OmniMistral-v1_1" / "projection.pt").write_bytes(pickle.dumps(print, protocol=2))
    assert cli.run([*arguments[:3], str(tmp_path / "other"), *arguments[4:]]) == 1
    error = capsys.readouterr().err
    assert "refused" in error
    assert error.count("\n") == 1
