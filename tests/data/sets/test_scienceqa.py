"""ScienceQA from each of its sources, on replicas in their formats."""

from __future__ import annotations

import json

import datasets as library
import numpy as np
import pytest
from made_scienceqa import SPLITS, problems, write_original, write_parquet

from mm_lens.data import datasets
from mm_lens.errors import DataError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_original(tmp_path_factory.mktemp("scienceqa"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("copy") / "data" / "test-00000-of-00001.parquet")


def told(samples):
    return [
        (
            sample.id,
            sample.text,
            sample.options,
            sample.right,
            sample.answer,
            {name: value for name, value in sample.about.items() if name != "pid"},
            None if sample.image is None else np.asarray(sample.image).tobytes(),
        )
        for sample in samples
    ]


def test_every_source_gives_the_same_samples(original, copy, tmp_path):
    expected = told(datasets.load(f"scienceqa:{original}"))
    assert len({sample[0] for sample in expected}) == SPLITS["test"]
    assert told(datasets.load(f"scienceqa:{copy}")) == expected
    assert told(datasets.load(f"scienceqa:{copy.parents[1]}")) == expected
    table = library.Dataset.from_parquet(str(copy), cache_dir=str(tmp_path / "cache"))
    table = table.cast_column("image", library.Image())
    library.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "saved"))
    assert told(datasets.load(f"scienceqa:{tmp_path / 'saved'}")) == expected
    for seed in (0, 1):
        drawn = [
            [sample.id for sample in datasets.load(f"scienceqa:{place}", limit=4, seed=seed)]
            for place in (original, copy, tmp_path / "saved")
        ]
        assert drawn[0] == drawn[1] == drawn[2]


def test_samples_say_what_the_questions_say(original):
    by_question = {}
    for sample in datasets.load(f"scienceqa:{original}"):
        by_question.setdefault(sample.about["question"], []).append(sample)
    for problem in problems():
        for sample in by_question[problem["question"]]:
            assert sample.options == tuple(problem["choices"])
            assert sample.right == problem["answer"]
            assert sample.answer == problem["choices"][problem["answer"]]
            for name in ("hint", "grade", "subject", "lecture", "solution"):
                assert sample.about[name] == problem[name]
            lines = sample.text.split("\n")
            assert lines[0] == (problem["hint"] or problem["question"])
            assert lines[-1][:3] == f"{'ABCDE'[len(problem['choices']) - 1]}. "
    pictures = [
        np.asarray(sample.image)
        for samples in by_question.values()
        for sample in samples
        if sample.image is not None
    ]
    wanted = [np.asarray(problem["image"]) for problem in problems() if problem["image"]]
    assert {p.tobytes() for p in pictures} == {p.tobytes() for p in wanted}
    assert len(pictures) == len(wanted)


def test_splits(original, copy):
    assert len(datasets.load(f"scienceqa:{original}", split="validation")) == SPLITS["val"]
    assert len(datasets.load(f"scienceqa:{original}", split="trainval")) == 16
    # minitest is a part of test, and not test
    ids = {sample.id for sample in datasets.load(f"scienceqa:{original}")}
    mini = datasets.load(f"scienceqa:{original}", split="minitest")
    assert len(mini) == 4
    assert mini[0].about["pid"]
    assert {sample.id.split("-")[0] for sample in mini} <= {name.split("-")[0] for name in ids}
    with pytest.raises(DataError, match=r"no split 'dev'\. Available: train, val, test"):
        datasets.load(f"scienceqa:{original}", split="dev")
    with pytest.raises(DataError, match=r"neither problems\.json nor dev-\*\.parquet"):
        datasets.load(f"scienceqa:{copy.parent}", split="dev")


def test_places_that_are_none(tmp_path, original):
    with pytest.raises(DataError, match="scienceqa needs a place"):
        datasets.load("scienceqa")
    with pytest.raises(DataError, match="there is no such directory or file"):
        datasets.load(f"scienceqa:{tmp_path}/nowhere/at/all")
    (tmp_path / "problems.json").write_text(json.dumps({}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["7"]}))
    with pytest.raises(DataError, match=r"Question 7 .*is not there"):
        datasets.load(f"scienceqa:{tmp_path}")
    (tmp_path / "problems.json").write_text("[")
    with pytest.raises(DataError, match=r"problems\.json cannot be read"):
        datasets.load(f"scienceqa:{tmp_path}")


def test_a_prompt_of_ones_own(original):
    sample = datasets.load(f"scienceqa:{original}", prompt="{question} {choices} ({subject})")[0]
    assert sample.text.startswith(sample.about["question"])
    assert sample.text.endswith("science)")
