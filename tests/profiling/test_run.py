"""Profiles against plain loops over the native model, and what must hold for any data set."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import load_tiny
from made_data import CHEAP, make_data, plain_mixed_key, quick
from native_runs import plain_main_stream
from tiny import random_image, tiny_llava_next
from transformer_lens import ActivationCache

import mm_lens
from mm_lens import DataError, InputError
from mm_lens.data.datasets import ImageFolder, Sample
from mm_lens.profiling.result import COLUMNS, Profile
from mm_lens.profiling.states import SamplingPlan, collect, state_names
from mm_lens.profiling.token_sample import BottomK, TokenSample, digest


def states_of(model, data, *, k=50, batch_size=3, seed=0, streams=("residual", "main"), **more):
    options = {"modalities": ("visual", "text", "all"), "progress": False, "on_error": "raise"}
    options |= more
    progress, on_error = (options.pop(name) for name in ("progress", "on_error"))
    plan = SamplingPlan(
        n_samples=len(data),
        streams=streams,
        k=k,
        batch_size=batch_size,
        seed=seed,
        on_error=on_error,
        **options,
    )
    return collect(model, data, plan, progress=progress)


# ---- the sample ----


def plain_key(name: str, position: int, seed: int) -> int:
    """The sampling key of a token of the sample with this id."""
    return plain_mixed_key(digest(name), position, seed)


def plain_states(native, model, data, batch_size, stream):
    """Every token's states from the native model: key, modality and states of each."""
    found = []
    for start in range(0, len(data), batch_size):
        rows = data[start : start + batch_size]
        inputs = model.prepare([s.text for s in rows], [s.image for s in rows])
        positions = (inputs.attention_mask.cumsum(1) - 1).clamp(min=0)
        if stream == "main":
            states = plain_main_stream(native, inputs, positions)
        else:
            last = []
            handle = native.model.language_model.layers[-1].register_forward_hook(
                lambda module, args, output, last=last: last.append(output)
            )
            output = native(**inputs, position_ids=positions, output_hidden_states=True)
            handle.remove()
            # Hugging Face's last hidden state is after the final norm: take the layer's own output.
            states = [*output.hidden_states[:-1], last[0]]
        for row, sample in enumerate(rows):
            attended = inputs.attention_mask[row].nonzero().squeeze(1)
            for position, place in enumerate(attended.tolist()):
                visual = inputs.input_ids[row, place] == native.config.image_token_id
                vectors = torch.stack([state[row, place] for state in states])
                group = "visual" if visual else "text"
                found.append((plain_key(sample.id, position, 0), group, vectors))
    return sorted(found, key=lambda entry: entry[0])


@torch.no_grad()
@pytest.mark.parametrize("stream", ["residual", "main"])
def test_sampled_states_equal_the_native_models(stream):
    model, native = load_tiny(check=False), tiny_llava_next()[0]
    native.set_attn_implementation("sdpa")
    data, k = make_data(), 50
    states = states_of(model, data, k=k)
    truth = plain_states(native, model, data, 3, stream)
    for modality in ("visual", "text", "all"):
        expected = [v for _, group, v in truth if modality in (group, "all")][:k]
        assert len(expected) == k
        for layer in range(model.cfg.n_layers + 1):
            tokens = states.tokens.tokens(stream, layer, modality)
            assert torch.equal(tokens.x, torch.stack([v[layer] for v in expected]))


def test_bottom_k_is_the_start_of_the_sorted_whole():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randperm(500, generator=generator) - 250
    sample, bottom, buffer = keys * 3, BottomK(64), torch.zeros(64, dtype=torch.int64)
    start = 0
    for size in (10, 1, 0, 200, 64, 225):
        part = slice(start, start + size)
        taken, slots = bottom.offer(keys[part], sample[part], keys[part] + 7, keys[part] + 9)
        buffer[slots] = keys[part][taken]
        start += size
    expected = keys.sort().values[:64]
    assert torch.equal(buffer[bottom.order], expected)
    assert torch.equal(bottom.key[bottom.order], expected)
    assert torch.equal(bottom.sample[bottom.order], expected * 3)
    assert torch.equal(bottom.position[bottom.order], expected + 7)
    assert torch.equal(bottom.token_id[bottom.order], expected + 9)
    assert (bottom.size, bottom.seen) == (64, 500)


