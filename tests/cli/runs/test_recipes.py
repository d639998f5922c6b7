"""`mm-lens recipe` with the demo model."""

from __future__ import annotations

import json

from mm_lens.cli import run


def test_list_and_run(capsys):
    assert run(["recipe", "list"]) == 0
    listed = capsys.readouterr().out
    assert "object-ablation: " in listed
    assert "arXiv 2410.07149" in listed
    command = ["recipe", "run", "object-ablation", "--limit", "3", "--no-check", "--json"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["n_questions"] == 3
    assert told["low"] <= told["value"] <= told["high"]
    assert told["verdict"] in ("holds", "does not hold", "cannot be told")
    assert len(told["table"]) == 3
    assert run(["recipe", "run", "nothing", "--no-check"]) == 1
    assert "No recipe is called 'nothing'" in capsys.readouterr().err
