"""Shards are written one by one: killed, on a full disk, in bounded memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mm_lens_adapters.omnifusion import (
    MARKERS,
)
from mm_lens_adapters.omnifusion.convert import OmniFusionFormat
from published_files import contents, convert, cut, killed, loaded, special
from safetensors import SafetensorError
from upstream import (
    random_parts,
    write_tower,
    write_upstream,
)

from mm_lens import MMLensError
from mm_lens.checkpoints import shards
from mm_lens.cli import commands as cli


def test_mixed_dtypes_are_an_error_or_converted_when_asked(parts, tower, source, tmp_path):
    half = {k: v.bfloat16() for k, v in parts.special.items()}
    torch.save(half, source / "OmniMistral-v1_1" / "special_embeddings.pt")
    with pytest.raises(MMLensError, match=r"bfloat16 in special_embeddings.pt; float32 in model-0"):
        convert(source, tmp_path / "out", tower)
    assert not (tmp_path / "out").exists()
    out = convert(source, tmp_path / "out", tower, dtype=torch.float16)
    model, _ = loaded(out)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    special = model.get_input_embeddings().special
    for row, marker in zip(special, MARKERS, strict=True):
        assert torch.equal(row, half[marker.strip("<>")].half())


@pytest.mark.parametrize(
    ("name", "call", "finished"),
    [
        ("_write_shard", 3, 2),  # between two
        ("_to_disk", 2, 1),  # a file is written, but has not got its name
        ("_write_json", 2, 3),  # the last file, behind configuration and tokenizer
        ("_exchange", 1, 3),  # all is there but the name
    ],
)
def test_a_killed_conversion_is_continued(
    name, call, finished, source, converted, tower, tmp_path, monkeypatch
):
    from mm_lens._storage import files

    out, partial = tmp_path / "out", tmp_path / "out.partial"
    module = files if name == "_exchange" else shards
    killed(source, out, tower, monkeypatch, module, name, call)
    assert not out.exists()
    before = {p.name: p.stat().st_ino for p in partial.glob("*.safetensors")}
    assert len(before) == finished
    convert(source, out, tower)
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))
    kept = {p.name: p.stat().st_ino for p in out.glob("*.safetensors") if p.name in before}
    if name != "_exchange":
        assert kept == before
    ours, whole = contents(out), contents(converted)
    assert ours == whole


def test_only_the_same_conversion_is_continued(source, tower, tmp_path, monkeypatch):
    out = tmp_path / "out"
    killed(source, out, tower, monkeypatch, shards, "_write_shard", 3)
    with pytest.raises(MMLensError, match=r"dtype: float32 then, bfloat16 now"):
        convert(source, out, tower, dtype=torch.bfloat16)
    with pytest.raises(MMLensError, match=r"unfinished work on something else \(shards: "):
        convert(source, out, tower, shard_bytes=30_000)
    path = source / "OmniMistral-v1_1" / "special_embeddings.pt"
    special(SOI=torch.ones(24))(path.parent)
    with pytest.raises(
        MMLensError, match=r"special_embeddings\.pt: \d+ bytes.* Delete it to begin"
    ):
        convert(source, out, tower)
    shutil.rmtree(tmp_path / "out.partial")
    model, _ = loaded(convert(source, out, tower))
    assert torch.equal(model.get_input_embeddings().special[0], torch.ones(24))


def test_a_damaged_finished_shard_is_written_again(source, converted, tower, tmp_path, monkeypatch):
    killed(source, tmp_path / "out", tower, monkeypatch, shards, "_write_shard", 2)
    cut(tmp_path / "out.partial" / "model-00001-of-00003.safetensors")
    assert contents(convert(source, tmp_path / "out", tower)) == contents(converted)


def test_ctrl_c_keeps_what_is_finished(source, converted, tower, tmp_path, monkeypatch, capsys):
    real = shards._to_disk

    def interrupted(path):
        if "00002" in path.name:
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(shards, "_to_disk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", tower)
    assert {p.name for p in (tmp_path / "out.partial").iterdir()} == {
        "journal.json",
        "model-00001-of-00003.safetensors",
    }
    monkeypatch.setattr(shards, "_write_shard", lambda *_: interrupted(Path("00002")))
    arguments = [str(source), str(tmp_path / "other"), "--vision-tower", str(tower), "--quiet"]
    assert cli.run(["convert", "omnifusion", *arguments]) == 130
    assert "Interrupted: " in (error := capsys.readouterr().err)
    assert "The same command resumes" in error
    assert not list(tmp_path.glob("other*"))
    monkeypatch.undo()
    assert contents(convert(source, tmp_path / "out", tower)) == contents(converted)


def test_a_full_disk_is_told_before_and_while_writing(source, tower, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
        with pytest.raises(MMLensError, match=r"The disk is full \(0\.0 GB needed, .*Free some"):
            convert(source, tmp_path / "out", tower)
        assert not list(tmp_path.glob("out*"))
    real, calls = shards.save_file, []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, metadata)

    monkeypatch.setattr(shards, "save_file", full)
    with pytest.raises(MMLensError, match=r"The disk is full.*run the same again to resume"):
        convert(source, tmp_path / "out", tower)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.partial").iterdir())) == 2  # a shard and the journal
    loaded(convert(source, tmp_path / "out", tower))
    assert len(calls) == 4


def test_a_disk_that_cannot_be_written_is_told(source, tower, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "out.partial"))

    monkeypatch.setattr(shards, "save_file", refused)
    with pytest.raises(MMLensError, match=r"out\.partial: Permission denied.*name another"):
        convert(source, tmp_path / "out", tower)
    assert not list(tmp_path.glob("out*"))


MEASURE = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    import mm_lens

    def peak():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    def convert(name):
        mm_lens.convert(
            "omnifusion", {work!r} + "/" + name, {work!r} + "/out-" + name,
            vision_tower={work!r} + "/tower", shard_bytes={shard}, progress=False,
        )

    convert("small")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    convert("large")
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.slow
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_memory_holds_one_shard_not_the_model(binary, tmp_path):
    parts = random_parts()
    write_tower(tmp_path / "tower", parts)
    write_upstream(tmp_path / "small", parts)
    large = random_parts(hidden_size=256, intermediate_size=1024, num_hidden_layers=16, head_dim=64)
    write_upstream(tmp_path / "large", large, shards=4, binary=binary)
    model = sum(t.nbytes for t in large.language.state_dict().values())
    shard = 6 * 2**20
    assert model > 8 * shard
    script = MEASURE.format(tests=str(Path(__file__).parents[1]), work=str(tmp_path), shard=shard)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 2 * shard


def test_a_plan_with_a_name_twice_is_refused(source, tower):
    plan = OmniFusionFormat.plan(source, vision_tower=str(tower))
    shards.check_names(plan)
    with pytest.raises(MMLensError, match=r"is in .* and in "):
        shards.check_names(replace(plan, parts=[*plan.parts, plan.parts[-1]]))
