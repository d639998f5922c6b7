"""A run that is killed, meets a full disk or damaged files: it resumes, or it says why not."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
from disturbed_runs import Died, interrupt, written
from made_data import profile, same
from tiny import random_image

import mm_lens
from mm_lens import DataError, InputError
from mm_lens.data.datasets import ImageFolder, Sample
from mm_lens.errors import DamageError
from mm_lens.profiling import run_directory as rundir
from mm_lens.profiling import states

KILLS = 10


# ---- a run directory changes nothing ----


def test_a_finished_run_is_not_run_again(model, data, whole, finished, monkeypatch):
    monkeypatch.setattr("mm_lens.profiling.states._take", None)
    monkeypatch.setattr("mm_lens.profiling.evaluation.measure", None)
    same(profile(model, data, finished), whole)


# ---- killed ----


def worker(model, data, directory: Path, pause: float) -> None:
    """A whole run, as long as it lives; `pause` stretches it, so that kills fall everywhere."""
    states.COMMIT_SECONDS = 0.0
    take, measure = states._take, mm_lens.profiling.evaluation.measure

    def slow(function):
        def run(*args, **numbers):
            time.sleep(pause)
            return function(*args, **numbers)

        return run

    states._take, mm_lens.profiling.evaluation.measure = slow(take), slow(measure)
    profile(model, data, directory)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]
)
def test_a_run_killed_ten_times_ends_with_the_same_bytes(model, data, whole, tmp_path, seed):
    """Kill runs at random moments until ten have met one alive; then let one end."""
    run, chance = tmp_path / "run", random.Random(seed)
    context = multiprocessing.get_context("fork")

    def start() -> multiprocessing.Process:
        process = context.Process(target=worker, args=(model, data, run, 0.01))
        process.start()
        while process.is_alive() and not (run / "manifest").exists():
            time.sleep(0.001)
        return process

    undisturbed, begun = start(), time.monotonic()
    undisturbed.join()
    seconds = time.monotonic() - begun
    rundir.remove_run(run)
    met, progress = 0, []
    for _ in range(100):
        process = start()
        time.sleep(chance.uniform(0, seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            met += 1
        process.join()
        progress.append(sum(1 for _ in run.glob("part-*/index")) + len([*run.glob("sites/*")]))
        if met == KILLS:
            break
        if process.exitcode == 0:  # it got through: begin anew
            rundir.remove_run(run)
    assert met == KILLS
    assert max(progress) > 0, "every kill came before the first commit"
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    resumed = written(profile(model, data, run), tmp_path / "resumed")
    assert resumed == written(whole, tmp_path / "whole")


@pytest.mark.parametrize("after", [1, 20, 50])
def test_a_run_that_dies_at_any_write_ends_with_the_same_table(
    model, data, whole, tmp_path, monkeypatch, every_batch, after
):
    """As a kill in the middle of a write: the rest of the bytes is not written."""
    left = [after]

    def dies(fd, content, offset, pwrite=os.pwrite):
        left[0] -= 1
        if left[0] == 0:
            pwrite(fd, content[: len(content) // 2], offset)
            raise Died
        return pwrite(fd, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", dies)
        with pytest.raises(Died):
            profile(model, data, tmp_path / "run")
    same(profile(model, data, tmp_path / "run"), whole)


# ---- another run ----


def test_restart_discards_the_other_run(model, data, begun):
    found = profile(model, data, begun, tokens=40, restart=True)
    assert found.provenance["tokens"]["sampled"]["visual"] == 40
    same(found, profile(model, data, tokens=40))


def test_another_number_of_threads_is_told(model, data, whole, begun, monkeypatch):
    """Its states may differ from those of an undisturbed run in their last digits."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 5)
        with pytest.warns(mm_lens.MMLensWarning, match=r"with 1 threads .* goes on with 5"):
            same(profile(model, data, begun), whole)  # here there are still as many
    with warnings.catch_warnings():
        warnings.simplefilter("error", mm_lens.MMLensWarning)
        profile(model, data, begun)