@pytest.mark.parametrize("change", ["batch size", "order"])
def test_the_sample_depends_on_neither_batch_size_nor_order(model, change):
    data = make_data(10, text_only=(2, 3))
    one = states_of(model, data, batch_size=1, streams=("main",))
    two = data if change == "batch size" else data[::-1]
    two = states_of(model, two, batch_size=7, streams=("main",))
    for modality in ("visual", "text", "all"):
        a, b = (s.tokens.tokens("main", 2, modality) for s in (one, two))
        for column in ("sample", "position", "token_id"):
            assert torch.equal(getattr(a, column), getattr(b, column))
        torch.testing.assert_close(a.x, b.x, rtol=1e-4, atol=1e-5)


def test_a_smaller_sample_is_the_start_of_a_larger_one(model):
    small, large = (states_of(model, make_data(), k=k, streams=("residual",)) for k in (20, 45))
    for modality in ("visual", "text", "all"):
        a, b = (s.tokens.tokens("residual", 1, modality) for s in (small, large))
        assert torch.equal(a.position, b.position[:20])
        assert torch.equal(a.x, b.x[:20])


def test_another_seed_takes_other_tokens(model):
    a, b = (states_of(model, make_data(), k=20, seed=seed, streams=("main",)) for seed in (0, 1))
    places = [s.tokens.tokens("main", 0, "visual").position.tolist() for s in (a, b)]
    assert places[0] != places[1]


def test_memory_is_that_of_the_sample_however_large_the_data(model):
    shapes = []
    for n in (4, 12):
        states = states_of(model, make_data(n), k=30, streams=("residual",))
        (part,) = states.tokens.parts
        stores = [reservoir.store.slots for reservoir in part.reservoirs.values()]
        shapes.append([[slots.shape for slots in store.values()] for store in stores])
        assert all(
            slots.untyped_storage().nbytes() == 30 * 24 * 4 for s in stores for slots in s.values()
        )
    assert shapes[0] == shapes[1] == [[(30, 24)] * 4] * 2


@pytest.mark.slow
def test_the_peak_of_a_process_does_not_grow_with_the_data():
    """What benchmarks/profile_memory.py prints for all of easy-VQA, for less of it."""
    script = Path(__file__).parents[2] / "benchmarks" / "profile_memory.py"
    call = [sys.executable, str(script), "--samples", "100", "1500"]
    shown = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    ratios = [float(ratio) for ratio in re.findall(r"ratio ([\d.]+)", shown)]
    assert len(ratios) == 2
    assert max(ratios) <= 1.05, shown


def test_samples_with_one_image_are_one_unit(model):
    data = make_data(3, text_only=())
    data.append(Sample("again", "Another question", data[0].image, None))
    tokens = states_of(model, data, k=1000).tokens.tokens("residual", 0, "visual")
    assert len(tokens.sample.unique()) == 3


# ---- the table ----


def test_table_has_every_cell_once(model):
    table = quick(model, make_data(), metrics=None).table
    assert tuple(table.columns) == COLUMNS
    place = ["stream", "modality", "layer", "metric"]
    assert not table.duplicated(place).any()
    names = state_names(model.cfg.n_layers)
    for metric in mm_lens.metrics.METRICS.values():
        layers = range(metric.arity - 1, model.cfg.n_layers + 1)
        expected = {
            (s, m, n)
            for s in ("residual", "main")
            for m in ("visual", "text", "all")
            for n in layers
        }
        rows = table[table.metric == metric.name]
        assert set(rows[place[:3]].itertuples(index=False, name=None)) == expected
    assert [names[layer] for layer in table.layer] == list(table.hook)
    assert table.value.notna().mean() > 0.8


