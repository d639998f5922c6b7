"""A run that is killed, meets a full disk or damaged files: it resumes, or it says why not."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from made_data import make_data, plain_mixed_key, profile, same
from tiny import random_image

import mm_lens
from mm_lens import DataError, InputError
from mm_lens._storage.checked import row_checksums, tensor_checksum
from mm_lens.data.datasets import ImageFolder, Sample
from mm_lens.profiling import run_directory as rundir
from mm_lens.profiling import states
from mm_lens.profiling.stores import FileStore

N, KILLS = 12, 10


@pytest.fixture
def every_batch(monkeypatch):
    """Commit after every batch, so that small runs have something to resume from."""
    monkeypatch.setattr(states, "COMMIT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def data() -> list[Sample]:
    return make_data(N, text_only=(4, 5))


@pytest.fixture(scope="module")
def whole(model, data) -> mm_lens.Profile:
    """The profile of a run that nothing disturbs."""
    return profile(model, data)


@pytest.fixture(scope="module")
def _finished(model, data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    profile(model, data, path)
    return path


@pytest.fixture
def finished(_finished, tmp_path) -> Path:
    """The run directory of a finished run, to be spoilt."""
    return Path(shutil.copytree(_finished, tmp_path / "run"))


def written(found: mm_lens.Profile, directory: Path) -> list[bytes]:
    found.write(directory)
    return [(directory / f"{name}.parquet").read_bytes() for name in ("profile", "replicates")]


def plain_checksum(row: bytes) -> int:
    """Σ word · weight modulo 2^64 in Python's own integers; weights as documented."""
    words = [int.from_bytes(row[i : i + 8], "little", signed=True) for i in range(0, len(row), 8)]
    total = sum(w * (plain_mixed_key(i, i, 2) | 1) for i, w in enumerate(words)) % (1 << 64)
    return total - (1 << 64) if total >> 63 else total


# ---- a run directory changes nothing ----


def test_states_in_files_give_the_table_of_states_in_memory(model, data, tmp_path, every_batch):
    streams = ["residual", "main"]
    in_memory = profile(model, data, streams=streams)
    in_files = profile(model, data, tmp_path / "run", streams=streams)
    same(in_files, in_memory)
    for key in ("fingerprint", "n_samples", "n_skipped"):
        assert in_files.provenance["data"][key] == in_memory.provenance["data"][key]
    assert in_files.provenance["tokens"] == in_memory.provenance["tokens"]


def test_a_finished_run_is_not_run_again(model, data, whole, finished, monkeypatch):
    monkeypatch.setattr("mm_lens.profiling.states._take", None)
    monkeypatch.setattr("mm_lens.profiling.evaluation.evaluate", None)
    same(profile(model, data, finished), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [24, 25, 3])
def test_a_file_store_gives_back_what_was_last_put_into_each_slot(tmp_path, dtype, d):
    generator = torch.Generator().manual_seed(d)
    store, truth = FileStore(tmp_path, "text"), {}
    for n in (40, 1, 7, 0, 12):
        slots = torch.randperm(60, generator=generator)[:n].sort().values
        keys = torch.randint(-(2**62), 2**62, (n,), generator=generator)
        rows = torch.randn(n, d, generator=generator).to(dtype)
        store.write("main", 2, slots, keys, rows)
        truth |= {int(s): (k, r) for s, k, r in zip(slots, keys, rows, strict=True)}
    order = random.Random(0).sample(sorted(truth), len(truth))
    keys = torch.stack([truth[slot][0] for slot in order])
    found = store.read("main", 2, torch.tensor(order), keys)
    assert torch.equal(found, torch.stack([truth[slot][1] for slot in order]))
    with pytest.raises(DataError, match=r"1 of 1 states do not match"):
        store.read("main", 2, torch.tensor(order[:1]), keys[1:2])


# ---- killed ----


def worker(model, data, directory: Path, pause: float) -> None:
    """A whole run, as long as it lives; `pause` stretches it, so that kills fall everywhere."""
    states.COMMIT_SECONDS = 0.0
    take, evaluate = states._take, mm_lens.profiling.evaluation.evaluate

    def slow(function):
        def run(*args):
            time.sleep(pause)
            return function(*args)

        return run

    states._take, mm_lens.profiling.evaluation.evaluate = slow(take), slow(evaluate)
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


class Died(BaseException):
    """What stands for a kill inside of a test."""


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


def test_an_index_is_the_old_one_or_the_new_one(
    model, data, whole, tmp_path, monkeypatch, every_batch
):
    """Dying between the bytes and the name of a file leaves the earlier file."""
    left = [3]

    def dies(self, target, replace=Path.replace):
        if self.name == "index.new":
            left[0] -= 1
            if left[0] == 0:
                raise Died
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(Died):
            profile(model, data, tmp_path / "run")
    same(profile(model, data, tmp_path / "run"), whole)


# ---- another run ----


