"""What other packages add: found by entry point, and a broken one takes no other along."""

from __future__ import annotations

import pytest

from mm_lens import MMLensWarning
from mm_lens.plugins import plugin_names, plugins


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that adds two objects to a group, one of which cannot be imported."""
    info = tmp_path / "toys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[toy.group]\nbroken = toy_broken:thing\nwhole = toy_whole:thing\nnone = toy_whole:other\n"
    )
    (tmp_path / "toy_whole.py").write_text("thing = object()\n")
    (tmp_path / "toy_broken.py").write_text("raise ZeroDivisionError('on import')\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_names_are_known_without_an_import(installed):
    assert plugin_names("toy.group") == ["broken", "none", "whole"]
    assert plugin_names("toy.nothing") == []


def test_whatever_a_package_raises_the_others_are_loaded(installed):
    with pytest.warns(MMLensWarning) as told:
        found = list(plugins("toy.group", "Toy"))
    from toy_whole import thing

    assert found == [thing]
    messages = sorted(str(warning.message) for warning in told)
    assert messages[0].startswith("Toy toy_broken:thing cannot be loaded: on import")
    assert messages[1].startswith("Toy toy_whole:other cannot be loaded: ")
    assert len(messages) == 2