def plain_r2(x, y):
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    rest = y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
    return 1 - (rest.square().sum() / y.square().sum()).item()


@torch.no_grad()
def test_linearity_stands_at_the_later_of_two_native_states(model):
    inputs = model.prepare(
        ["What is it?", "And this?"], [random_image(40, 57), random_image(60, 30)]
    )
    native = tiny_llava_next()[0]
    native.set_attn_implementation("sdpa")
    positions = (inputs.attention_mask.cumsum(1) - 1).clamp(min=0)
    states = native(**inputs, position_ids=positions, output_hidden_states=True).hidden_states
    visual = inputs.input_ids == native.config.image_token_id
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names(["resid_pre", "resid_post"]))
    table = quick(cache).table
    for layer in (1, 2):
        row = table[(table.layer == layer) & (table.metric == "linearity_paper")]
        value = row[row.modality == "visual"].value.item()
        expected = plain_r2(states[layer - 1][visual], states[layer][visual])
        assert value == pytest.approx(expected, abs=1e-9)


def test_same_seed_same_table(model):
    tables = [
        quick(model, make_data(), metrics=None, streams=["main"], modalities=["visual"]).table
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_batch_size_moves_values_by_rounding_only(model):
    """Rows are padded to the longest of their batch, and attention sums over the padding."""
    tables = [quick(model, make_data(12), batch_size=size).table for size in (1, 5, 12)]
    for table in tables[1:]:
        np.testing.assert_array_equal(table.n_tokens, tables[0].n_tokens)
        np.testing.assert_allclose(table.value, tables[0].value, rtol=0, atol=1e-5)


def test_dimension_rests_on_equal_numbers(model):
    data = make_data(12, text_only=())
    profile = quick(model, data, tokens=10**4, metrics=["dimension_paper", "anisotropy"])
    numbers = profile.table.groupby(["metric", "modality"]).n_tokens.unique()
    counts = profile.provenance["tokens"]["sampled"]
    assert counts["visual"] > counts["text"] > 0
    assert counts["all"] == counts["visual"] + counts["text"]
    for modality in ("visual", "text", "all"):
        assert numbers["dimension_paper", modality].tolist() == [counts["text"]]
        assert numbers["anisotropy", modality].tolist() == [counts[modality]]


def test_data_without_images(model):
    table = quick(model, make_data(4, range(4)), metrics=None, streams=["main"]).table
    visual, text, both = (table[table.modality == m] for m in ("visual", "text", "all"))
    assert visual.value.isna().all()
    assert set(visual.warning) == {"no visual tokens in the data"}
    np.testing.assert_array_equal(text.value, both.value)


def test_too_few_tokens_are_warned_of_not_fatal(model):
    table = quick(model, make_data(1), metrics=None, tokens=1).table
    assert table.value.isna().all()
    assert (table.warning != "").all()


def test_half_precision_is_kept():
    native, processor = tiny_llava_next()
    half = mm_lens.load(hf_model=native.bfloat16(), processor=processor, check=False)
    tokens = states_of(half, make_data(4), streams=("residual",)).tokens
    assert tokens.tokens("residual", 1, "all").x.dtype == torch.bfloat16
    assert quick(half, make_data(4)).table.value.notna().any()


def test_progress_is_shown_unless_switched_off(model, capsys):
    quick(model, make_data(4), progress=True)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "24/24" in shown
    quick(model, make_data(4))
    assert capsys.readouterr().err == ""


def test_no_hook_is_left_behind(model):
    quick(model, make_data(3))
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


# ---- data that cannot be used ----


@pytest.fixture
def folder(tmp_path):
    """Three images, the second one truncated."""
    for i in range(3):
        random_image(20, 30, i).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    return ImageFolder(tmp_path)


def test_unreadable_sample_ends_the_run_or_is_listed(model, folder):
    with pytest.raises(DataError, match=r"1\.png"):
        quick(model, folder)
    data = quick(model, folder, on_error="skip").provenance["data"]
    assert (data["n_samples"], data["n_skipped"]) == (2, 1)
    assert "1.png" in data["skipped"][0]["reason"]


def test_a_sample_the_processor_refuses_is_found_in_its_batch(model):
    data = make_data(4)
    data[2] = Sample("bad", "two <image> <image> placeholders", data[2].image, None)
    assert quick(model, data, on_error="skip").provenance["data"]["skipped"][0]["sample"] == "bad"
    with pytest.raises(InputError, match="placeholder"):
        quick(model, data)


def test_a_data_set_of_ones_own_may_raise_anything(model):
    class Broken(list):
        def __getitem__(self, index):
            if index == 1:
                raise ZeroDivisionError("nothing left")
            return super().__getitem__(index)

    data = Broken(make_data(3))
    with pytest.raises(ZeroDivisionError):
        quick(model, data)
    (skipped,) = quick(model, data, on_error="skip").provenance["data"]["skipped"]
    assert skipped == {"index": 1, "sample": "#1", "reason": "ZeroDivisionError: nothing left"}


def test_no_sample_left(model, folder):
    with pytest.raises(DataError, match="All 1 samples were skipped"):
        quick(model, folder[1:2], on_error="skip")
    with pytest.raises(DataError, match="no samples"):
        quick(model, [])


def test_ids_must_differ(model):
    with pytest.raises(DataError, match="'sample 1'"):
        quick(model, [*make_data(3), make_data(2)[1]], on_error="skip")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"metrics": ["nope"]}, "nope"),
        ({"metrics": None, "presets": ["best"]}, "best"),
        ({"metrics": None, "presets": []}, "No metric"),
        ({"streams": ["residual", "residual"]}, "twice"),
        ({"samples": 0}, "samples=0"),
        ({"tokens": 0}, "tokens=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"tokens": 10**12}, "GiB"),
    ],
)
def test_wrong_arguments_are_named(model, wrong, message):
    with pytest.raises(InputError, match=message):
        quick(model, make_data(2), **wrong)


