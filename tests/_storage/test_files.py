"""A directory is there as a whole or not at all."""

from __future__ import annotations

import json

import pytest
from filelock import FileLock

from mm_lens._storage.files import check_free, resumable_directory, whole_directory
from mm_lens.errors import InputError, MMLensError

MARK = "made.json"


def names_below(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def write(path, content="one", mark=MARK, **options):
    with whole_directory(path, mark, **options) as new:
        (new / mark).write_text(content)


def spoil(new, error):
    (new / MARK).write_text("two")
    raise error


def test_nothing_is_at_its_name_before_the_end(tmp_path):
    path = tmp_path / "a" / "b"
    with whole_directory(path, MARK) as new:
        (new / MARK).write_text("one")
        assert not path.exists()
        assert new.stat().st_dev == path.parent.stat().st_dev  # renaming is atomic
    assert names_below(tmp_path) == ["a", "a/b", "a/b/made.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, error):
    with pytest.raises(error), whole_directory(tmp_path / "a" / "b", MARK):
        raise error
    assert names_below(tmp_path) == []  # nor the directory above, which was made for it
    write(tmp_path / "b")
    with pytest.raises(error), whole_directory(tmp_path / "b", MARK, overwrite=True) as new:
        spoil(new, error)
    assert names_below(tmp_path) == ["b", "b/made.json"]
    assert (tmp_path / "b" / MARK).read_text() == "one"


def test_only_its_own_is_replaced_and_only_when_asked(tmp_path):
    path = tmp_path / "b"
    write(path)
    with pytest.raises(InputError, match="exists already"):
        write(path)
    write(path, "two", overwrite=True)
    assert names_below(tmp_path) == ["b", "b/made.json"]
    assert (path / MARK).read_text() == "two"
    (path / MARK).rename(path / "thesis.tex")
    with pytest.raises(InputError, match="not written by mm-lens"):
        write(path, overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        check_free(path / "thesis.tex", MARK, overwrite=True)
    check_free(tmp_path / "nowhere", MARK, overwrite=False)


def test_what_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "b"
    with pytest.raises(InputError, match="not empty"), whole_directory(path, MARK):
        write(path, mark="thesis.tex")
    assert names_below(tmp_path) == ["b", "b/thesis.tex"]


def begin(path, origin, finish=False, **options):
    with resumable_directory(path, MARK, origin, **options) as staging:
        found = names_below(staging)
        (staging / "shard").touch()
        (staging / "half.part").touch()
        if not finish:
            raise RuntimeError
        (staging / "half.part").unlink()
        (staging / MARK).touch()
    return found


def test_work_is_kept_for_the_same_origin_alone(tmp_path):
    path, origin = tmp_path / "b", {"from": "x", "options": {"dtype": "float32", "seed": 0}}
    with pytest.raises(RuntimeError):
        begin(path, origin)
    assert names_below(tmp_path) == ["b.partial", "b.partial/journal.json", "b.partial/shard"]
    assert json.loads((tmp_path / "b.partial" / "journal.json").read_text()) == origin
    other = {"from": "x", "options": {"dtype": "bfloat16", "seed": 0}}
    with pytest.raises(MMLensError, match=r"float32.*bfloat16"):
        begin(path, other)
    assert begin(path, origin, finish=True) == ["journal.json", "shard"]
    assert names_below(tmp_path) == ["b", "b/made.json", "b/shard"]


def test_two_at_once_do_not_meet(tmp_path):
    with (
        FileLock(tmp_path / ".b.lock"),
        pytest.raises(MMLensError, match="Another process is writing"),
    ):
        begin(tmp_path / "b", {}, finish=True)
