"""Every tutorial runs top to bottom (`make test-pages`), and is committed with its outputs.

With all of its samples, and with the solutions of its exercises, only among the slow tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parents[1].parent / "tutorials").glob("*.ipynb"))
HUNG = 3600
"""Seconds in which no cell takes so long, however slow or busy the machine is."""
SAMPLES = 48
"""Three batches of the first tutorial; no notebook asserts a number of a profile."""


def take_few_samples(source: str) -> str:
    """Let a cell profile a tenth of what it profiles: its pictures are of the whole run."""
    return re.sub(r"\blimit=(\d+)", lambda n: f"limit={min(int(n[1]), SAMPLES)}", source)


def solutions_of(notebook) -> list[str]:
    """Code of the folded solutions of the exercises; it takes up where the notebook ends."""
    exercises = notebook.cells[-1].source
    return re.findall(r"^```python\n(.*?)^```", exercises, re.MULTILINE | re.DOTALL)


@pytest.mark.pages
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tutorial_runs(path, whole, monkeypatch):
    """On the CPU: what they assert of numbers was read there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(path, as_version=4)
    if whole:
        notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions_of(notebook)]
    else:
        for cell in notebook.cells:
            cell.source = take_few_samples(cell.source)
    notebook.cells.append(nbformat.v4.new_code_cell("import time\nprint(time.process_time())"))
    client = NotebookClient(notebook, timeout=HUNG, resources={"metadata": {"path": path.parent}})
    client.execute()  # raises on the first cell that fails
    print(f"{path.stem}: {float(notebook.cells[-1].outputs[0].text):.0f} s of CPU time")


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_committed_as_run(path):
    assert path.stat().st_size < 1_000_000
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_installs_what_it_needs_and_has_exercises(path):
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    (other, *_) = (nbformat.read(each, as_version=4).cells[1] for each in TUTORIALS)
    assert first.source == other.source
    assert 'if importlib.util.find_spec("mm_lens") is None:' in first.source
    assert "    %pip install" in first.source
    _, heading, exercises = notebook.cells[-1].source.partition("## Exercises\n")
    assert heading
    asked = re.findall(r"^\*\*\d\.\*\* ", exercises, re.MULTILINE)
    assert 2 <= len(asked) == exercises.count("<details><summary>Solution</summary>\n\n")
    for code in solutions_of(notebook):
        compile(code, path.name, "exec")
