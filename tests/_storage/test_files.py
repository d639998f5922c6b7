"""A directory is there as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import suppress

import pytest
from filelock import FileLock

from mm_lens._storage.files import check_ahead, check_free, resumable_directory, whole_directory
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


def test_below_a_file_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with pytest.raises(InputError, match="file is a file: nothing can be written below it"):
            check_ahead(path, "mark", False)
    check_ahead(tmp_path / "not" / "yet" / "there", "mark", False)


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


def killed(function, before):
    """Run a function in a process that is killed before the n-th change of a name.

    Returns whether it was; else the function has ended.
    """
    process = os.fork()
    if process == 0:
        left = [before]

        def counted(change):
            def count(*args, **options):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*args, **options)

            return count

        for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        function()
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def rewrite(path, overwrite):
    write(path, "two", overwrite=overwrite)


def redo(path, overwrite):
    begin(path, {"from": "two"}, finish=True, overwrite=overwrite)
    (path / MARK).write_text("two")


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("again", [rewrite, redo])
def test_a_writer_killed_at_any_moment_is_followed_by_one_that_ends_well(
    tmp_path, again, overwrite
):
    for moment in range(1, 100):
        directory = tmp_path / f"{moment}"
        directory.mkdir()
        path = directory / "b"
        if overwrite:
            write(path, "one")
        met = killed(lambda path=path: again(path, overwrite), moment)
        finished = (path / MARK).exists() and not (path / "journal.json").exists()
        if met and not (finished and not overwrite):
            again(path, overwrite)
        elif met:  # killed while it removed what it had used
            with pytest.raises(InputError, match="exists already"):
                again(path, overwrite)
        left = [name for name in names_below(directory) if name not in ("b/shard", "b/made.json")]
        assert left == ["b"], moment
        if not met:
            break
        shutil.rmtree(directory)
    assert 4 < moment < 99


def test_what_was_moved_away_is_put_back_though_nothing_new_is_written(tmp_path):
    """Killed between the two changes of names, and never run again: the next reads the old one."""
    write(tmp_path / "b", "one")
    rename = os.rename

    def dies(old, new):
        rename(old, new)
        if new.name == "old":
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        os.rename = dies
        write(tmp_path / "b", "two", overwrite=True)
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
    assert not (tmp_path / "b").exists()
    with pytest.raises(InputError, match="exists already"):
        write(tmp_path / "b", "three")
    assert names_below(tmp_path) == ["b", "b/made.json"]
    assert (tmp_path / "b" / MARK).read_text() == "one"


def test_a_writer_at_work_is_left_alone(tmp_path):
    with whole_directory(tmp_path / "b", MARK) as new:
        (new / MARK).write_text("slow")
        write(tmp_path / "b", "quick")
        assert (new / MARK).read_text() == "slow"
        shutil.rmtree(tmp_path / "b")
    assert names_below(tmp_path) == ["b", "b/made.json"]
    assert (tmp_path / "b" / MARK).read_text() == "slow"


def test_finished_work_that_was_cut_off_stays_finished_for_another_origin(tmp_path):
    path = tmp_path / "b"
    begin(path, {"from": "x"}, finish=True)
    (path / "journal.json").write_text('{"from": "x"}')  # as if killed before it removed this
    with pytest.raises(InputError, match="exists already"):
        begin(path, {"from": "y"}, finish=True)
    assert names_below(tmp_path) == ["b", "b/made.json", "b/shard"]


def test_a_damaged_journal_is_named(tmp_path):
    with suppress(ZeroDivisionError), resumable_directory(tmp_path / "out", "mark", {}) as new:
        (new / "file").touch()
        raise ZeroDivisionError
    (tmp_path / "out.partial" / "journal.json").write_text("{")
    told = r"journal\.json is damaged .*Delete .*out\.partial to begin anew"
    with pytest.raises(MMLensError, match=told), resumable_directory(tmp_path / "out", "mark", {}):
        pass
