"""The time left, told right within 30 % after the first tenth, by a clock that is made up."""

from __future__ import annotations

import io

import pytest

from mm_lens.profiling.collecting import progress
from mm_lens.profiling.collecting.progress import Bar, Pace, Piece


class Clock:
    """Stands still until it is told to go on."""

    now = 100.0

    def __call__(self):
        return self.now


def told(pieces, seconds, share=0.1):
    """Seconds left after a share of the time, as told and as it was."""
    clock = Clock()
    pace, whole = Pace(pieces, clock), sum(seconds)
    assert pace.left() is None
    for piece, taken in zip(pieces, seconds, strict=True):
        clock.now += taken
        assert pace.step() == piece
        if clock.now - 100 >= share * whole:
            return pace.left(), whole - (clock.now - 100)
    raise AssertionError


def test_long_batches_at_the_end():
    """Sorted by length, and the first waits for what is read once."""
    lengths = [100 + 10 * i for i in range(60)]
    pieces = [Piece(8, 8 * length) for length in lengths]
    seconds = [0.3 + (i == 0) * 5 + 0.01 * length for i, length in enumerate(lengths)]
    left, true = told(pieces, seconds)
    assert left == pytest.approx(true, rel=0.3)
    naive, _ = told([Piece(8, 8) for _ in lengths], seconds)
    assert abs(naive / true - 1) > 0.3, "else it would show nothing"


def test_cells_of_other_kinds_take_about_what_they_cost_and_then_what_they_took():
    pieces = [Piece(1, cost, kind) for kind, cost in [("a", 10.0), ("b", 1.0)] * 2 for _ in "12345"]
    seconds = [3.0 if piece.kind == "a" else 0.9 for piece in pieces]  # b: three times as told
    left, true = told(pieces, seconds)
    assert left == pytest.approx(true, rel=0.3)
    left, true = told(pieces, seconds, 0.5)
    assert left == pytest.approx(true), "once each kind was seen"


def test_the_first_piece_counts_until_there_is_another():
    clock = Clock()
    pace = Pace([Piece(1, 1)] * 4, clock)
    for now, left in ((150, 150), (151, 2), (152, 1), (153, 0)):
        clock.now = float(now)
        pace.step()
        assert pace.left() == pytest.approx(left)


def test_the_bar_shows_it(monkeypatch):
    clock, shown = Clock(), io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    pieces = [Piece(2, 1.0), Piece(2, 1.0), Piece(2, 60.0)]
    with Bar(pieces, 4, desc="cells", file=shown, ascii=True, mininterval=0, miniters=1) as bar:
        for _ in pieces[:2]:
            clock.now += 1
            bar.step()
        assert "8/10" in shown.getvalue()
        assert "<01:00" in shown.getvalue()
        bar.step()
    assert "10/10" in shown.getvalue()
