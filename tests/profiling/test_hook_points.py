"""Profiles at any hook, against plain forward hooks on the native model and outside packages."""

from __future__ import annotations

import json

import native_hooks
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES, load_tiny
from made_data import make_data, plain_mixed_key, quick
from made_tokens import in_float64, microscope
from skdim.id import TwoNN
from tiny import random_image

import mm_lens
from mm_lens import InputError
from mm_lens.profiling import evaluation
from mm_lens.profiling import states as collecting
from mm_lens.profiling.processes import Processes
from mm_lens.profiling.run import choose_spots
from mm_lens.profiling.states import SamplingPlan, collect
from mm_lens.profiling.token_sample import PATCH, digest

LANGUAGE = ["resid_pre", "ln1", "q", "k", "v", "z", "attn_out", "resid_mid", "ln2", "pre", "post"]
LANGUAGE += ["mlp_out", "resid_post", "ln_final"]
TOWER = ["tower", "projector_in", "projector_out"]


def states_at(model, data, hooks, *, pairs=None, heads=False, k=10**4, streams=("residual",)):
    points, spots = choose_spots(model, hooks, pairs, heads)
    plan = SamplingPlan(
        n_samples=len(data),
        streams=streams,
        modalities=("visual", "text", "all"),
        k=k,
        batch_size=3,
        seed=0,
        on_error="raise",
        points=points,
        spots=spots,
    )
    return collect(model, data, plan, progress=False)


def native_batches(model, native, data, size=3):
    """Inputs and native states, batch by batch."""
    for start in range(0, len(data), size):
        rows = data[start : start + size]
        inputs = model.prepare([s.text for s in rows], [s.image for s in rows])
        yield rows, inputs, native_hooks.run(native, inputs)


def two_of(family, dtype=torch.float32):
    native = FAMILIES[family]()[0].to(dtype)
    native.set_attn_implementation("sdpa")
    return load_tiny(family, dtype, check=False), native


# ---- states are the native model's ----


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_at_every_hook_of_a_block_equal_the_native_models(family, side):
    model, native = two_of(family)
    model.processor.tokenizer.padding_side = side
    data = make_data(6, text_only=(4,))
    states = states_at(model, data, LANGUAGE)
    truth = {point.hook: [] for point in states.points}
    for rows, inputs, held in native_batches(model, native, data):
        for row, sample in enumerate(rows):
            attended = inputs.attention_mask[row].nonzero().squeeze(1).tolist()
            for position, place in enumerate(attended):
                key = plain_mixed_key(digest(sample.id), position, 0)
                visual = int(inputs.input_ids[row, place]) == model.family.image_token_id
                for name, found in truth.items():
                    found.append((key, visual, held[name][row, place]))
    for index, point in enumerate(states.points):
        ordered = sorted(truth[point.hook], key=lambda entry: entry[0])
        for modality, wanted in (("visual", [True]), ("text", [False]), ("all", [True, False])):
            tokens = states.tokens.tokens("residual", index, modality)
            rows = [vector for _, visual, vector in ordered if visual in wanted]
            assert torch.equal(tokens.x, torch.stack(rows)), point.hook
    assert {point.component for point in states.points} == {*LANGUAGE}