def test_other_files_are_left_alone(model, data, tmp_path):
    (tmp_path / "chapter.txt").write_text("years of work")
    for where in (tmp_path, tmp_path / "chapter.txt"):
        with pytest.raises(InputError, match=r"Name (another|a) directory"):
            profile(model, data, where, restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["chapter.txt"]


@pytest.mark.parametrize("others", ["part-0/cat.png", "sites/a.txt", "manifest", "lock.py"])
@pytest.mark.parametrize("restart", [False, True])
def test_a_directory_that_looks_like_a_run_is_left_alone(model, data, tmp_path, others, restart):
    """Shards of images are called part-0, part-1 as well."""
    for name in (others, "thesis/ch1"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("years of work")
    with pytest.raises(InputError, match="no run directory"):
        profile(model, data, tmp_path / "run", restart=restart)
    with pytest.raises(InputError, match="no run directory"):
        rundir.remove_run(tmp_path / "run")
    for name in (others, "thesis/ch1"):
        assert (tmp_path / "run" / name).read_text() == "years of work"


def test_what_others_put_into_a_run_outlives_it(model, data, finished, monkeypatch):
    notes = [finished / "notes.txt", finished / "part-0" / "notes.txt"]
    for note in notes:
        note.write_text("years of work")
    profile(model, data, finished, tokens=40, restart=True)
    rundir.remove_run(finished)
    assert sorted(path for path in finished.rglob("*") if path.is_file()) == sorted(notes)


def test_an_empty_directory_is_still_there_after_a_failure(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(states, "_take", None)
    with pytest.raises(TypeError):
        profile(model, data, tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_directory_that_is_at_work_is_refused(model, data, tmp_path):
    with (
        rundir.open_run(tmp_path / "run", {"a": 1}, rundir.Processes()),
        pytest.raises(InputError, match="Another run is at work"),
    ):
        profile(model, data, tmp_path / "run")


def test_nothing_is_left_of_a_run_that_has_kept_nothing(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(states, "_take", None)
    with pytest.raises(TypeError):
        profile(model, data, tmp_path / "new" / "run")
    assert [*tmp_path.iterdir()] == []


# ---- disks and files ----


def test_a_full_disk_stops_the_run_which_then_resumes(
    model, data, whole, tmp_path, monkeypatch, every_batch
):
    left = [40]

    def full(fd, content, offset, pwrite=os.pwrite):
        left[0] -= 1
        if left[0] < 0:  # the disk takes what fits, and then no more
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, content[: len(content) // 2 + 1] if left[0] < 5 else content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left") as raised:
            profile(model, data, tmp_path / "run")
    assert "run the same again" in raised.value.__notes__[0]
    same(profile(model, data, tmp_path / "run"), whole)


@pytest.mark.parametrize("name", ["part-0/index", "manifest", "sites/main.text.001"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_named(model, data, finished, name, damage):
    hurt(finished / name, damage)
    with pytest.raises(DamageError, match=rf"{name} is damaged.*--restart") as raised:
        profile(model, data, finished)
    assert not getattr(raised.value, "__notes__", [])  # it does not say to resume as well


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
def test_damaged_states_are_named(model, data, finished, damage):
    for site in (finished / "sites").iterdir():
        site.unlink()
    hurt(finished / "part-0" / "visual.main.000", damage)
    with pytest.raises(DamageError, match=r"visual\.main\.000 is damaged") as raised:
        profile(model, data, finished)
    assert not getattr(raised.value, "__notes__", [])  # it does not say to resume as well


def hurt(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")


def test_a_sample_that_cannot_be_read_stays_skipped(model, tmp_path, monkeypatch, every_batch):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(9):
        random_image(20, 30, i).save(folder / f"{i}.png")
    for i in (1, 7):
        (folder / f"{i}.png").write_bytes(b"no image")
    data, run = ImageFolder(folder), tmp_path / "run"
    options = {"batch_size": 2, "on_error": "skip", "streams": ["residual"]}
    interrupt(model, data, run, monkeypatch, after=3, **options)
    found = profile(model, data, run, **options).provenance["data"]
    assert (found["n_samples"], found["n_skipped"]) == (7, 2)
    assert [entry["index"] for entry in found["skipped"]] == [1, 7]
    assert found["fingerprint"] == profile(model, data, **options).provenance["data"]["fingerprint"]


def test_equal_ids_are_found_however_far_apart(model, data, tmp_path, monkeypatch, every_batch):
    twice = [*data, Sample(data[0].id, "Another question", data[3].image, None)]
    interrupt(model, twice, tmp_path / "run", monkeypatch)
    with pytest.raises(DataError, match=r"#0 and #12 both have the id 'sample 0'"):
        profile(model, twice, tmp_path / "run")
