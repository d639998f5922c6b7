"""`mm-lens index` with the demo model."""

from __future__ import annotations

from mm_lens.cli import run
from mm_lens.looking import TextIndex


def test_an_index_is_written_and_nothing_is_overwritten(tmp_path, capsys):
    texts, out = tmp_path / "texts.txt", tmp_path / "index.safetensors"
    texts.write_text("what color is the shape?\n\nis there a red circle?\n")
    command = ["index", str(texts), "--model", "demo/llava-next", "--out", str(out)]
    assert run([*command, "--layers", "4,8", "--no-check"]) == 0
    index = TextIndex.load(out)
    assert index.layers == (4, 8)
    assert any("[ red]" in text or "[red]" in text for text in index.contexts)
    assert f"{len(index.contexts)} words of 2 texts" in capsys.readouterr().out
    assert run(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(["index", "nothing.txt", *command[2:], "--overwrite"]) == 2
    assert "is no file" in capsys.readouterr().err
