"""Several processes give the table of one, to the last byte; what ends one ends all."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from made_data import make_data, profile, same
from tiny import random_image, tiny_llava_next

import mm_lens
from mm_lens import DataError
from mm_lens.cli import commands as cli
from mm_lens.profiling import processes, states
from mm_lens.profiling import run as measure
from mm_lens.profiling import run_directory as rundir

# "Many processes", here on the CPU; a free port, for tests run beside each other.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--main_process_port", "0", "-m", "mm_lens"]


class Left(BaseException):
    """A process has done its share."""


class Apart(processes.Processes):
    """One of several processes, which here run one after the other."""

    main = True

    def __init__(self, mine: set[int], rank: int, count: int) -> None:
        super().__init__()
        self.mine, self.rank, self.count, self.waits = mine, rank, count, 0

    def share(self, items: list) -> list:
        return [item for item in items if item in self.mine]

    def wait(self) -> None:
        self.waits += 1
        if self.waits == 2:  # opened, collected; the others do so later
            raise Left


@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_split_of_the_work_gives_the_table_of_one_process(model, tmp_path, monkeypatch, count):
    data, chance = make_data(12, text_only=(4, 5)), random.Random(count)
    owner = [chance.randrange(count) for _ in range(6)]
    ranks = chance.sample(range(1, count), count - 1)
    for rank in ranks:
        mine = {number for number in range(6) if owner[number] == rank}
        apart = Apart(mine, rank, count)
        with monkeypatch.context() as patch:
            patch.setattr(measure, "Processes", lambda apart=apart: apart)
            with pytest.raises(Left):
                profile(model, data, tmp_path / "run")
    assert len([*(tmp_path / "run").glob("part-*/index")]) == len({*owner} - {0})
    found = profile(model, data, tmp_path / "run")
    one = profile(model, data)
    same(found, one)
    for part in ("data", "tokens"):
        assert found.provenance[part] == one.provenance[part]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    for part in tiny_llava_next():
        part.save_pretrained(path)
    return path


@pytest.fixture
def arguments(model_path, tmp_path) -> list[str]:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(7):
        random_image(20 + i, 30, i).save(images / f"{i}.png")
    options = {"model": model_path, "data": images, "batch-size": 2, "streams": "main"}
    options["device"] = "cpu"
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return ["profile", *given, "--presets", "paper", "--tokens", "100", "--no-check"]


def launched(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return run_python(*LAUNCH, *arguments)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Where there is one GPU, two processes could not share it."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.pages
def test_accelerate_launch_writes_the_bytes_of_one_process(arguments, tmp_path, monkeypatch):
    done = launched([*arguments, "--out", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("mm_lens.drawing.report.write", lambda profile, directory: iter(()))
    assert cli.run([*arguments, "--quiet", "--out", str(tmp_path / "one")]) == 0
    for name in ("profile.parquet", "replicates.parquet"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert '"processes": 2' in (tmp_path / "two" / "provenance.json").read_text()
    assert not (tmp_path / "two.partial").exists()
    # Only one process speaks: it had two of the four batches, and half of the sites.
    shown = done.stderr.replace("\r", "\n")
    assert shown.count("Loading") == 1
    assert "samples (1 of 2 processes): 100%" in shown
    assert "4/4" in shown
    assert done.stdout.count("Wrote") == 1


@pytest.mark.slow
def test_two_processes_of_two_threads_write_the_bytes_of_one_of_two(
    arguments, tmp_path, monkeypatch
):
    """The condition of all that is said of equal bytes: the same number of threads in each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    both = [*arguments, "--quiet", "--out"]
    for start, name in ((LAUNCH, "two"), (LAUNCH[-2:], "one")):
        done = run_python(*start, *both, str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert '"threads": 2' in (tmp_path / name / "provenance.json").read_text("utf-8")
    for name in ("profile.parquet", "replicates.parquet"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.slow
def test_what_ends_one_process_ends_all_with_one_message(arguments, tmp_path):
    (tmp_path / "images" / "6.png").write_bytes(b"no image")  # the other process reads it
    done = launched([*arguments, "--out", str(tmp_path / "two")])
    assert done.returncode != 0
    assert done.stderr.count("mm-lens: ") == 1
    assert f"mm-lens: Image {tmp_path / 'images' / '6.png'}" in done.stderr
    assert not (tmp_path / "two").exists()


def run_forked(count: int, work: Callable[[], object], errors: Path) -> list[int | None]:
    """Run `work` in processes that meet as launched ones do, and return their exit codes.

    They are copies of this process: what a launcher adds is that each imports torch anew.

    Args:
        count: of processes.
        work: what each of them does.
        errors: a directory for what each writes to its standard error, in a file named by rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    errors.mkdir()

    def begin(rank: int) -> None:
        given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
        os.environ.update({name: str(value) for name, value in given.items()})
        PartialState._reset_state()
        with open(errors / str(rank), "w", encoding="utf-8", buffering=1) as told:
            sys.stderr = told
            sys.exit(work())

    context = multiprocessing.get_context("fork")
    started = [context.Process(target=begin, args=(rank,)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_one_killed_process_is_told_by_all_others_and_resumed_to_the_same_bytes(
    arguments, tmp_path, monkeypatch, count
):
    """The last process is killed in its second batch; the first is at work then, others wait."""
    monkeypatch.setattr("mm_lens.drawing.report.write", lambda profile, directory: iter(()))
    monkeypatch.setattr(states, "COMMIT_SECONDS", 0.0)
    # Batches of one sample: each process has at least two of the seven.
    call = [*arguments, "--per-sample", "--batch-size", "1", "--out", str(tmp_path / "many")]
    # First, so that the copies find everything imported.
    assert cli.run([*call[:-1], str(tmp_path / "one"), "--quiet"]) == 0
    take, begun = states._take, []

    def die_in_the_second_batch(*args):
        begun.append(1)
        take(*args)
        if int(os.environ["RANK"]) == count - 1 and len(begun) > 1:
            time.sleep(0.2)  # the others have theirs by then, or not: it is told either way
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(states, "_take", die_in_the_second_batch)
        codes = run_forked(count, lambda: cli.run(call), tmp_path / "killed")
    assert codes == [1] * (count - 1) + [-signal.SIGKILL]
    for rank in range(count - 1):
        shown = (tmp_path / "killed" / str(rank)).read_text("utf-8").splitlines()
        (line,) = [line for line in shown if line.startswith("mm-lens: ")]
        assert line.startswith(f"mm-lens: Process {rank + 1} of {count}")
        assert "killed" in line
        assert f"What was done is in {tmp_path / 'many.partial'}: run the same again" in line
    assert not (tmp_path / "many").exists()

    codes = run_forked(count, lambda: cli.run(call), tmp_path / "resumed")
    shown = (tmp_path / "resumed" / "0").read_text("utf-8")
    assert codes == [0] * count, shown
    assert "samples are done" in shown
    assert mm_lens.Profile.load(tmp_path / "one").samples.linearity_error.notna().any()
    for name in ("profile.parquet", "replicates.parquet", "samples.parquet"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("images", "killed", "many", "one", "resumed"),
    ]


@pytest.fixture
def store(monkeypatch):
    """Where three processes keep count of those that have said why they end; this is the second."""
    monkeypatch.setattr(processes, "_ANSWER", timedelta(seconds=0.5))
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = {"WORLD_SIZE": 3, "RANK": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    return [store]


def test_only_the_first_process_to_fail_says_why(store):
    assert [processes.is_to_say_why(own=True) for _ in range(3)] == [True, False, False]
    assert not processes.is_to_say_why(own=False)  # for somebody else has
    store.clear()  # the process that keeps count has gone, so it has failed before
    assert not processes.is_to_say_why(own=True)


def test_each_that_ends_because_another_was_killed_says_so(store):
    assert [processes.is_to_say_why(own=False) for _ in range(3)] == [True, True, True]
    store.clear()
    assert processes.is_to_say_why(own=False)


def test_what_other_processes_have_done_must_be_seen(model, tmp_path, monkeypatch):
    """On a disk of its own, a process sees its share and no more."""
    monkeypatch.setattr(rundir, "SECONDS_TO_SEE", 1)
    apart = Apart({0, 1}, 0, 2)
    monkeypatch.setattr(apart, "wait", lambda: None)
    monkeypatch.setattr(measure, "Processes", lambda: apart)
    with pytest.raises(DataError, match="a file system that all of them see"):
        profile(model, make_data(12), tmp_path / "run")


def test_what_any_process_has_seen_done_is_not_done_again(tmp_path):
    """A network file system shows the work of another machine late, and not to all at once."""
    crew = processes.Processes()
    crew.union = lambda seen: {*seen, 1, 4}
    run = rundir.RunDirectory(tmp_path, crew)
    assert run.share(range(6), {0, 1}) == [2, 3, 5]


def test_processes_tell_each_other_what_they_have_seen(tmp_path):
    def tell() -> None:
        p = processes.Processes()
        assert p.union({p.rank, 10 + p.rank}) == {0, 1, 10, 11}
        assert p.share(list(range(4))) == [[0, 1], [2, 3]][p.rank]
        p.finish()

    codes = run_forked(2, tell, tmp_path / "told")
    assert codes == [0, 0], [path.read_text() for path in (tmp_path / "told").iterdir()]


def test_a_batch_that_two_processes_have_done_is_found(model, tmp_path):
    data, run = make_data(12), tmp_path / "run"
    profile(model, data, run)
    shutil.copytree(run / "part-0", run / "part-1")
    with pytest.raises(DataError, match=r"the same batches \(#0 …\).*--restart"):
        profile(model, data, run)


def test_a_process_left_from_an_earlier_try_is_met(tmp_path):
    """Two processes of one number would write the same files."""
    with rundir.open_run(tmp_path / "run", {"a": 1}, processes.Processes()):
        second, second_again = Apart(set(), 1, 2), Apart(set(), 1, 2)
        second.main = second_again.main = False
        with (
            rundir.open_run(tmp_path / "run", {"a": 1}, second),
            pytest.raises(mm_lens.InputError, match="Another run is at work"),
            rundir.open_run(tmp_path / "run", {"a": 1}, second_again),
        ):
            pass


def test_several_processes_need_a_run_directory(model, monkeypatch):
    monkeypatch.setattr(measure, "Processes", lambda: Apart(set(), 0, 2))
    with pytest.raises(ValueError, match="2 processes merge their states in a run directory"):
        profile(model, make_data(2))


def test_one_process_in_place_of_many_is_refused(monkeypatch, capsys, tmp_path):
    """What accelerate's launcher sets when it is told --cpu --num_processes 2, and starts one."""
    for name in ("MASTER_PORT", "ACCELERATE_DYNAMO_BACKEND"):
        monkeypatch.setenv(name, "1")
    code = cli.run(["profile", "--model", "x", "--data", "easy-vqa", "--out", str(tmp_path / "x")])
    assert code == 1
    assert "--multi_gpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rank", "count", "gpus", "own"),
    [
        (0, 1, 8, range(8)),
        (0, 4, 8, range(2)),
        (3, 4, 8, range(6, 8)),
        (1, 2, 1, range(1)),
        (2, 3, 2, range(1)),
        (0, 2, 0, range(0)),
    ],
)
def test_gpus_are_shared_out_among_the_processes_of_a_machine(monkeypatch, rank, count, gpus, own):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
    assert processes.find_own_gpus(gpus) == own


def test_processes_that_no_launcher_started_are_alone(monkeypatch):
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    alone = processes.Processes()
    assert (alone.rank, alone.count, alone.main) == (0, 1, True)
    assert alone.share([3, 1, 2]) == [3, 1, 2]
    alone.wait()
    assert "RANK" not in os.environ
