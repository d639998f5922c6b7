"""Profiles at any hook, for tests of every part of them."""

from __future__ import annotations

import native_hooks
import torch
from conftest import FAMILIES, load_tiny

from mm_lens.profiling.run import choose_spots
from mm_lens.profiling.states import SamplingPlan, collect

LANGUAGE = ["resid_pre", "ln1", "q", "k", "v", "z", "attn_out", "resid_mid", "ln2", "pre", "post"]
LANGUAGE += ["mlp_out", "resid_post", "ln_final"]
TOWER = ["tower", "projector_in", "projector_out"]

ALL_KINDS = {
    "hooks": ["states", "z", "post", "tower", "projector_out"],
    "heads": True,
    "pairs": ["states", "heads", "projector"],
}


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


def same_bytes(tmp_path, *profiles):
    found = []
    for i, each in enumerate(profiles):
        directory = tmp_path / f"written-{i}"
        directory.mkdir()
        each.write(directory)
        found.append([(directory / f"{n}.parquet").read_bytes() for n in ("profile", "replicates")])
    assert all(other == found[0] for other in found[1:])
