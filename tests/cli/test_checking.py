"""`mm-lens check` and `python -m mm_lens.check`."""

from __future__ import annotations

import json

import pytest
import tiny_families

from mm_lens import InputError
from mm_lens.check.__main__ import main
from mm_lens.cli import run

NAMES = "one image,left padding,rows of a batch"


def test_a_demo_model_is_checked(capsys):
    assert run(["check", "demo/llava-next", "--only", NAMES, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert {row["check"]: row["verdict"] for row in found["checks"]} == dict.fromkeys(
        NAMES.split(","), "holds"
    )


def test_a_family_of_ones_own_is_checked(capsys, monkeypatch):
    monkeypatch.setattr(
        tiny_families, "own", lambda: tiny_families.build("qwen2-vl"), raising=False
    )
    assert main(["--family", "tiny_families:own", "--only", NAMES]) == 0
    assert "3 hold" in capsys.readouterr().out


def test_what_fails_is_the_exit_code(capsys, monkeypatch):
    built = [tiny_families.build("qwen2-vl") for _ in range(2)]
    built[0][0].lm_head.weight.data.mul_(1.1)
    monkeypatch.setattr(tiny_families, "own", built.pop, raising=False)
    assert main(["--family", "tiny_families:own", "--only", "one image", "--sample"]) == 1
    assert "one image              fails" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["no_such_module:build", "tiny_families:nothing", "tiny_families"])
def test_builders_that_are_not_there_are_refused(name):
    with pytest.raises(InputError, match="There is no builder"):
        main(["--family", name])


def test_the_command_explains_unknown_checks(capsys):
    assert run(["check", "demo/llava-next", "--only", "colours"]) == 1
    assert "No check is called 'colours'" in capsys.readouterr().err
