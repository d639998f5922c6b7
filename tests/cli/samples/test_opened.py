"""What every command about a picture refuses before a model is loaded."""

from __future__ import annotations

import pytest

from mm_lens.cli import commands
from mm_lens.cli.samples import opened


@pytest.mark.parametrize(
    ("changed", "extra", "message"),
    [
        ({"image": "https://a.org/b.png"}, (), "addresses are not fetched"),
        ({"image": "https:/a.org/b.png"}, (), "addresses are not fetched"),  # as a path is written
        ({"image": "s3://bucket/b.png"}, (), "addresses are not fetched"),
        ({"image": "no-such.png"}, (), "'no-such.png' is not there"),
        ({"image": "."}, (), "is a directory"),
        ({"model": "./nope"}, (), "There is no directory ./nope"),
        ({"model": "nope/"}, (), "There is no directory nope/"),
        ({"model": "demo/llava"}, (), "Did you mean 'demo/llava-next'?"),
        ({}, ("--dtype", "float17"), "'--dtype': 'float17' is not one of"),
        ({}, ("--device", "warp"), "no device 'warp'"),
        ({}, ("--out", "page.txt"), "let it end in .html"),
    ],
)
def test_what_is_wrong_is_told_first(
    changed, extra, message, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opened, "load_model", None)
    given = {"image": pictures[0], "model": "demo/llava-next", **changed}
    code = commands.run(["ask", given["image"], "What?", "--model", given["model"], *extra])
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert message in err
    assert err.startswith("mm-lens: ")
    assert err.count("\n") == 1


def test_a_page_is_replaced_only_when_asked(mm_lens, tmp_path, pictures, capsys):
    mm_lens("layout")
    page = str(tmp_path / "page.html")
    given = ["layout", pictures[0], "Why?", "--model", "org/tiny", "--out", page]
    assert commands.run(given) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert commands.run([*given, "--overwrite"]) == 0
    assert "Why?" in (tmp_path / "page.html").read_text("utf-8")
