"""Long runs: what they give does not depend on batches, or on having been stopped on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch

from mm_lens.causal.ablation import ablation_table
from mm_lens.causal.patching import generic_activation_patch
from mm_lens.check.interventions import alike, metric, options_of
from mm_lens.check.subject import TEXTS, Fault, Subject, agree, picture
from mm_lens.data.samples import Sample
from mm_lens.profiling import states
from mm_lens.profiling.result import Profile
from mm_lens.profiling.run import profile

METRICS = ("linearity_paper", "mean_cosine")


def batch_sizes(subject: Subject) -> None:
    """A profile is the same for batches of one and of four samples."""
    tables = [_profile(subject, batch_size=n).table for n in (1, 4)]
    # The metrics are computed in float64 from states that the model rounds.
    dtype = subject.model.cfg.dtype
    one, four = (torch.tensor(table["value"].to_numpy()).to(dtype) for table in tables)
    agree(one, four, "profile in batches of one (not: of four)")


def _profile(subject: Subject, n: int = 5, **options: Any) -> Profile:
    samples = [Sample(str(k), TEXTS[k % 3], picture(k), None) for k in range(n)]
    return profile(
        subject.model, samples, metrics=METRICS, streams=["residual"], progress=False, **options
    )


@torch.no_grad()
def save_and_resume(subject: Subject) -> None:
    """A profile and tables of effects that are killed go on where they were, to the same values."""
    clean, corrupted = alike(subject)
    layer = subject.layers[-1]
    name = f"blocks.{layer}.hook_resid_pre"
    _, cache = subject.model.run_with_cache(clean, names_filter=[name])

    def profiled(path: Path) -> pd.DataFrame:
        found = _profile(subject, 3, batch_size=1, run_dir=path)
        found.save(path.with_suffix(".saved"), overwrite=True)
        return Profile.load(path.with_suffix(".saved")).table

    def patched(path: Path) -> pd.DataFrame:
        found = generic_activation_patch(
            subject.model, corrupted, cache, metric, "resid_pre", axis="modality", layers=[layer],
            batch_size=1, save=path, progress=False,
        )  # fmt: skip
        return pd.DataFrame(found.values.flatten(1).numpy())

    def ablated(path: Path) -> pd.DataFrame:
        samples = [(inputs, metric) for inputs in (clean, corrupted)]
        options = {**options_of(subject), "batch_size": 1, "save": path}
        return pd.DataFrame(ablation_table(subject.model, samples, ["visual"], **options))

    with TemporaryDirectory() as folder, patch.object(states, "COMMIT_SECONDS", 0.0):
        for run in (profiled, patched, ablated):
            kill_and_resume(subject, run, Path(folder) / run.__name__)


def kill_and_resume(subject: Subject, run: Callable[[Path], pd.DataFrame], path: Path) -> None:
    """Run it once as a whole, and once more, killed before its last pass.

    Raises:
        Fault: the values are others, or all of it was done again.
    """
    what = f"what was {path.name}"
    with passes(subject) as whole:
        expected = run(path)
    killed = path.with_name(f"{path.name} killed")
    try:
        with passes(subject, before=whole[0]):
            run(killed)
    except KeyboardInterrupt:
        pass
    else:
        raise Fault(f"{what} was not killed")
    with passes(subject) as again:
        found = run(killed)
    if not found.equals(expected):
        raise Fault(f"{what}, killed and resumed, has other values")
    if again[0] >= whole[0]:
        raise Fault(f"{what} took {again[0]} passes when it was resumed, {whole[0]} as a whole")


@contextmanager
def passes(subject: Subject, before: int = 0) -> Iterator[list[int]]:
    """Count forward passes inside, and be killed at the beginning of one of them."""
    count = [0]

    def note(module: Any, args: Any) -> None:
        count[0] += 1
        if count[0] == before:
            raise KeyboardInterrupt

    handle = subject.model.blocks[0].register_forward_pre_hook(note)
    try:
        yield count
    finally:
        handle.remove()
