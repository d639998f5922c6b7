"""Prepared inputs as plain keywords."""

from __future__ import annotations


def keywords(inputs):
    return {k: v for k, v in inputs.items() if k != "input_ids"}


def n_image(inputs):
    return inputs.layout.counts("visual").item()
