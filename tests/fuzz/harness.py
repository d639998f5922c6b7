"""Runs cases of the fuzzer and says what was found. The same seed makes the same cases."""

from __future__ import annotations

import faulthandler
import random
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.targets import TARGETS, Target, read_quietly
from tiny import IMAGE_TOKEN, tiny_tokenizer

from mm_lens.errors import MMLensError, lacks_memory

SECONDS, BYTES = 60, 2 * 10**9
"""What no case may take."""


@dataclass
class Outcome:
    """What the cases came to.

    Attributes:
        counts: of each target, how many cases gave the same, were refused, or gave something else
            where that is allowed.
        faults: what must not be: target, seed, damage, and what happened.
        slowest: seconds, and the case that took them.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def __str__(self) -> str:
        lines = []
        for name in dict.fromkeys(target for target, _ in self.counts):
            told = ", ".join(
                f"{count} {kind}" for (target, kind), count in self.counts.items() if target == name
            )
            lines.append(f"{name}: {told}")
        total = sum(self.counts.values())
        lines.append(f"{total} cases, {len(self.faults)} faults; slowest {self.slowest[0]:.1f} s")
        return "\n".join([*lines, *self.faults])


def run(name: str, seeds: Sequence[int], directory: Path, outcome: Outcome) -> None:
    """Run cases of one target; `directory` must be empty and is left empty."""
    target = TARGETS[name]
    intact = directory / "intact"
    intact.mkdir(parents=True)
    for image_token in (IMAGE_TOKEN, None):
        tiny_tokenizer(image_token=image_token)  # makes a directory that all tests share
    with _temporary(directory / "tmp"):
        target.write(intact)
        copied = directory / "case" / "in"
        shutil.copytree(intact, copied)
        expected = read_quietly(target, copied)
        shutil.rmtree(copied.parent)
        for seed in seeds:
            shutil.copytree(intact, copied)
            rng = random.Random(f"{name} {seed}")
            damage, noticed = target.damage(copied, rng)
            label = f"{name}, seed {seed} ({damage})"
            begun = time.process_time()  # of this process: others may keep the machine busy
            kind, fault = _read(target, copied, expected, noticed)
            seconds = time.process_time() - begun
            outcome.counts[name, kind] += 1
            outcome.slowest = max(outcome.slowest, (seconds, label))
            faults = [fault] if fault else []
            if seconds > SECONDS:
                faults.append(f"it took {seconds:.0f} s")
            left = [*(directory / "tmp").iterdir()]
            left += [p for p in copied.parent.iterdir() if p.name not in ("in", "out.partial")]
            if left:
                faults.append(f"it left {', '.join(path.name for path in left)}")
                for path in left:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            outcome.faults += [f"{label}: {each}" for each in faults]
            shutil.rmtree(copied.parent)
    shutil.rmtree(directory)


def _read(target: Target, directory: Path, expected: Any, noticed: bool) -> tuple[str, str]:
    """What a case came to, and the fault if it is one."""
    faulthandler.dump_traceback_later(15 * SECONDS, exit=True)
    try:
        found = read_quietly(target, directory)
    except (MMLensError, OSError) as error:
        if lacks_memory(error):
            return "out of memory", f"out of memory: {error}"
        text = " ".join(str(error).split())
        # The file, by its path or its name; a cell, by the name of its table; the file outside of
        # the directory that some cells name.
        names = {path.name for path in directory.rglob("*")} | {str(directory), "/dev/zero"}
        told = isinstance(error, OSError) and error.filename
        if not told and not any(name in text for name in names):
            return "refused", f"no file is named: {text[:200]}"
        return "refused", ""
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in last if "mm_lens" in frame.filename] or last
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        return "traceback", f"{type(error).__name__} at {where}: {str(error)[:150]}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    if isinstance(found, dict):  # the damage may have left some of the files only
        expected = {name: expected.get(name) for name in found}
    same = found == expected
    if not same and noticed:
        return "other", "another result than the intact files, and no error"
    return "same" if same else "other, as allowed", ""


@contextmanager
def _temporary(directory: Path) -> Iterator[None]:
    """In this block temporary files are made in a directory of their own, where all are seen."""
    directory.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(directory)
    try:
        yield
    finally:
        tempfile.tempdir = before


def limit_memory() -> None:
    """From here on this process cannot take more than `BYTES` beside what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def shares(cases: int) -> dict[str, int]:
    """How many cases each target gets."""
    whole = sum(target.share for target in TARGETS.values())
    return {name: -(-cases * target.share // whole) for name, target in TARGETS.items()}
