"""States of sampled tokens, against plain loops over the native model."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from conftest import load_tiny
from made_data import make_data, plain_mixed_key, quick
from made_states import states_of
from native_runs import plain_main_stream
from tiny import random_image, tiny_llava_next
from transformer_lens import ActivationCache

import mm_lens
from mm_lens import DataError, InputError
from mm_lens.data.datasets import Sample
from mm_lens.model.binding import identify_pictures
from mm_lens.model.running.frames import Frame
from mm_lens.profiling.collecting.token_sample import digest


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


def test_samples_with_one_image_are_one_unit(model):
    data = make_data(3, text_only=())
    data.append(Sample("again", "Another question", data[0].image, None))
    tokens = states_of(model, data, k=1000).tokens.tokens("residual", 0, "visual")
    assert len(tokens.sample.unique()) == 3


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


def test_ids_must_differ(model):
    with pytest.raises(DataError, match="'sample 1'"):
        quick(model, [*make_data(3), make_data(2)[1]], on_error="skip")


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
        quick(cached(model, lambda name: name == "embed.hook_in"))
    with pytest.raises(InputError, match="pos_slice"):
        quick(cached(model, mm_lens.names("resid_post"), pos_slice=-1))
    with pytest.raises(InputError, match="prepare"):
        quick(ActivationCache({"blocks.0.hook_resid_post": torch.zeros(1, 4, 24)}, model))


def test_cache_may_hold_the_main_stream(model):
    cache = cached(model, mm_lens.names(["resid_pre", "resid_post"]))
    assert set(quick(cache, streams=["main"]).table.stream) == {"main"}
    with pytest.raises(InputError, match="one stream"):
        quick(cache, streams=["main", "residual"])


def test_rows_of_one_picture_are_one_sample_of_a_cache(model):
    """Else intervals take copies for independent samples."""
    pictures = [random_image(31, 57, k) for k in range(5)]
    samples = [
        Sample(f"row {k}", text, pictures[k % 5], None)
        for k, text in enumerate(["What is it?"] * 5 + ["And why is it so?"] * 5)
    ]
    inputs = model.prepare([s.text for s in samples], [s.image for s in samples])
    names = mm_lens.names(["resid_pre", "resid_post"])
    _, cache = model.run_with_cache(inputs, names_filter=names)
    metrics = ["anisotropy", "dimension_mle"]
    found = quick(cache, metrics=metrics).table
    read = {"metrics": metrics, "tokens": None, "batch_size": 10, "streams": ["residual"]}
    expected = quick(model, samples, **read).table
    pd.testing.assert_frame_equal(found, expected)
    tokens = cache.tokens("resid_post", 1, "visual")
    assert len(tokens.sample.unique()) == 5
    assert len(tokens.keys().unique()) == len(tokens)


def test_a_picture_is_known_again_beside_one_of_more_tiles(model):
    """Processors fill up with tiles of zeros."""
    small, large = random_image(12, 12), random_image(90, 8)
    alone = model.prepare(["a", "b"], [small, small])
    beside = model.prepare(["c", "d"], [small, large])
    assert len(alone.pixel_values[0]) < len(beside.pixel_values[0])
    one, two = (identify_pictures(Frame(model.family, inputs, None)) for inputs in (alone, beside))
    assert one == [two[0], two[0]]
    assert two[1] not in one
    assert identify_pictures(
        Frame(model.family, model.prepare(["a", "b"], [None, None]), None)
    ) == [
        "",
        "",
    ]