def test_model_and_data_go_together(model):
    with pytest.raises(InputError, match="needs data"):
        quick(model)
    with pytest.raises(InputError, match="needs a model"):
        quick("demo/llava-next", make_data(2))


# ---- from a cache ----


def cached(model, names_filter, **options):
    inputs = model.prepare(
        ["What is it?", "Here is none.", "And this?"],
        [random_image(31, 57), None, random_image(8, 40)],
    )
    return model.run_with_cache(inputs, names_filter=names_filter, **options)[1]


def test_views_and_full_stream_give_one_table(model):
    full = quick(cached(model, mm_lens.names(["resid_pre", "resid_post"]))).table
    views = quick(
        cached(model, mm_lens.names(["resid_pre", "resid_post"], ["visual", "text"]))
    ).table
    assert set(full.modality) == {"visual", "text", "all"}
    pd.testing.assert_frame_equal(full, views, check_exact=True)


def test_cache_of_one_modality_and_some_layers(model):
    cache = cached(model, mm_lens.names("resid_post", modality="visual", layers=[0, 1]))
    table = quick(cache).table
    assert set(table.modality) == {"visual"}
    layers = table.groupby("metric").layer.unique().map(list).to_dict()
    assert layers == {"anisotropy": [1, 2], "linearity_paper": [2]}
    with pytest.raises(InputError, match="names_filter"):
        quick(cache, modalities=["text"])


