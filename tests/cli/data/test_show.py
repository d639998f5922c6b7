"""`mm-lens data show`: samples as a model will see them."""

from __future__ import annotations

import pytest
from tiny import random_image

from mm_lens.cli import commands as cli
from mm_lens.cli.data.options import Data
from mm_lens.cli.data.show import describe
from mm_lens.data.samples import Sample
from mm_lens.data.sets import OWN


@pytest.fixture
def table(tmp_path):
    random_image(8, 12).save(tmp_path / "a.png")
    (tmp_path / "set.tsv").write_text("pic\tq\to\ta\na.png\tWhich?\tred|blue\tB\n")
    return tmp_path / "set.tsv"


def test_the_first_samples_of_a_table(table, capsys):
    names = ["--image-column", "pic", "--text-column", "q", "--options-column", "o"]
    names += ["--answer-column", "a", "--prompt", r"{question}\n{choices}"]
    assert cli.run(["data", "show", str(table), *names]) == 0
    shown = capsys.readouterr().out
    for line in ("1 samples, 1 images", "12×8", "Which?\n        A. red\n        B. blue", "blue"):
        assert line in shown
    assert cli.run(["data", "show", str(table)]) == 1
    told = capsys.readouterr().err
    assert "There are: pic, q, o, a." in told
    assert "--image-column" in told


def test_with_a_model_its_prompt_and_tokens(model):
    sample = Sample("7", "What?", random_image(20, 30), None)
    lines = describe(sample, model)
    inputs = model.prepare("What?", random_image(20, 30))
    visual = int(inputs.layout.counts("visual")[0])
    assert any(line.startswith(f"tokens  {visual} visual, ") for line in lines)
    assert inputs.text[0].split("\n")[0] in "\n".join(lines)


def test_the_option_names_every_data_set_that_ships():
    help_of_data = Data.__metadata__[0].help
    assert [name for name in OWN if name not in help_of_data] == []