@pytest.mark.parametrize("family", FAMILIES)
def test_patches_are_the_tokens_that_they_become(family):
    """A projected patch is, bit by bit, the embedding of its token; nothing else tells where."""
    model, native = two_of(family)
    data = make_data(6, text_only=(4,))
    states = states_at(model, data, [*TOWER, "states"])
    index = {point.hook: i for i, point in enumerate(states.points)}
    embedded = states.tokens.tokens("residual", index["blocks.0.hook_resid_pre"], "visual")
    projected = states.tokens.tokens("residual", index["vision_projector.hook_out"], PATCH)
    place = {int(key): i for i, key in enumerate(projected.key)}
    shared = [(i, place[int(key)]) for i, key in enumerate(embedded.key) if int(key) in place]
    ours, theirs = (torch.tensor(side) for side in zip(*shared, strict=True))
    assert torch.equal(embedded.x[ours], projected.x[theirs])
    assert torch.equal(embedded.position[ours], projected.position[theirs])
    assert torch.equal(embedded.sample[ours], projected.sample[theirs])
    newlines = sum(
        int(inputs.layout.mask("newline").sum())
        for _, inputs, _ in native_batches(model, native, data)
    )
    assert len(embedded) - len(shared) == newlines

    held = [held for *_, held in native_batches(model, native, data)]
    flat = {
        name: torch.cat(
            [h[name][:, -h["vision_projector.hook_out"].shape[1] :] for h in held if name in h]
        ).flatten(0, 1)
        for name in index
        if name.startswith("vision")
    }
    rows = {
        vector.numpy().tobytes(): i for i, vector in enumerate(flat["vision_projector.hook_out"])
    }
    order = torch.tensor([rows[vector.numpy().tobytes()] for vector in projected.x])
    assert len(projected) == len(rows) == len(flat["vision_projector.hook_out"])
    for name, vectors in flat.items():
        found = states.tokens.tokens("residual", index[name], PATCH)
        assert torch.equal(found.x, vectors[order]), name
    # State k is what layer k - 1 leaves; the model reads one before the last.
    layers = [point.layer for point in states.points if point.component.startswith("tower")]
    assert layers == [0, 1, 2, 3]


def test_patches_keep_their_keys_whatever_the_batch(model):
    data = make_data(6, text_only=(1,))
    one = states_at(model, data, TOWER)
    two = states_at(model, data[::-1], TOWER)
    for index in range(len(one.points)):
        a, b = (s.tokens.tokens("residual", index, PATCH) for s in (one, two))
        assert torch.equal(a.key, b.key)
        torch.testing.assert_close(a.x, b.x, rtol=1e-4, atol=1e-5)


def test_main_stream_is_that_of_the_block_without_skips(model):
    """Without skip connections, what attention gives is what the MLP gets."""
    states = states_at(
        model, make_data(4), ["attn_out", "resid_mid", "mlp_out", "resid_post"], streams=("main",)
    )
    found = {p.hook: states.tokens.tokens("main", i, "all").x for i, p in enumerate(states.points)}
    for b in range(model.cfg.n_layers):
        block = f"blocks.{b}.hook"
        assert torch.equal(found[f"{block}_attn_out"], found[f"{block}_resid_mid"])
        assert torch.equal(found[f"{block}_mlp_out"], found[f"{block}_resid_post"])


# ---- metrics on them are those of outside packages ----


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_metrics_at_hooks_equal_llm_microscope_and_scikit_dimension(family):
    model, _ = two_of(family, torch.float64)
    data = make_data(6, text_only=())
    hooks = ["z", "mlp_out", "ln2", "projector_out"]
    names = ["dimension_paper", "dimension_fit90", "anisotropy", "linearity_paper"]
    options = {"metrics": names, "streams": ["residual"], "modalities": ["visual"]}
    pairs = [("resid_mid", "mlp_out")]
    table = quick(
        model, data, hooks=hooks, pairs=pairs, batch_size=3, tokens=10**4, **options
    ).table
    states = states_at(model, data, [*hooks, "resid_mid"])
    index = {point.hook: i for i, point in enumerate(states.points)}
    fewest = int(table[table.metric == "dimension_paper"].n_tokens.min())
    for point in states.points:
        group = PATCH if point.tower else "visual"
        x = states.tokens.tokens("residual", index[point.hook], group).x
        rows = table[(table.hook == point.hook) & (table.source == "")].set_index("metric").value
        if point.component == "resid_mid":
            assert rows.empty  # only the end of a pair
            continue
        with in_float64():
            peer = microscope()
            expected = peer.intrinsic_dimension(x[:fewest], "cpu")
            assert rows["anisotropy"] == pytest.approx(peer.calculate_anisotropy_torch(x), rel=1e-9)
        assert rows["dimension_paper"] == pytest.approx(expected, rel=1e-6)
        unique = np.unique(x[:fewest].numpy(), axis=0)
        assert rows["dimension_fit90"] == pytest.approx(TwoNN().fit(unique).dimension_, rel=1e-6)
    for b in range(model.cfg.n_layers):
        target, source = f"blocks.{b}.hook_mlp_out", f"blocks.{b}.hook_resid_mid"
        row = table[(table.hook == target) & (table.source == source)]
        a, c = (states.tokens.tokens("residual", index[n], "visual").x for n in (source, target))
        with in_float64():
            expected = microscope().procrustes_similarity(a, c)
        assert row.value.item() == pytest.approx(expected, abs=1e-9)


