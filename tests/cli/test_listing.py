"""`mm-lens list` names what other commands take."""

from __future__ import annotations

import json

import pytest

from mm_lens import demo
from mm_lens.cli import commands
from mm_lens.cli.hook_options import is_registered, read_metrics
from mm_lens.data import datasets
from mm_lens.metrics import METRICS
from mm_lens.model.families import families


def listed(what, capsys):
    assert commands.run(["list", what, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_everything_is_listed(capsys):
    assert [row["name"] for row in listed("models", capsys)] == demo.available()
    assert [row["name"] for row in listed("data", capsys)] == datasets.names()
    assert [row["name"] for row in listed("metrics", capsys)] == [*METRICS]
    classes = {name for row in listed("families", capsys) for name in row["classes"].split(", ")}
    assert classes == {*families()}


def test_for_people(capsys):
    assert commands.run(["list", "data"]) == 0
    assert "easy-vqa: easy-VQA: questions about one coloured shape" in capsys.readouterr().out
    assert commands.run(["list", "modles"]) == 2
    assert "'models'" in capsys.readouterr().err


def test_every_metric_is_known_without_torch():
    assert [name for name in METRICS if not is_registered(name)] == []
    assert not is_registered("linearity")
    assert read_metrics("anisotropy, mean_cosine_without_massive") == [
        "anisotropy",
        "mean_cosine_without_massive",
    ]


@pytest.mark.parametrize(("given", "meant"), [("linearity_papr", "linearity_paper")])
def test_a_metric_misspelt_is_told_which_is_meant(given, meant):
    with pytest.raises(Exception, match=f"Did you mean '{meant}'"):
        read_metrics(given)
