"""Checksums beside files find every flipped bit; `sha256sum` agrees with them."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest

from mm_lens._storage.sums import SUMS_FILE, check_sums, write_sums
from mm_lens.errors import DataError


@pytest.fixture
def result(tmp_path):
    (tmp_path / "a.parquet").write_bytes(bytes(range(256)))
    (tmp_path / "b.json").write_text('{"n_samples": 500}')
    write_sums(tmp_path, ["a.parquet", "b.json"])
    return tmp_path


def test_every_flipped_bit_is_found(result):
    check_sums(result)
    rng = random.Random(0)
    for name in ("a.parquet", "b.json", SUMS_FILE):
        whole = (result / name).read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            (result / name).write_bytes(damaged)
            with pytest.raises(DataError, match=r"is damaged"):
                check_sums(result)
        (result / name).write_bytes(whole)
    check_sums(result)


def test_missing_files_and_missing_sums(result):
    (result / "a.parquet").unlink()
    with pytest.raises(DataError, match=r"a\.parquet is damaged or was edited"):
        check_sums(result)
    (result / SUMS_FILE).unlink()
    check_sums(result)  # as of earlier versions


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no such program here")
def test_the_usual_program_reads_them(result):
    subprocess.run(["sha256sum", "-c", "--strict", SUMS_FILE], cwd=result, check=True)
