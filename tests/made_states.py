"""Sampled states of a small data set."""

from __future__ import annotations

from mm_lens.profiling.states import SamplingPlan, collect


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
