"""Wrong uses of commands: each message names cause and remedy, and comes before a model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny import random_image

from mm_lens.cli import commands
from mm_lens.cli import evaluating as evaluate_module
from mm_lens.cli.runs import recipes as recipe_module
from mm_lens.cli.samples import opened

Q = "What is it?"
MODEL = ("--model", "demo/llava-next")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Two pictures and a table; no model can be loaded."""
    monkeypatch.chdir(tmp_path)
    for module in (opened, evaluate_module, recipe_module):
        monkeypatch.setattr(module, "load_model", None)
    for seed, name in enumerate(("a.png", "b.png")):
        random_image(8, 12, seed).save(name)
    Path("set.csv").write_text("image,text,answer\na.png,What?,red\n")
    Path("bare.csv").write_text("image,text\na.png,What?\n")
    Path("run").mkdir()


def config(**entries: object) -> list[str]:
    """A command in a file."""
    Path("config.yaml").write_text(yaml.safe_dump(entries))
    return ["run", "config.yaml"]


USES = {
    "explore: no picture at hand": (
        lambda: ["explore", "no.png", Q, *MODEL, "--out", "o.html"],
        2,
        "'no.png' is not there",
        "mm-lens data show easy-vqa --save pictures",
    ),
    "explore: picture and question swapped": (
        lambda: ["explore", Q, "a.png", *MODEL, "--out", "o.html"],
        2,
        f"'{Q}' is not there",
        "give the file of a picture",
    ),
    "explore: a page below a file": (
        lambda: ["explore", "a.png", Q, *MODEL, "--out", "b.png/o.html"],
        1,
        "b.png is a file: nothing can be written below it",
        "name another directory",
    ),
    "generate: a temperature without end": (
        lambda: ["generate", "a.png", Q, *MODEL, "--temperature", "inf"],
        2,
        "inf is no temperature",
        "a number from 0",
    ),
    "generate: a seed that torch cannot take": (
        lambda: ["generate", "a.png", Q, *MODEL, "--temperature", "1", "--seed", str(10**30)],
        2,
        "'--seed'",
        "less than or equal to",
    ),
    "recipe: a name misspelt": (
        lambda: ["recipe", "run", "object-ablatoin"],
        1,
        "No recipe is called 'object-ablatoin'",
        "Did you mean 'object-ablation'?",
    ),
    "recipe: data of no name": (
        lambda: ["recipe", "run", "object-ablation", "--data", "easy-vqaa"],
        1,
        "easy-vqaa",
        "easy-vqa",
    ),
    "relate: no profile": (
        lambda: ["relate", "run", "run", "--out", "o"],
        1,
        "run holds no readable profile",
        "mm-lens profile wrote",
    ),
    "evaluate: scores below a file": (
        lambda: ["evaluate", *MODEL, "--data", "set.csv", "--out", "a.png/o"],
        1,
        "a.png is a file",
        "name another directory",
    ),
    "evaluate: data without answers": (
        lambda: ["evaluate", *MODEL, "--data", "bare.csv", "--out", "o"],
        1,
        "has no right answer to compare with",
        "--answer-column",
    ),
    "evaluate: a column that is not there": (
        lambda: ["evaluate", *MODEL, "--data", "set.csv", "--out", "o", "--by", "kidn"],
        1,
        "by names the column 'kidn'",
        "There are: ",
    ),
    "evaluate: one option": (
        lambda: ["evaluate", *MODEL, "--data", "set.csv", "--out", "o", "--options", "red"],
        1,
        "options are a list",
        "at least two different answers",
    ),
    "run: a directory": (lambda: ["run", "run"], 1, "run is a directory", "Give one with"),
    "run: a group": (
        lambda: config(command="recipe", limit=3),
        1,
        "names the command 'recipe'",
        "recipe run",
    ),
    "run: an argument is missing": (
        lambda: config(command="ask", image="a.png", model="demo/llava-next"),
        2,
        "lacks the argument 'QUESTION'",
        "See mm-lens ask --help",
    ),
    "run: a picture": (lambda: ["run", "a.png"], 1, "a.png is no YAML", "Correct the file"),
}


@pytest.mark.parametrize("name", USES)
def test_cause_and_remedy_before_a_model(name, capsys):
    arguments, code, cause, remedy = USES[name]
    assert commands.run(arguments()) == code
    told = " ".join(capsys.readouterr().err.split())
    assert cause in told
    assert remedy in told