# ---- what to what ----


def linear(table, hook, source):
    rows = table[(table.hook == hook) & (table.source == source)]
    return rows.set_index(["modality", "metric"]).value


@pytest.mark.parametrize("family", FAMILIES)
def test_output_of_attention_is_linear_in_z_exactly(family):
    model, _ = two_of(family, torch.float64)
    data = make_data(12, text_only=(4,))
    metrics = [m for m in mm_lens.metrics.METRICS if m.startswith("linearity")]
    for stream in ("residual", "main"):
        table = quick(
            model,
            data,
            hooks=["attn_out"],
            pairs=["output"],
            metrics=metrics,
            tokens=10**4,
            streams=[stream],
        ).table
        assert (table.source != "").all()
        assert set(table.component) == {"attn_out"}
        for b in range(model.cfg.n_layers):
            found = linear(table, f"blocks.{b}.hook_attn_out", f"blocks.{b}.attn.hook_z")
            for metric in ("linearity_paper", "linearity_adjusted", "linearity_heldout"):
                for modality in ("visual", "text", "all"):
                    assert found[modality, metric] == pytest.approx(1, abs=1e-9)


def test_the_identity_is_linear(model):
    hook = "blocks.1.mlp.hook_pre"
    data = make_data(12, text_only=())
    table = quick(
        model,
        data,
        hooks=[hook],
        pairs=[(hook, hook)],
        tokens=400,
        streams=["residual"],
        metrics=["linearity_paper", "linearity_heldout", "linearity_update_paper"],
    ).table
    found = linear(table, hook, hook)
    assert found["visual", "linearity_paper"] == pytest.approx(1, abs=1e-12)
    assert found["visual", "linearity_heldout"] == pytest.approx(1, abs=1e-9)
    update = table[table.metric == "linearity_update_paper"]
    assert set(update.warning) == {"the update is the same for all tokens"}


@torch.no_grad()
def test_hooks_of_different_width_have_states_but_no_update(model):
    data = make_data(12, text_only=())
    metrics = ["linearity_paper", "linearity_heldout", "linearity_update_paper"]
    table = quick(
        model,
        data,
        hooks=["projector_out"],
        pairs=["projector", ("ln2", "pre")],
        tokens=10**4,
        metrics=metrics,
        streams=["residual"],
    ).table
    states = states_at(model, data, ["projector_in", "projector_out"])
    x, y = (states.tokens.tokens("residual", i, PATCH).x.double() for i in (0, 1))
    x, y = x - x.mean(0), y - y.mean(0)
    left = y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
    found = table[table.hook == "vision_projector.hook_out"].set_index("metric")
    assert found.value["linearity_paper"] == pytest.approx(
        1 - float(left.square().sum() / y.square().sum()), abs=1e-9
    )
    assert found.chance["linearity_paper"] == pytest.approx(20 / (len(x) - 1))
    assert found.value["linearity_heldout"] < found.value["linearity_paper"]
    assert found.low["linearity_heldout"] < found.high["linearity_heldout"]
    assert found.warning["linearity_update_paper"] == (
        "hooks of different width (20 and 24) have no update"
    )
    # The MLP's inside is linear in its normalised input: one matrix.
    inside = table[(table.component == "pre") & (table.metric == "linearity_paper")]
    np.testing.assert_allclose(inside.value, 1, atol=1e-6)


def test_what_a_component_adds_is_the_difference_of_states():
    model, _ = two_of("llava-next", torch.float64)
    hooks = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    states = states_at(model, make_data(6), hooks)
    x = {p.hook: states.tokens.tokens("residual", i, "all") for i, p in enumerate(states.points)}
    names = ["anisotropy", "participation_ratio"]
    for b in range(model.cfg.n_layers):
        for out, before, after in (
            ("attn_out", "resid_pre", "resid_mid"),
            ("mlp_out", "resid_mid", "resid_post"),
        ):
            added = x[f"blocks.{b}.hook_{out}"]
            tokens = [x[f"blocks.{b}.hook_{name}"] for name in (before, after)]
            difference = mm_lens.metrics.Tokens(
                tokens[1].x - tokens[0].x, added.sample, added.position, added.token_id
            )
            for metric in names:
                both = [
                    mm_lens.metrics.METRICS[metric].compute(t).value for t in (added, difference)
                ]
                assert both[0] == pytest.approx(both[1], rel=1e-9)


