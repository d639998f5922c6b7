"""`mm-lens open` finds the page of a run."""

from __future__ import annotations

import webbrowser

import pytest

from mm_lens.cli import commands


@pytest.fixture
def browser(monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or len(opened) < 2)
    return opened


def test_the_page_of_a_run_is_opened(tmp_path, browser, capsys):
    (tmp_path / "one").mkdir()
    page = tmp_path / "one" / "report.html"
    page.touch()
    for given in ([str(page.parent)], [str(page)], [str(page), "--path"]):
        assert commands.run(["open", *given]) == 0
    assert browser == [page.as_uri()] * 2
    out = capsys.readouterr().out
    assert out.count(str(page)) == 3
    assert out.count("no browser here") == 1  # the second time
    assert commands.run(["open", str(tmp_path)]) == 1
    assert "holds no page" in (err := capsys.readouterr().err)
    assert "These are runs: one." in err
    assert commands.run(["open", str(tmp_path / "two")]) == 1
    assert "There is no run" in capsys.readouterr().err
