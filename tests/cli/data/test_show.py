"""`mm-lens data show`: samples as a model will see them."""

from __future__ import annotations

import pytest
from PIL import Image
from tiny import random_image

from mm_lens.cli import commands as cli
from mm_lens.cli.data.options import Data
from mm_lens.cli.data.show import describe, save_pictures
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


def test_pictures_of_a_data_set_are_written_to_try_commands_on(table, tmp_path, capsys):
    names = ["--image-column", "pic", "--text-column", "q", "--save", str(tmp_path / "pictures")]
    assert cli.run(["data", "show", str(table), *names]) == 0
    written = tmp_path / "pictures" / "0.png"
    assert f"wrote   {written}" in capsys.readouterr().out
    with Image.open(written) as saved, Image.open(tmp_path / "a.png") as given:
        assert saved.convert("RGB").tobytes() == given.convert("RGB").tobytes()
    assert cli.run(["data", "show", str(table), *names]) == 2
    assert "Name a directory that is new or empty" in capsys.readouterr().err


def test_a_picture_is_written_once_however_often_it_is_asked_about(tmp_path, capsys):
    random_image(8, 12).save(tmp_path / "a.png")
    random_image(8, 12, 1).save(tmp_path / "b.png")
    rows = ["a.png,What?", "a.png,Which?", ",No picture?", "b.png,What?", "a.png,Why?"]
    (tmp_path / "set.csv").write_text("\n".join(["image,text", *rows]))
    names = ["data", "show", str(tmp_path / "set.csv"), "--save", str(tmp_path / "pictures")]
    assert cli.run([*names, "--samples", "9"]) == 0
    assert capsys.readouterr().out.count("\nid ") == 3
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"0.png", "3.png"}


def test_files_are_named_after_ids_and_stay_in_the_folder(tmp_path):
    pictures = (random_image(8, 8), random_image(9, 9))
    paths = save_pictures(Sample("../test/0 1", "What?", pictures, None), tmp_path)
    assert paths == [tmp_path / "test-0-1.png", tmp_path / "test-0-1-1.png"]
    assert [Image.open(path).size for path in paths] == [(8, 8), (9, 9)]


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