def test_each_head_is_its_part_of_z(model):
    data = make_data(12, text_only=())
    names = ["participation_ratio", "dimensions_95", "effective_rank"]
    table = quick(
        model, data, hooks=["z", "k"], heads=True, metrics=names, tokens=10**4, streams=["residual"]
    ).table
    width = model.cfg.d_head
    heads = table[table["head"] >= 0]
    assert set(heads[heads.component == "z"]["head"]) == set(range(model.cfg.n_heads))
    assert set(heads[heads.component == "k"]["head"]) == {0, 1}  # two heads of keys
    assert (heads.value.dropna() <= width + 1e-9).all()
    np.testing.assert_allclose(heads.n_tokens / heads.n_over_d, width)
    states = states_at(model, data, ["z"])
    tokens = states.tokens.tokens("residual", 1, "text")
    x = tokens.x.unflatten(1, (model.cfg.n_heads, width))[:, 2]
    one = mm_lens.metrics.Tokens(x.contiguous(), tokens.sample, tokens.position, tokens.token_id)
    row = heads[
        (heads.hook == "blocks.1.attn.hook_z")
        & (heads["head"] == 2)
        & (heads.modality == "text")
        & (heads.metric == "participation_ratio")
    ]
    expected = mm_lens.metrics.METRICS["participation_ratio"].compute(one).value
    assert row.value.item() == expected


def test_residual_stream_to_each_head(model):
    table = quick(
        model,
        make_data(12, text_only=()),
        hooks=["z"],
        heads=[0, 3],
        pairs=["heads"],
        metrics=["linearity_paper"],
        tokens=10**4,
        streams=["residual"],
    ).table
    places = {(row.hook, row.head, row.source) for row in table.itertuples()}
    assert places == {
        (f"blocks.{b}.attn.hook_z", head, f"blocks.{b}.hook_resid_pre")
        for b in range(model.cfg.n_layers)
        for head in (-1, 0, 3)
    }


def test_patches_to_tokens(model):
    """The embedding of a token is its projected patch: the same tokens, at hooks of two towers."""
    table = quick(
        model,
        make_data(12, text_only=()),
        hooks=["states"],
        tokens=10**4,
        pairs=[("projector_out", "blocks.0.hook_resid_pre")],
        streams=["residual"],
        metrics=["linearity_paper"],
    ).table
    visual = table[table.modality == "visual"]
    np.testing.assert_allclose(visual.value, 1, atol=1e-9)
    assert table[table.modality == "text"].value.isna().all()


# ---- the table ----


def test_known_pairs_among_the_hooks_come_by_themselves(model):
    table = quick(
        model,
        make_data(4),
        hooks=["states", "attn_out", "z", "tower"],
        streams=["residual"],
        metrics=["linearity_paper"],
        modalities=["visual"],
    ).table
    pairs = {(row.source, row.hook) for row in table.itertuples()}
    tower = "vision_encoder.encoder_layers"
    assert pairs == {
        *((f"blocks.{b}.attn.hook_z", f"blocks.{b}.hook_attn_out") for b in range(3)),
        ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"),
        ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),
        ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post"),
        (f"{tower}.0.hook_in", f"{tower}.0.hook_out"),
        (f"{tower}.0.hook_out", f"{tower}.1.hook_out"),
        (f"{tower}.1.hook_out", f"{tower}.2.hook_out"),
    }


def test_hooks_beside_the_states_leave_them_as_they_are(model):
    data = make_data(9)
    alone = quick(model, data)
    beside = quick(
        model,
        data,
        hooks=["states", "z", "pre", "ln_final"],
        heads=True,
        pairs=["states", "components"],
    )
    table = beside.table[
        beside.table.hook.isin(alone.table.hook) & (beside.table.source.isin(alone.table.source))
    ]
    pd.testing.assert_frame_equal(table.reset_index(drop=True), alone.table, check_exact=True)