def test_cache_without_batch_dimension(model):
    inputs = model.prepare("What is it?", random_image(31, 57))
    names = mm_lens.names(["resid_pre", "resid_post"])
    tables = [
        quick(model.run_with_cache(inputs, names_filter=names, remove_batch_dim=remove)[1]).table
        for remove in (False, True)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_cache_without_states_names_the_remedy(model):
    with pytest.raises(InputError, match="names_filter"):
        quick(cached(model, mm_lens.names("mlp_out")))
    with pytest.raises(InputError, match="pos_slice"):
        quick(cached(model, mm_lens.names("resid_post"), pos_slice=-1))
    with pytest.raises(InputError, match="prepare"):
        quick(ActivationCache({"blocks.0.hook_resid_post": torch.zeros(1, 4, 24)}, model))


def test_cache_may_hold_the_main_stream(model):
    cache = cached(model, mm_lens.names(["resid_pre", "resid_post"]))
    assert set(quick(cache, streams=["main"]).table.stream) == {"main"}
    with pytest.raises(InputError, match="one stream"):
        quick(cache, streams=["main", "residual"])


# ---- on disk ----


@pytest.fixture(scope="module")
def profile(model) -> Profile:
    return quick(model, make_data(4), data_name="made up")


def test_saved_and_loaded_profile_is_the_same(profile, tmp_path):
    profile.save(tmp_path / "new" / "run")
    loaded = Profile.load(tmp_path / "new" / "run")
    pd.testing.assert_frame_equal(loaded.table, profile.table, check_exact=True)
    assert loaded.provenance == profile.provenance
    assert sorted(p.name for p in (tmp_path / "new" / "run").iterdir()) == [
        "profile.parquet",
        "provenance.json",
        "replicates.parquet",
    ]


def test_provenance_says_what_was_done(profile):
    p = json.loads(json.dumps(profile.provenance))
    assert p["model"]["n_layers"] == 3
    assert p["model"]["attention"] == "sdpa"
    assert p["model"]["dtype"] == "float32"
    assert len(p["data"].pop("fingerprint")) == 16
    assert p["data"] == {
        "name": "made up",
        "n_available": 4,
        "n_samples": 4,
        "n_skipped": 0,
        "skipped": [],
    }
    assert p["versions"]["torch"] == torch.__version__
    assert p["options"]["seed"] == 0
    assert p["options"]["tokens"] == 60
    assert p["options"]["metrics"] == list(CHEAP)


def test_only_an_earlier_profile_is_overwritten(profile, tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not written by mm-lens"):
            profile.save(other, overwrite=overwrite)
    profile.save(tmp_path / "run")
    with pytest.raises(InputError, match="exists already"):
        profile.save(tmp_path / "run")
    profile.save(tmp_path / "run", overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        profile.save(other / "chapter.txt")
    assert (other / "chapter.txt").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "thesis"]


@pytest.mark.parametrize("earlier", [False, True])
def test_full_disk_leaves_what_was_there(profile, tmp_path, monkeypatch, earlier):
    run = tmp_path / "new" / "run"
    if earlier:
        profile.save(run)
    before = sorted(tmp_path.rglob("*"))

    def full(self: Path, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        profile.save(run, overwrite=True)
    monkeypatch.undo()
    assert sorted(tmp_path.rglob("*")) == before
    if earlier:
        Profile.load(run)


def test_loading_what_is_no_profile(tmp_path):
    with pytest.raises(DataError, match="no readable profile"):
        Profile.load(tmp_path)


def test_warnings_are_counted_by_kind(profile):
    table = profile.table.copy()
    table["warning"] = ""
    table.loc[0, "warning"] = "3 of 1,200 tokens dropped; no interval"
    table.loc[1, "warning"] = "17 of 99 tokens dropped"
    assert Profile(table, {}).warnings() == {"# of # tokens dropped": 2, "no interval": 1}


def test_unused_reservoirs_are_not_built(model):
    assert set(TokenSample(5, ("visual",), 0).reservoirs) == {"visual"}
    assert set(TokenSample(5, ("all",), 0).reservoirs) == {"visual", "text"}