CHANGES = {
    "tokens": ({"tokens": 61}, r"options\.k is 60 there and 61 here"),
    "batch size": ({"batch_size": 4}, r"options\.batch_size is 2 there and 4 here"),
    "seed": ({"seed": 1}, r"options\.seed is 0"),
    "streams": ({"streams": ["residual"]}, r"options\.streams"),
    "metrics": ({"metrics": ["anisotropy"]}, r"options\.metrics"),
    "on_error": ({"on_error": "skip"}, r"options\.on_error"),
    "samples": ({"samples": 10}, r"data\.n_samples is 12 there and 10 here"),
}


@pytest.fixture
def begun(model, data, tmp_path, monkeypatch, every_batch):
    """A run directory of a run that has stopped half-way."""
    interrupt(model, data, tmp_path / "run", monkeypatch)
    return tmp_path / "run"


def interrupt(model, data, run_dir, monkeypatch, after=4, **options):
    left, take = [after], states._take

    def stops(*args):
        left[0] -= 1
        if left[0] == 0:
            raise Died
        take(*args)

    with monkeypatch.context() as patch:
        patch.setattr(states, "_take", stops)
        with pytest.raises(Died) as raised:
            profile(model, data, run_dir, **options)
    assert "run the same again" in raised.value.__notes__[0]


def test_a_run_of_something_else_is_refused_with_the_difference_named(model, data, begun):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    for change, (options, message) in CHANGES.items():
        with pytest.raises(InputError, match=message):
            profile(model, data, begun, **options)
        after = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
        assert after == before, change
    both = {"seed": 1, "batch_size": 4}
    with pytest.raises(InputError, match=r"batch_size.*; .*seed"):
        profile(model, data, begun, **both)


def test_a_run_on_other_data_is_refused(model, data, begun):
    image = data[7].image.copy()
    image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))
    other = [*data]
    other[7] = Sample(data[7].id, data[7].text, image, None)
    with pytest.raises(InputError, match=r"data\.content"):
        profile(model, other, begun)


class Plain:
    """A sequence that can tell nothing about itself."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_a_run_on_another_sequence_is_refused(model, data, tmp_path, monkeypatch, every_batch):
    interrupt(model, Plain(data), tmp_path / "run", monkeypatch)
    other = Plain([Sample(s.id, s.text + "?", s.image, None) for s in data])
    with pytest.raises(InputError, match=r"data\.content"):
        profile(model, other, tmp_path / "run")


def test_a_file_that_has_changed_since_is_refused(model, tmp_path, monkeypatch, every_batch):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(9):
        random_image(20, 30, i).save(folder / f"{i}.bmp")  # all of one size in bytes
    options = {"batch_size": 2, "streams": ["residual"]}
    interrupt(model, ImageFolder(folder), tmp_path / "run", monkeypatch, 3, **options)
    random_image(20, 30, 99).save(folder / "1.bmp")
    with pytest.raises(InputError, match=r"data\.content"):
        profile(model, ImageFolder(folder), tmp_path / "run", **options)


def test_a_run_of_another_model_is_refused(fresh, data, begun):
    weight = fresh.original_model.get_output_embeddings().weight
    with torch.no_grad():
        weight[0, 0] += 1e-6
    with pytest.raises(InputError, match=r"model\.weights"):
        profile(fresh, data, begun)
    with torch.no_grad():
        weight[0, 0] -= 1e-6
    text = fresh.original_model.config.text_config
    eps, text.rms_norm_eps = text.rms_norm_eps, 0.1
    with pytest.raises(InputError, match=r"model\.config"):
        profile(fresh, data, begun)
    text.rms_norm_eps = eps
    fresh.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(InputError, match=r"model\.inputs"):
        profile(fresh, data, begun)


def test_restart_discards_the_other_run(model, data, begun):
    found = profile(model, data, begun, tokens=40, restart=True)
    assert found.provenance["tokens"]["sampled"]["visual"] == 40
    same(found, profile(model, data, tokens=40))


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


def test_files_are_closed(model, data, tmp_path, monkeypatch, every_batch):
    def opened():
        return [f.path for f in psutil.Process().open_files() if str(tmp_path) in f.path]

    profile(model, data, tmp_path / "run")
    assert opened() == []
    interrupt(model, data, tmp_path / "two", monkeypatch)
    assert opened() == []


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
    with pytest.raises(DataError, match=rf"{name} is damaged.*--restart"):
        profile(model, data, finished)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
def test_damaged_states_are_named(model, data, finished, damage):
    for site in (finished / "sites").iterdir():
        site.unlink()
    hurt(finished / "part-0" / "visual.main.000", damage)
    with pytest.raises(DataError, match=r"visual\.main\.000 is damaged"):
        profile(model, data, finished)


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


# ---- checksums ----


def test_row_checksums_are_what_they_are_said_to_be():
    x = torch.randn(5, 12, dtype=torch.float32)
    assert row_checksums(x).tolist() == [plain_checksum(row.numpy().tobytes()) for row in x]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_every_flipped_bit_is_found(dtype):
    x = torch.randint(0, 255, (1, 40), dtype=torch.uint8).view(dtype)
    clean = row_checksums(x)
    for bit in range(320):
        flipped = x.view(torch.uint8).clone()
        flipped[0, bit // 8] ^= 1 << bit % 8
        assert row_checksums(flipped.view(dtype)) != clean
        assert tensor_checksum(flipped.view(dtype)) != tensor_checksum(x)