def test_layer_is_the_state_that_a_hook_leads_to(model):
    table = quick(
        model,
        make_data(3),
        hooks=["resid_pre", "attn_out", "ln_final", "tower.z"],
        metrics=["anisotropy"],
        streams=["residual"],
    ).table
    found = table.groupby("component").layer.unique().map(list).to_dict()
    assert found == {
        "resid_pre": [0, 1, 2],
        "attn_out": [1, 2, 3],
        "ln_final": [3],
        "tower.z": [1, 2, 3, 4],
    }


def test_names_patterns_and_functions_name_one_thing(model):
    options = {"metrics": ["anisotropy"], "streams": ["residual"]}
    tables = [
        quick(model, make_data(3), hooks=hooks, **options).table
        for hooks in (
            ["z"],
            "blocks.*.attn.hook_z",
            ["blocks.0.attn.hook_z", "blocks.2.attn.hook_z", "blocks.1.visual.hook_z"],
            mm_lens.names("z"),
            lambda name: name.endswith("attn.hook_z") and name.startswith("blocks"),
            mm_lens.names("z", modality="visual"),
        )
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hooks": ["nope"]}, "No hook point is called 'nope'"),
        ({"hooks": []}, "No hook is asked for"),
        ({"hooks": ["*.nope"]}, "No hook point matches"),
        ({"hooks": ["embed.hook_in"]}, "no vector per token"),
        ({"hooks": ["blocks.0.attn.hook_pattern"]}, "never fires in this model"),
        ({"hooks": ["vision_encoder.post_layernorm.hook_out"]}, "no vector per token"),
        ({"hooks": ["unembed.hook_out"]}, "no token axis"),
        ({"hooks": ["attn_out"], "heads": True}, "has heads"),
        ({"hooks": ["z"], "heads": [4]}, "heads are 0 to 3"),
        ({"pairs": ["everything"]}, "No pairs are called 'everything'"),
        ({"pairs": [("z", "attn_out", "q")]}, "is no pair"),
        ({"pairs": [("states", "attn_out")]}, "not in the same blocks"),
        ({"hooks": ["tower"], "modalities": ["text"]}, "patches, which are visual tokens"),
    ],
)
def test_what_cannot_be_profiled_is_named(model, wrong, message):
    with pytest.raises(InputError, match=message):
        quick(model, make_data(2), **wrong)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_attention_patterns_have_no_token_axis():
    eager = load_tiny(attention="eager", check=False)
    with pytest.raises(InputError, match="no token axis"):
        quick(eager, make_data(2), hooks=["blocks.0.attn.hook_pattern"])
    table = quick(eager, make_data(4), hooks=["z"], heads=True, metrics=["anisotropy"]).table
    assert set(table["head"]) == {-1, 0, 1, 2, 3}


# ---- memory ----


ALL_KINDS = {
    "hooks": ["states", "z", "post", "tower", "projector_out"],
    "heads": True,
    "pairs": ["states", "heads", "projector"],
}


def same_bytes(tmp_path, *profiles):
    found = []
    for i, each in enumerate(profiles):
        directory = tmp_path / f"written-{i}"
        directory.mkdir()
        each.write(directory)
        found.append([(directory / f"{n}.parquet").read_bytes() for n in ("profile", "replicates")])
    assert all(other == found[0] for other in found[1:])


def test_several_passes_give_the_table_of_one(model, tmp_path):
    data = make_data(9)
    whole = quick(model, data, **ALL_KINDS)
    assert whole.provenance["memory"]["passes"] == 1
    small = quick(model, data, **ALL_KINDS, budget=2 * 2 * 60 * (24 + 44) * 4 / 2**30)
    assert small.provenance["memory"]["passes"] > 2
    assert small.provenance["memory"]["bytes"] <= small.provenance["memory"]["budget"]
    assert f"{small.provenance['memory']['passes']} passes" in small.provenance["memory"]["said"]
    same_bytes(tmp_path, whole, small)


