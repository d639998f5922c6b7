"""Tokens that are known before the first forward pass: the same sample, less written."""

from __future__ import annotations

import pytest
import torch
from disturbed_runs import interrupt
from made_data import make_data, profile, same
from opened_families import open_family
from PIL import Image
from tiny import random_image

from mm_lens import DataError
from mm_lens.data.datasets import ImageFolder, Sample
from mm_lens.profiling import run
from mm_lens.profiling.collecting import counting
from mm_lens.profiling.collecting.counting import Counted, count_tokens
from mm_lens.profiling.collecting.staging import Staging
from mm_lens.profiling.collecting.token_sample import TokenSample
from mm_lens.profiling.states import SamplingPlan

GROUPS = ("visual", "text")


@pytest.fixture
def counted(monkeypatch):
    """Small data sets are counted as well."""
    monkeypatch.setattr(counting, "FEW", 0)


def told(model, data, k, groups=GROUPS, seed=0, on_error="raise"):
    """What is counted of all of some samples."""
    return count_tokens(
        model, data, SamplingPlan(len(data), (), tuple(groups), k, 1, seed, on_error)
    )


def offered(model, data, k, limits):
    """A sample of the tokens of every prompt as it is run, and how many rows it has written."""
    sample = TokenSample(k, GROUPS, 0)
    sample.speed_up(limits, Staging())
    written = 0
    for s in data:
        inputs = model.prepare([s.text], [s.image])
        written += sample.plan(inputs.layout, inputs.input_ids, [s.id], [0])
    return sample, written


def true_limits(sample, k):
    kept = k + k // counting.SPARE
    found = {group: r.bottom.key[: r.bottom.size] for group, r in sample.reservoirs.items()}
    return {g: int(keys.sort().values[kept - 1]) for g, keys in found.items() if len(keys) > kept}


@pytest.mark.usefixtures("counted")
def test_limits_are_those_of_all_tokens_and_less_is_written(model):
    data = make_data(10, text_only=(4, 5))
    whole, _ = offered(model, data, 3000, {})
    for k in (10, 70, 3000):
        found = told(model, data, k).limits
        assert found == true_limits(whole, k)
        assert told(model, data, k, ["all"]).limits == found
    assert not found
    assert told(model, data, 10, ["text"], seed=3).limits.keys() == {"text"}
    limits = told(model, data, 20).limits
    (one, few), (other, many) = (offered(model, data, 20, each) for each in (limits, {}))
    assert few <= 2 * (20 + 20 // counting.SPARE)
    assert many > 1.5 * few
    for group in GROUPS:
        bottoms = [sample.reservoirs[group].bottom for sample in (one, other)]
        assert torch.equal(*(b.key[b.order] for b in bottoms))
        assert bottoms[0].seen == bottoms[1].seen


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("family", ["omnifusion"], indirect=True)
def test_where_the_processor_cuts_texts_itself(model):
    """Each text and size is prepared once, if there are few of them."""
    samples = make_data(2, text_only=())
    data = [Sample(f"{i}", samples[i % 2].text, samples[i % 2].image, None) for i in range(16)]
    found = told(model, data, 30).limits
    assert found == true_limits(offered(model, data, 3000, {})[0], 30)
    assert told(model, data[:15], 30) == Counted()


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(
    "name",
    [
        "qwen2.5-vl",
        "idefics3",
        pytest.param("gemma3", marks=pytest.mark.slow),
        pytest.param("llava-onevision", marks=pytest.mark.slow),
    ],
)
def test_limits_of_other_families(name):
    """Row breaks, tags of tiles, grids that only the processor tells."""
    bridge, _ = open_family(name)
    data = [
        Sample(f"s{i}", "What is it? " * (i % 3 + 1), random_image(16 + 8 * (i % 2), 24, i), None)
        for i in range(6)
    ]
    found = told(bridge, data, 12).limits
    assert found == true_limits(offered(bridge, data, 3000, {})[0], 12)


@pytest.mark.usefixtures("counted", "every_batch")
@pytest.mark.parametrize("few", [0, pytest.param(64, marks=pytest.mark.slow)])
def test_counted_or_not_and_resumed_either_way(model, data, whole, tmp_path, monkeypatch, few):
    """`whole` is of a run that was not counted."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(counting, "FEW", few)
        interrupt(model, data, run, monkeypatch)
    monkeypatch.setattr(counting, "FEW", 64 - few)
    same(profile(model, data, run), whole)


@pytest.mark.usefixtures("counted")
def test_files_are_read_to_their_header(model, tmp_path, monkeypatch):
    """Turned pictures too: the camera's note is in the header."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for i, ending in enumerate(["png", "jpg", "webp", "gif", "bmp", "tiff"]):
        options = {"exif": exif} if ending in ("jpg", "webp") else {}
        random_image(20 + i, 31, i).save(tmp_path / f"{i}.{ending}", **options)
    folder = ImageFolder(tmp_path)
    limits = told(model, folder, 50).limits
    assert limits == true_limits(offered(model, folder, 3000, {})[0], 50)
    loaded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: (loaded.append(self), load(self))[1])
    sizes = [folder.peek(i)[2] for i in range(len(folder))]
    assert not loaded
    assert sizes == [folder[i].image.size[::-1] for i in range(len(folder))]


class Changing(list):
    """Samples that are others each time."""


@pytest.mark.usefixtures("counted")
def test_what_cannot_be_counted_is_not(model, monkeypatch):
    data = make_data(6)
    assert told(model, Changing(data), 10) == Counted()
    broken = [*data, Sample("x", "two <image> <image>", data[0].image, None)]
    assert told(model, broken, 10) == Counted()
    prepare = model.prepare
    monkeypatch.setattr(
        model, "prepare", lambda text, *a, **o: prepare([t + "!" for t in text], *a, **o)
    )
    assert told(model, data, 10) == Counted()


def test_turned_tiffs_are_not_counted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    random_image(20, 31).save(tmp_path / "0.tiff", exif=exif)
    with pytest.raises(OSError, match="Pillow"):
        ImageFolder(tmp_path).peek(0)


def test_samples_that_change_after_they_were_counted_are_told(model, monkeypatch):
    data = make_data(12)
    wrong = Counted(limits={"visual": -(2**63), "text": 2**62})
    monkeypatch.setattr(run, "count_tokens", lambda *args: wrong)
    with pytest.raises(DataError, match=r"of 60 visual tokens were kept.*on_error"):
        profile(model, data)


@pytest.mark.usefixtures("counted")
def test_tokens_are_counted_as_they_come(model):
    data = make_data(10, text_only=(4, 5))
    whole, _ = offered(model, data, 3000, {})
    found = told(model, data, 10)
    assert found.seen == {group: r.bottom.seen for group, r in whole.reservoirs.items()}
    lengths = [model.prepare([s.text], [s.image]).input_ids.shape[1] for s in data]
    assert found.lengths == lengths
    assert told(model, data, 10, on_error="skip") == Counted(), "those left out never come"


@pytest.mark.usefixtures("counted")
def test_a_profile_counts_once(model, monkeypatch):
    """Also one with several passes over the data."""
    asked, choose = [], counting._choose
    monkeypatch.setattr(counting, "_choose", lambda *args: (asked.append(args), choose(*args))[1])
    found = profile(model, make_data(6), budget=2.5e-5)
    assert found.provenance["memory"]["passes"] > 1
    assert len(asked) == 1
