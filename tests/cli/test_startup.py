"""Nothing heavy is imported before it is needed, and what can be told without it is told first."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "transformer_lens", "pandas", "matplotlib", "plotly")
# One interpreter for all of them: what one imports, the later ones have not had to.
TELL = """
import contextlib, io, json, sys
from mm_lens.cli import run
heavy = {"torch", "transformers"}
for arguments in json.load(sys.stdin):
    before, told = heavy & sys.modules.keys(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = run(arguments)
    print(json.dumps([code, told.getvalue(), sorted(heavy & sys.modules.keys() - before)]))
"""


def run_python(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True)


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
CASES = [
    ([*PROFILE, "--streams", "middle"], "residual, main"),
    ([*PROFILE, "--presets", "best"], "honest, paper"),
    ([*PROFILE, "--split", "all"], "Available: train, test"),
    ([*PROFILE, "--attention", "flash"], "'sdpa', 'eager'"),
    ([*PROFILE, "--dtype", "float8"], "float32"),
    ([*PROFILE, "--on-error", "ignore"], "'raise', 'skip'"),
    ([*PROFILE, "--samples", "0"], "'--samples'"),
    ([*PROFILE, "--nonsense"], "No such option"),
    ([*PROFILE[:-1], "FULL"], "not written by mm-lens"),
    ([*PROFILE[:-1], "FILE"], "is a file"),
    (["profile", "--model", "demo/nope", *PROFILE[3:]], "demo/llava-next"),
    ([*PROFILE[:4], "nope.csv", *PROFILE[5:]], "neither a data set"),
    ([*PROFILE[:4], "FILE", *PROFILE[5:]], "Known endings"),
    (["evaluate", *PROFILE[1:4], "scienceqa:NOPE", *PROFILE[5:]], "no such directory or file"),
    (["evaluate", *PROFILE[1:], "--protocol", "best"], "'lmms-eval'"),
    (["data", "show", "NOPE"], "neither a data set"),
    ([*PROFILE, "--states", "OUT"], "lies in --out"),
    (["profile"], "lacks the options '--model', '--data', '--out'. See mm-lens profile --help."),
    (["profile", "--data", "easy-vqa"], "lacks the options '--model', '--out'."),
    (["ask", "--model", "demo/llava-next"], "lacks the arguments 'IMAGE', 'QUESTION'."),
    (["ask", "FILE"], "lacks the arguments and options 'QUESTION', '--model'."),
    ([*PROFILE, "--metrics", "linearity"], "linearity_heldout"),
    ([*PROFILE, "--device", "warp"], "no device 'warp'"),
    (["profile", "--model", "./nope", *PROFILE[3:]], "no directory ./nope"),
    ([*PROFILE, "--streams", "residul"], "Did you mean 'residual'?"),
    (["profile", "--model", "demo/llava", *PROFILE[3:]], "Did you mean 'demo/llava-next'?"),
    ([*PROFILE[:4], "easy_vqa", *PROFILE[5:]], "Did you mean 'easy-vqa'?"),
    (["patch", "FILE", "What?", "--model", "demo/nope", "--other", "FILE"], "demo/llava-next"),
    (["knockout", "FILE", "What?", "--model", "demo/llava-next", "--edges", "x"], "no pair"),
    (["ask", "https:/a.org/b.png", "What?", "--model", "demo/llava-next"], "not fetched"),
    (["check", "./nope"], "no directory ./nope"),
    (["open", "NOPE"], "no run"),
    (["run", "NOPE"], "no file"),
    (["list", "modles"], "'models'"),
    (["compare", "FULL", "--out", "OUT"], "two or more"),
    (["compare", "NOPE", "NOPE", "--out", "OUT"], "holds no readable profile"),
    (["compare", "NOPE", "NOPE", "--out", "FULL"], "not written by mm-lens"),
    (["convert", "nope", "FULL", "OUT"], "omnifusion"),
    (["convert", "omnifusion", "NOPE", "OUT"], "is not a directory"),
    (["nonsense"], "No such command"),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Exit code, complaint and heavy imports of each case."""
    folder = tmp_path_factory.mktemp("startup")
    (folder / "full").mkdir()
    (folder / "full" / "note").write_text("somebody's")
    (folder / "file").write_text("somebody's")
    places = {name.upper(): str(folder / name) for name in ("out", "full", "file", "nope")}
    given = [[places.get(argument, argument) for argument in case] for case, _ in CASES]
    done = run_python(TELL, json.dumps(given))
    assert not (folder / "out").exists()
    assert done.stdout.count("\n") == len(CASES), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(case) for case, _ in CASES])
def test_what_can_be_told_without_torch_is_told_before_it_is_imported(told, case):
    code, said, heavy = told[case]
    assert code in (1, 2)
    assert heavy == []
    assert CASES[case][1] in " ".join(said.split())
    assert said.count("\n") == 1