def test_what_is_held_is_said_beforehand_and_no_more_is_held(model, monkeypatch, capsys):
    held = []
    collect_states = mm_lens.profiling.run.collect

    def watch(*args, **options):
        states = collect_states(*args, **options)
        (part,) = states.tokens.parts
        stores = [r.store.slots.values() for r in part.reservoirs.values()]
        held.append(sum(x.nbytes for store in stores for x in store))
        return states

    monkeypatch.setattr(mm_lens.profiling.run, "collect", watch)
    p = quick(model, make_data(9), **ALL_KINDS, budget=1e-4, progress=True)
    assert len(held) == p.provenance["memory"]["passes"] > 1
    assert max(held) <= p.provenance["memory"]["bytes"] <= 1e-4 * 2**30
    assert p.provenance["memory"]["said"] in capsys.readouterr().err


def test_fewer_tokens_where_not_even_a_pair_fits(model):
    p = quick(model, make_data(9), tokens=None, budget=2 * 2 * 2 * 30 * 24 * 4 / 2**30)
    assert p.provenance["memory"]["fewer_tokens"]
    assert p.provenance["options"]["tokens"] == 30
    assert "only 30 tokens" in p.provenance["memory"]["said"]
    with pytest.raises(InputError, match="GiB"):
        quick(model, make_data(9), tokens=60, budget=2 * 2 * 2 * 30 * 24 * 4 / 2**30)


def test_states_in_files_are_those_in_memory(model, tmp_path):
    data = make_data(9)
    in_files = quick(model, data, **ALL_KINDS, run_dir=tmp_path / "run")
    same_bytes(tmp_path, quick(model, data, **ALL_KINDS), in_files)
    assert in_files.provenance["memory"]["budget"] is None


class Died(BaseException):
    """What stands for a kill."""


def test_a_killed_run_and_two_processes_end_with_the_bytes_of_one(model, tmp_path, monkeypatch):
    data, run = make_data(9), tmp_path / "run"
    monkeypatch.setattr(collecting, "COMMIT_SECONDS", 0.0)
    options = {**ALL_KINDS, "batch_size": 2}
    whole = quick(model, data, **options)

    class Second(Processes):
        """The other of two processes: it takes every second batch, and is gone before metrics."""

        def __init__(self):
            super().__init__()
            self.rank, self.count, self.waits = 1, 2, 0

        main = True

        def share(self, items):
            return [item for item in items if item % 2]

        def wait(self):
            self.waits += 1
            if self.waits == 2:
                raise Died

    with monkeypatch.context() as patch:
        patch.setattr(mm_lens.profiling.run, "Processes", Second)
        with pytest.raises(Died):
            quick(model, data, **options, run_dir=run)
    for after in (2, 1):
        left, take = [after], collecting._take

        def dies(*args, left=left, take=take):
            take(*args)
            left[0] -= 1
            if left[0] == 0:
                raise Died

        with monkeypatch.context() as patch:
            patch.setattr(collecting, "_take", dies)
            with pytest.raises(Died):
                quick(model, data, **options, run_dir=run)
    left = [5]

    def dies_measuring(*args, evaluate=evaluation.evaluate):
        left[0] -= 1
        if left[0] == 0:
            raise Died
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", dies_measuring)
        with pytest.raises(Died):
            quick(model, data, **options, run_dir=run)
    assert len([*(run / "sites").iterdir()]) > 0
    assert len([*run.glob("part-*/index")]) == 2
    same_bytes(tmp_path, whole, quick(model, data, **options, run_dir=run))
    with pytest.raises(InputError, match=r"options\.spots"):
        quick(model, data, **{**options, "heads": [1]}, run_dir=run)


# ---- caches ----


@pytest.fixture(scope="module")
def inputs(model):
    return model.prepare(
        ["What is it?", "Here is none.", "And this?"],
        [random_image(31, 57), None, random_image(8, 40)],
    )


def test_cache_of_components_has_a_row_for_each(model, inputs):
    names = mm_lens.names(["attn_out", "mlp_out", "z"])
    _, cache = model.run_with_cache(inputs, names_filter=names)
    table = quick(cache, metrics=["anisotropy", "linearity_paper"]).table
    rows = table[table.metric == "anisotropy"]
    assert set(rows.component) == {"attn_out", "mlp_out", "z"}
    assert len(rows) == 3 * 3 * 3
    pairs = set(table[table.metric == "linearity_paper"].source)
    assert pairs == {f"blocks.{b}.attn.hook_z" for b in range(3)}


