"""`mm-lens recipe` with the demo model."""

from __future__ import annotations

import json

from mm_lens.cli import run
from mm_lens.cli.runs import recipes


def test_list_and_run(capsys, monkeypatch):
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
    monkeypatch.setattr(recipes, "load_model", None)  # told before anything is loaded
    assert run(["recipe", "run", "object-ablatoin", "--data", "nowhere"]) == 1
    told = capsys.readouterr().err
    assert "No recipe is called 'object-ablatoin'" in told
    assert "Did you mean 'object-ablation'?" in told
