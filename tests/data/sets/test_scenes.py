"""The data set: as any other, and with the truth."""

from __future__ import annotations

import numpy as np
import pytest

from mm_lens import DataError
from mm_lens.data import datasets
from mm_lens.data.sets import scenes
from mm_lens.data.sets.scenes import open_set


@pytest.fixture(scope="module", autouse=True)
def few():
    """Pictures enough for these tests; each is made from its own number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "PICTURES", {"train": 8, "test": 50})
        yield


@pytest.fixture(scope="module")
def data(few):
    return datasets.load("scenes", limit=40, seed=3)


def test_the_same_seed_gives_the_same(data):
    again = datasets.load("scenes", limit=40, seed=3)
    assert [row.outline() for row in again._rows] == [row.outline() for row in data._rows]
    assert data[5].image.tobytes() == again[5].image.tobytes()
    other = datasets.load("scenes", limit=40, seed=4)
    assert {row.images[0] for row in data._rows}.isdisjoint(row.images[0] for row in other._rows)
    assert len({row.id for row in data._rows}) == 40
    # Each picture once before any is taken again.
    assert len({row.images[0] for row in data._rows}) == 40


def test_a_sample_and_its_partner(data):
    for i in range(10):
        sample, truth = data[i], data.truth(i)
        partner = truth.partner
        assert partner.text == sample.text
        assert partner.answer != sample.answer
        before, after = np.asarray(sample.image), np.asarray(partner.image)
        moved = (before != after).any(-1)
        x0, y0, x1, y1 = truth.scene.things[truth.changed].box
        outside = np.ones(moved.shape, bool)
        outside[y0:y1, x0:x1] = False
        assert moved.any()
        assert not (moved & outside).any()
        assert truth.mask.shape == moved.shape
        rows, columns = truth.mask.nonzero()
        assert (columns.min(), rows.min()) == tuple(np.min(truth.boxes, 0)[:2])
        assert (columns.max() + 1, rows.max() + 1) == tuple(np.max(truth.boxes, 0)[2:])
        assert all(word in sample.text for word in truth.words)
        assert sample.about["things"] == len(truth.scene.things)


def test_truth_stays_with_parts_of_it(data):
    assert data[3:6].truth(0).scene == data.truth(3).scene
    assert data.select([7]).truth(0).words == data.truth(7).words


def test_splits_differ_and_others_are_refused(data):
    train = datasets.load("scenes", split="train", limit=5)
    assert train.split == "train"
    assert {row.images[0] for row in train._rows}.isdisjoint(row.images[0] for row in data._rows)
    with pytest.raises(DataError, match="scenes has no split 'val'"):
        open_set("", "val")
    with pytest.raises(DataError, match="scenes are made"):
        datasets.load("scenes:here")