def test_unfiltered_cache_has_every_component_once(model, inputs):
    _, cache = model.run_with_cache(inputs)
    table = quick(cache, metrics=["anisotropy"], modalities=["visual"]).table
    assert not table.duplicated(["hook", "modality", "metric"]).any()
    components = table.groupby("component").hook.count().to_dict()
    expected = dict.fromkeys(LANGUAGE, 3) | {"ln_final": 1, "resid_pre": 1}
    assert {k: v for k, v in components.items() if k in expected} == expected
    assert {"projector_in", "projector_out", "tower.z", "tower.resid_post"} <= components.keys()
    # What enters a block is what left the one before: one state, one row.
    assert set(table[table.component == "resid_pre"].layer) == {0}


def test_cache_of_views_is_that_of_the_full_stream(model, inputs):
    hooks = ["z", "mlp_out", "pre"]
    tables = []
    for modality in (None, ["visual", "text"]):
        _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names(hooks, modality))
        tables.append(quick(cache, heads=True).table)
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("z", "text"))
    assert set(quick(cache).table.modality) == {"text"}


def test_cache_of_one_head(model, inputs):
    name = "blocks.1.attn.hook_z"
    _, cache = model.run_with_cache(inputs, names_filter=name)
    table = quick(cache, heads=[2], metrics=["anisotropy"]).table
    assert set(table["head"]) == {-1, 2}
    cache.cache_dict[name] = cache.cache_dict[name][:, :, 2]
    with pytest.raises(InputError, match="heads=") as error:
        quick(cache)
    assert "\n" not in str(error.value)


def test_cache_of_text_alone(model):
    inputs = model.prepare(["No picture here.", "Nor here."], [None, None])
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names(["mlp_out", "z"]))
    table = quick(cache, metrics=["anisotropy"]).table
    assert table[table.modality == "text"].value.notna().all()
    assert set(table[table.modality == "visual"].warning) == {"no visual tokens in the data"}


def test_cache_without_what_is_asked_for(model, inputs):
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("z"))
    with pytest.raises(InputError, match=r"does not hold blocks\.0\.hook_mlp_out"):
        quick(cache, hooks=["mlp_out"])
    _, cache = model.run_with_cache(inputs, names_filter=lambda name: name == "embed.hook_in")
    with pytest.raises(InputError, match="holds no states of tokens"):
        quick(cache)


def test_a_row_of_the_table_in_one_line(model, inputs):
    names = mm_lens.names("mlp_out", ["visual", "text"])
    _, views = model.run_with_cache(inputs, names_filter=names)
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("mlp_out"))
    assert torch.equal(cache.tokens("mlp_out", 1, "text").x, views.tokens("mlp_out", 1, "text").x)
    found = mm_lens.metrics.METRICS["dimension_mle"].compute(cache.tokens("mlp_out", 2, "visual"))
    row = quick(cache, metrics=["dimension_mle"], modalities=["visual"]).table
    row = row[row.hook == "blocks.2.hook_mlp_out"]
    assert found.n_tokens == row.n_tokens.item()
    assert found.value == row.value.item()
    tokens = cache.tokens("mlp_out", 2, "visual")
    rows = views["mlp_out", 2, "visual"][inputs.layout.valid("visual")]
    assert sorted(map(bytes, tokens.x.numpy())) == sorted(map(bytes, rows.numpy()))
    z = model.run_with_cache(inputs, names_filter=mm_lens.names("z"))[1].tokens("z", 0)
    assert z.x.shape == (int(inputs.layout.mask("all").sum()), 24)


def test_earlier_profiles_are_read_as_states(model, tmp_path):
    p = quick(model, make_data(4))
    p.save(tmp_path / "run")
    old = pd.read_parquet(tmp_path / "run" / "profile.parquet")
    old.drop(columns=["component", "head", "source"]).to_parquet(
        tmp_path / "run" / "profile.parquet"
    )
    found = mm_lens.Profile.load(tmp_path / "run")
    pd.testing.assert_frame_equal(found.table, p.table, check_exact=True)
    json.dumps(found.provenance)
