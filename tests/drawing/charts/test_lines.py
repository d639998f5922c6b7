"""Curves hold what the table holds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mm_lens import InputError
from mm_lens.drawing import draw_lines

TABLE = pd.DataFrame(
    [
        {"layer": layer, "group": group, "quantity": quantity, "value": layer * k + q,
         "low": layer * k - 1, "high": layer * k + 1}
        for layer in (4, 0, 2)
        for k, group in enumerate(["visual", "text"], 1)
        for q, quantity in enumerate(["entropy", "kl"])
    ]
)  # fmt: skip


def test_a_curve_for_each_group_and_a_panel_for_each_quantity():
    figure = draw_lines(
        TABLE, "value", "group", panels="quantity", label="nats", level=(1, "chance")
    )
    assert [axis.get_title() for axis in figure.axes] == ["entropy", "kl"]
    assert [line.get_label() for line in figure.axes[1].lines] == ["visual", "text", "chance"]
    line = figure.axes[1].lines[1]
    assert line.get_xdata().tolist() == [0, 2, 4]
    assert line.get_ydata().tolist() == [1, 5, 9]
    band = figure.axes[1].collections[1].get_paths()[0].vertices
    assert {(0, -1), (0, 1), (4, 7), (4, 9)} <= {tuple(v) for v in band}
    assert figure.axes[0].get_ylabel() == "nats"
    assert figure.axes[0].get_xlabel() == "layer"


def test_rows_at_one_place_are_drawn_as_their_mean():
    two = pd.concat([TABLE, TABLE.assign(value=TABLE["value"] + 2)])
    (axis,) = draw_lines(two[two["quantity"] == "entropy"], "value", "group").axes
    assert axis.lines[0].get_ydata().tolist() == [1, 3, 5]
    assert not axis.collections  # of a mean no interval is known


def test_text_stands_in_its_order():
    table = pd.DataFrame({"what": ["b", "a", "c"], "value": [1.0, np.nan, 3.0], "one": "x"})
    (axis,) = draw_lines(table, "value", "one", x="what").axes
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["b", "a", "c"]
    assert axis.lines[0].get_xdata().tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="no column 'accuracy'"):
        draw_lines(table, "accuracy", "one", x="what")
    with pytest.raises(InputError, match="no row"):
        draw_lines(table.iloc[:0], "value", "one", x="what")
