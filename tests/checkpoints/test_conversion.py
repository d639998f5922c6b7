"""Conversion of OmniFusion's published files, in miniature, against the published pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from filelock import FileLock
from published_files import convert, loaded, special

import mm_lens
from mm_lens import InputError, MMLensError
from mm_lens.checkpoints.conversion import cache_directory, make_loadable

# ---- what is refused -----------------------------------------------------------------------------


def test_what_is_there_already_is_kept_or_replaced_when_asked(source, tower, tmp_path):
    out = convert(source, tmp_path / "out", tower)
    with pytest.raises(InputError, match="exists already"):
        convert(source, out, tower)
    (out / "stray").touch()
    convert(source, out, tower, overwrite=True)
    assert not (out / "stray").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(InputError, match="not written by mm-lens"):
        convert(source, mine, tower, overwrite=True)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        convert(source, mine / "thesis.tex", tower)
    with pytest.raises(MMLensError, match=r"thesis\.tex.*name another directory"):
        convert(source, mine / "thesis.tex" / "out", tower)


# ---- interruption, disk, memory ------------------------------------------------------------------


def test_a_directory_in_the_way_is_not_touched(source, tower, tmp_path):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").touch()
    with pytest.raises(MMLensError, match=r"was not written by mm-lens. Move it"):
        convert(source, tmp_path / "out", tower)
    assert [path.name for path in partial.iterdir()] == ["thesis.tex"]


def test_two_at_once_do_not_meet(source, tower, tmp_path):
    with (
        FileLock(tmp_path / ".out.lock"),
        pytest.raises(MMLensError, match="Another process is writing"),
    ):
        convert(source, tmp_path / "out", tower)


# ---- command line, formats, load -----------------------------------------------------------------


def test_load_converts_a_local_directory_once_for_each_state(replica, source, parts):
    model = mm_lens.load(str(source), device="cpu", check=False)
    assert torch.equal(model.original_model.get_input_embeddings().special[0], parts.special["SOI"])
    kept = replica.root / "cache" / "converted"
    assert len(list(kept.glob("source--*"))) == 1
    first = make_loadable(str(source))
    assert replica.downloads == ["openai/clip-vit-large-patch14-336"]
    special(SOI=torch.ones(24))(source / "OmniMistral-v1_1")
    second = make_loadable(str(source))
    assert {Path(first), Path(second)} == set(kept.glob("source--*"))
    table = loaded(second)[0].get_input_embeddings()
    assert torch.equal(table.special[0], torch.ones(24))


def test_what_transformers_can_load_is_left_to_it(replica, converted, tmp_path):
    replica.repositories["somebody/llava"] = converted, "abc"
    assert make_loadable("somebody/llava") is None
    assert make_loadable(str(converted)) is None
    assert make_loadable(str(tmp_path)) is None
    assert make_loadable("not/a/hub/id") is None
    assert not replica.downloads
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MM_LENS_CACHE")
        patch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert cache_directory() == Path("/somewhere/mm_lens/converted")
