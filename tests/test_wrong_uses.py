"""No wrong use gives a wrong result in silence, or an error that does not name the cause."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from wrong_uses import USES

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def found():
    """What came of every use, in a process without the type checker that tests run under."""
    places = [str(TESTS), *sys.path]
    run = subprocess.run(
        [sys.executable, str(TESTS / "wrong_uses.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", USES)
def test_wrong_use(found, name):
    kind, text, hooks = found[name]
    use = USES[name]
    # A message of ours is always enough, also where one of somebody else's would do.
    assert kind == use.kind or (use.kind == "names" and kind == "says"), text
    assert re.search(use.text, text), text
    assert not hooks


def test_there_are_a_hundred():
    assert len(USES) >= 100
