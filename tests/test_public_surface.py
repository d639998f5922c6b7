"""The public names, as a checked-in list: a change to them is a decision.

`python tests/test_public_surface.py` writes the list anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "public_surface.txt"

# One process for all: it prints {package: its names} and fails where a name does not resolve.
READ = """
import json, types
import mm_lens

def is_package(thing):
    return isinstance(thing, types.ModuleType) and hasattr(thing, "__path__")

def names(package):
    for name in dir(package):
        getattr(package, name)  # from nothing but `import mm_lens`
    return sorted(dir(package))

found = {"mm_lens": names(mm_lens)}
for name in found["mm_lens"]:
    thing = getattr(mm_lens, name)
    if is_package(thing) and thing.__name__ == f"mm_lens.{name}":
        found[thing.__name__] = names(thing)
found["mm_lens.cli"] = names(__import__("mm_lens.cli").cli)
print(json.dumps(found))
"""

CALLS = """
from PIL import Image

import mm_lens

mm_lens.patching.no_such_function(1)
mm_lens.names(3)
reveal_type(mm_lens.load)
reveal_type(mm_lens.patching.generic_activation_patch)
reveal_type(mm_lens.Profile.load("runs/one"))


def correct(image: Image.Image) -> mm_lens.Profile:
    model = mm_lens.load("demo/llava-next", check=False)
    inputs = model.prepare("What is it?", image)
    cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_post", "visual"))[1]
    return mm_lens.profile(cache)
"""


def public_names() -> dict[str, list[str]]:
    run = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found: dict[str, list[str]] = json.loads(run.stdout)
    return found


def as_lines(names: dict[str, list[str]]) -> list[str]:
    return [f"{package}.{name}" for package in sorted(names) for name in names[package]]


def test_the_public_names_are_those_of_the_list():
    assert as_lines(public_names()) == LIST.read_text().split()


def test_every_folder_but_the_private_ones_is_a_package_of_the_list():
    folders = {path.parent.name for path in (ROOT / "mm_lens").glob("*/__init__.py")}
    listed = {line.split(".")[1] for line in LIST.read_text().split() if line.count(".") == 2}
    assert {name for name in folders if not name.startswith("_")} == listed


@pytest.mark.slow
def test_a_type_checker_sees_names_and_signatures(tmp_path):
    path = tmp_path / "calls.py"
    path.write_text(CALLS)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": os.pathsep.join([str(ROOT), str(ROOT / "adapters")])},
    )
    told = [line.partition("calls.py:")[2] for line in run.stdout.splitlines()]
    by_line: dict[int, str] = {}
    for line in filter(None, told):
        number, _, message = line.partition(":")
        by_line[int(number)] = by_line.get(int(number), "") + message
    first = CALLS.splitlines().index("mm_lens.patching.no_such_function(1)") + 1
    wrong, ill_typed, load, patch, profile = range(first, first + 5)
    assert set(by_line) == {wrong, ill_typed, load, patch, profile}, run.stdout + run.stderr
    assert 'has no attribute "no_such_function"' in by_line[wrong]
    assert "[arg-type]" in by_line[ill_typed]
    assert "name_or_path: str | os.PathLike[str] | None" in by_line[load]
    assert by_line[load].rstrip('"').endswith("-> mm_lens.model.bridge.VisionLanguageBridge")
    assert "activation_name: str" in by_line[patch]
    assert '"mm_lens.profiling.result.Profile"' in by_line[profile]


if __name__ == "__main__":
    LIST.write_text("\n".join(as_lines(public_names())) + "\n")
