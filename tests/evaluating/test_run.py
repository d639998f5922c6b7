"""Answers are those of the native model, whatever happens to the run."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
from made_scienceqa import write_original
from tiny import random_image
from transformers import AutoModelForImageTextToText, AutoProcessor

import mm_lens
from demo_training import evaluate as plain
from mm_lens import DataError, InputError, MMLensWarning
from mm_lens.data.samples import Sample
from mm_lens.evaluating import asking, run
from mm_lens.profiling.processes import Processes


def questions(n=7) -> list[Sample]:
    """Ragged questions, two about each image, one without."""
    return [
        Sample(
            f"q{i}",
            "What is this?"[: 3 + i],
            None if i == 4 else random_image(9 + 7 * (i // 2), 11, i // 2),
            "ab"[i % 2],
            about={"kind": "odd" if i % 2 else "even"},
        )
        for i in range(n)
    ]


def ask(model, data, run_dir=None, **options):
    given = {"batch_size": 2, "max_tokens": 2, "progress": False, **options}
    return mm_lens.evaluate(model, data, run_dir=run_dir, **given)


def same(found, expected):
    pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)
    pd.testing.assert_frame_equal(found.answers, expected.answers, check_exact=True)


def test_answers_are_those_of_a_plain_loop_over_the_native_model():
    path = mm_lens.demo.path("demo/llava-next")
    native = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    samples = list(mm_lens.datasets.load("easy-vqa", limit=10, seed=3))
    model = mm_lens.load("demo/llava-next", check=False)
    found = mm_lens.evaluate(model, samples, batch_size=5, progress=False, by=["kind"])
    for condition, hide in (("given", False), ("blanked", True)):
        shown = [plain.hide_image(s) for s in samples] if hide else samples
        expected = plain.answers(native, processor, shown)
        answers = found.answers[found.answers.condition == condition]
        assert [text.strip() for text in answers.written] == expected
        score = plain.score(samples, expected)
        table = found.table[found.table.condition == condition].set_index("value")
        for value, name in (("", "all"), ("yes/no", "yes/no")):
            row = table.loc[value]
            assert (row.n, row.right) == (score[name].total, score[name].right)


@pytest.fixture(scope="module")
def data():
    return questions()


@pytest.fixture(scope="module")
def whole(model, data):
    return ask(model, data, by=["kind"])


def test_images_are_taken_away_only_where_there_are_some(whole, data):
    counts = whole.table.set_index(["condition", "group", "value"]).n
    assert counts["given", "all", ""] == 7
    assert counts["given", "image", "yes"] == counts["blanked", "all", ""] == 6
    assert counts["given", "image", "no"] == 1
    assert counts["given", "kind", "odd"] + counts["given", "kind", "even"] == 7
    given = whole.answers[whole.answers.condition == "given"]
    assert [*given.id] == [sample.id for sample in data]
    assert given.shared.nunique() == 5
    assert not whole.answers[whole.answers.condition == "blanked"].id.eq("q4").any()
    wanted = [*given.wanted].count("a")
    assert whole.table.chance[0] == max(wanted, 7 - wanted) / 7


def test_removed_is_asked_without_a_picture(model, native, data):
    """Each as the native model writes it alone, unpadded: at least the first token."""
    found = ask(model, data, conditions=["removed"], max_tokens=1).answers
    asked = [sample for sample in data if sample.image is not None]
    assert [*found.id] == [sample.id for sample in asked]
    for sample, written in zip(asked, found.written, strict=True):
        inputs = model.prepare(sample.text, None)
        with torch.no_grad():
            token = int(native(**inputs.native).logits[0, -1].argmax())
        assert written == model.tokenizer.decode([token], skip_special_tokens=True)


def test_what_ends_an_answer_is_what_the_checkpoint_says(model, monkeypatch):
    own = model.tokenizer.eos_token_id
    config = type("Config", (), {"eos_token_id": [own + 1, own]})()
    monkeypatch.setattr(model.original_model, "generation_config", config)
    assert asking._find_stops(model) == [own, own + 1]
    config.eos_token_id = None
    assert asking._find_stops(model) == own


class Died(BaseException):
    """What stands for a kill."""


def stop_after(units, monkeypatch):
    left, answer = [units], run._answer_unit

    def stops(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Died
        return answer(*args)

    monkeypatch.setattr(run, "_answer_unit", stops)


def test_a_killed_run_goes_on_and_ends_the_same(model, data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Died) as raised:
            ask(model, data, tmp_path / "run", by=["kind"])
    assert "run the same again to resume" in raised.value.__notes__[0]
    with pytest.raises(InputError, match=r"not this one: options\.protocol is exact there"):
        ask(
            model,
            data,
            tmp_path / "run",
            by=["kind"],
            protocol=replace(run.find_protocol("exact"), name="x"),
        )
    with monkeypatch.context() as patch:
        stop_after(4, patch)  # 7 samples make 4 units, and 6 images 4 more; 3 are done
        with pytest.raises(Died):
            ask(model, data, tmp_path / "run", by=["kind"])
    same(ask(model, data, tmp_path / "run", by=["kind"]), whole)


class Apart(Processes):
    """One of two processes, which here run one after the other."""

    main = True

    def __init__(self, rank):
        super().__init__()
        self.rank, self.count, self.waits = rank, 2, 0

    def share(self, items):
        return list(items)[self.rank :: 2]

    def wait(self):
        self.waits += 1
        if self.waits == 2:  # opened, answered
            raise Died


def test_two_processes_give_the_answers_of_one(model, data, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run, "Processes", lambda: Apart(1))
        with pytest.raises(Died):
            ask(model, data, tmp_path / "run", by=["kind"])
    kept = [*(tmp_path / "run" / "sites").iterdir()]
    assert 0 < len(kept) < 8
    same(ask(model, data, tmp_path / "run", by=["kind"]), whole)


def test_scienceqa_by_subject_and_grade(model, tmp_path):
    where = f"scienceqa:{write_original(tmp_path)}"
    found = ask(model, where, protocol="lmms-eval", samples=6, conditions=["given"])
    assert {"subject", "grade"} <= {*found.table.group}
    samples = mm_lens.datasets.load(where)
    expected = sum(1 / len(samples[i].options) for i in range(6)) / 6
    assert found.table.chance[0] == pytest.approx(expected)
    assert found.provenance["max_tokens"] == 2
    for row in found.answers.itertuples():
        assert row.asked.endswith("directly.")
        assert row.wanted == "ABCDE"[samples[row.index].right]
    with pytest.warns(MMLensWarning, match="the protocol exact counts only the text"):
        ask(model, where, samples=1, conditions=["given"])
    scored = ask(model, where, protocol="letters", samples=4, conditions=["given"]).answers
    for row in scored.itertuples():
        logs = [*row.log_probabilities]
        assert row.said == "ABCDE"[logs.index(max(logs))]
        assert len(logs) == row.n_options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"protocol": "lama"}, "No protocol is called 'lama'"),
        ({"protocol": "llava"}, "q0 has no options, which the protocol llava needs"),
        ({"options": ["a"], "protocol": "options"}, "at least two different answers"),
        ({"by": ["right"]}, "is the name of a column of the answers"),
        ({"samples": 0}, "samples=0 is too small"),
    ],
)
def test_what_cannot_be_asked_is_refused(model, data, options, told):
    with pytest.raises((InputError, DataError), match=told):
        ask(model, data, **options)


def test_samples_without_an_answer_and_columns_that_are_not_there(model):
    bare = [Sample("x", "What?", random_image(9, 9), None)]
    with pytest.raises(DataError, match="x has no right answer to compare with"):
        ask(model, bare)
    with pytest.raises(DataError, match=r"All 1 samples were skipped; the first: The sample x"):
        ask(model, bare, on_error="skip")
    with pytest.raises(InputError, match=r"by names the column 'level'.*kind, question"):
        ask(model, "easy-vqa", by=["level"])
    with pytest.raises(InputError, match="Evaluating needs a model"):
        mm_lens.evaluate(bare, bare)
    with pytest.raises(DataError, match="holds no samples"):
        ask(model, [])


def test_unreadable_samples_may_be_left_out(model, tmp_path):
    rows = [{"image": f"{i}.png", "text": f"What, {i}?", "answer": "a"} for i in range(3)]
    for i in (0, 2):
        random_image(9, 9, i).save(tmp_path / f"{i}.png")
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"1\.png does not exist"):
        ask(model, tmp_path)
    found = ask(model, tmp_path, on_error="skip", conditions=["given"])
    assert [*found.answers.id] == ["0", "2"]
    assert found.provenance["data"]["n_skipped"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.table.n[0] == 2
