"""Nothing heavy is imported before it is needed, and what can be told without it is told first."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "transformer_lens", "pandas", "matplotlib", "plotly")
TELL = """
import sys
from mm_lens.cli import run
code = run(sys.argv[1:])
print(code, *sorted({"torch", "transformers"} & sys.modules.keys()))
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, mm_lens; dir(mm_lens); print({HEAVY!r} & sys.modules.keys())"
    done = run_python(code.replace(repr(HEAVY), repr(set(HEAVY))))
    assert done.stdout.strip() == "set()", done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom mm_lens.cli import run\nassert run(['profile', '--help']) == 0\n"
        f"print('heavy:', {set(HEAVY)!r} & sys.modules.keys())"
    )
    assert "heavy: set()" in run_python(code).stdout


PROFILE = ["profile", "--model", "demo/llava-next", "--data", "easy-vqa", "--out", "OUT"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([*PROFILE, "--streams", "middle"], "residual, main"),
        ([*PROFILE, "--presets", "best"], "honest, paper"),
        ([*PROFILE, "--split", "all"], "'train', 'test'"),
        ([*PROFILE, "--attention", "flash"], "'sdpa', 'eager'"),
        ([*PROFILE, "--dtype", "float8"], "float32"),
        ([*PROFILE, "--on-error", "ignore"], "'raise', 'skip'"),
        ([*PROFILE, "--samples", "0"], "greater than or equal to 1"),
        ([*PROFILE, "--nonsense"], "No such option"),
        ([*PROFILE[:-1], "FULL"], "not written by mm-lens"),
        ([*PROFILE[:-1], "FILE"], "is a file"),
        (["profile", "--model", "demo/nope", *PROFILE[3:]], "demo/llava-next"),
        ([*PROFILE[:4], "nope.csv", *PROFILE[5:]], "neither a data set"),
        ([*PROFILE[:4], "FILE", *PROFILE[5:]], "Known endings"),
        ([*PROFILE, "--states", "OUT"], "lies in --out"),
        (["profile"], "Missing option"),
        (["compare", "FULL", "--out", "OUT"], "two or more"),
        (["compare", "NOPE", "NOPE", "--out", "OUT"], "holds no readable profile"),
        (["compare", "NOPE", "NOPE", "--out", "FULL"], "not written by mm-lens"),
        (["convert", "nope", "FULL", "OUT"], "omnifusion"),
        (["convert", "omnifusion", "NOPE", "OUT"], "is not a directory"),
        (["nonsense"], "No such command"),
    ],
)
def test_what_can_be_told_without_torch_is_told_before_it_is_imported(
    arguments, complaint, tmp_path
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("somebody's")
    (tmp_path / "file").write_text("somebody's")
    places = {name.upper(): tmp_path / name for name in ("out", "full", "file", "nope")}
    done = run_python(TELL, *(places.get(argument, argument) for argument in arguments))
    code, *heavy = done.stdout.split()
    assert code in ("1", "2")
    assert heavy == []
    assert complaint in " ".join(done.stderr.split())
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
