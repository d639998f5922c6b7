"""`mm-lens evaluate`: what it writes, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_scienceqa import write_original, write_parquet
from tiny import tiny_llava_next

from mm_lens import Scores
from mm_lens.cli import commands as cli
from mm_lens.evaluating import run


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    for part in tiny_llava_next():
        part.save_pretrained(path)
    return path


@pytest.fixture
def evaluate(model, tmp_path, capsys):
    write_original(tmp_path)

    def go(*extra, data=f"scienceqa:{tmp_path}"):
        out = tmp_path / "runs" / "one"
        given = ["--model", str(model), "--data", data, "--out", str(out), "--no-check"]
        given += ["--max-tokens", "2", "--conditions", "given", "--device", "cpu"]
        return cli.run(["evaluate", *given, *extra]), *capsys.readouterr(), out

    return go


def test_what_it_writes_and_that_it_goes_on(evaluate, tmp_path, monkeypatch):
    ask = ("--protocol", "llava", "--batch-size", "4")
    left, answer = [1], run._answer_unit

    def stops(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return answer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(run, "_answer_unit", stops)
        code, _, err, out = evaluate(*ask)
    assert code == 130
    assert f"What was done is in {out}.partial: run the same again to resume." in err
    code, stdout, err, out = evaluate(*ask)
    assert code == 0, err
    assert "2/3" not in stdout
    assert "image: yes" in stdout
    assert "subject: natural science" in stdout
    assert [path.name for path in out.parent.iterdir()] == ["one"]
    found = Scores.load(out)
    assert len(found.answers) == 10
    about = json.loads((out / "provenance.json").read_text())
    assert (about["protocol"], about["data"]["name"]) == ("llava", f"scienceqa:{tmp_path}/test")
    code, _, err, _ = evaluate(*ask)
    assert code == 1
    assert "exists already" in err


def test_the_columns_of_any_table(evaluate, tmp_path):
    table = write_parquet(tmp_path / "set.parquet")
    names = ["--text-column", "question", "--options-column", "choices", "--by", "grade"]
    code, stdout, err, out = evaluate(
        *names, "--protocol", "options", "--prompt", r"{hint}\n{question}", data=str(table)
    )
    assert code == 0, err
    assert "grade: grade1" in stdout
    assert "\n" in "".join(Scores.load(out).answers.asked)


@pytest.mark.parametrize(
    ("extra", "code", "told"),
    [
        (("--protocol", "lama"), 2, "llava"),
        (("--conditions", "dark"), 2, "given, blanked, removed"),
        (("--split", "dev"), 1, "no split 'dev'"),
        (("--by", "level"), 1, "by names the column 'level'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(evaluate, extra, code, told):
    found, stdout, err, _ = evaluate(*extra)
    assert (found, stdout) == (code, "")
    assert told in err.splitlines()[-1]
