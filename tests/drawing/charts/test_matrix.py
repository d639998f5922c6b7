"""Colours and words of a table stand where its rows say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mm_lens import InputError
from mm_lens.drawing import draw_matrix

TABLE = pd.DataFrame(
    {
        "layer": [4, 4, 7, 4],
        "head": [0, 1, 1, 1],
        "score": [1.0, 2.0, -5.0, 4.0],
        "words": [["red", "x"], ["magnificent"], [], ["other"]],
    }
)


def test_heads_and_layers_are_the_tables():
    figure = draw_matrix(TABLE, "score", label="share", words="words")
    axis, bar = figure.axes
    np.testing.assert_equal(axis.images[0].get_array().filled(np.nan), [[1, np.nan], [3, -5]])
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["head 0", "head 1"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["4", "7"]
    assert [text.get_text() for text in axis.texts] == ["red", "", "magnific…", ""]
    assert bar.get_ylabel() == "share"
    assert axis.images[0].get_clim() == (-5, 5)  # around zero: values have both signs


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="no column 'row'"):
        draw_matrix(TABLE, "score", y="row")
    with pytest.raises(InputError, match="no finite value"):
        draw_matrix(TABLE.assign(score=np.nan), "score")
