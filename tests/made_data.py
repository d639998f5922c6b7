"""Small data sets, quick profiles of them, and whether two are the same."""

from __future__ import annotations

import pandas as pd
from tiny import random_image

import mm_lens
from mm_lens.data.datasets import Sample

CHEAP = ("anisotropy", "linearity_paper")


def make_data(n=9, text_only=(4,)):
    """Ragged prompts, images of several shapes, one sample without an image."""
    return [
        Sample(
            id=f"sample {i}",
            text="What is this?"[: 3 + i],
            image=None if i in text_only else random_image(9 + 7 * (i % 3), 11 + 9 * (i % 4), i),
            answer=None,
        )
        for i in range(n)
    ]


def quick(source, data=None, **options):
    """A profile with two metrics and no progress bar."""
    return mm_lens.profile(
        source, data, **{"metrics": CHEAP, "tokens": 60, "progress": False, **options}
    )


def plain_mixed_key(sample: int, position: int, seed: int) -> int:
    """The sampling key in Python's own integers: SplitMix64's finaliser over seed, id, position."""
    bits, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def scramble(z):
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            z = ((z ^ (z >> shift)) * factor) & bits
        return z

    z = golden * (seed + 1)
    for part in (sample, position):
        z = scramble((z + part * golden) & bits)
    return z - (1 << 64) if z >> 63 else z


def profile(model, data, run_dir=None, **options):
    given = {"metrics": CHEAP, "tokens": 60, "batch_size": 2, "streams": ["main"], **options}
    return mm_lens.profile(model, data, run_dir=run_dir, progress=False, **given)


def same(found: mm_lens.Profile, expected: mm_lens.Profile) -> None:
    pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)
    pd.testing.assert_frame_equal(found.replicates, expected.replicates, check_exact=True)
