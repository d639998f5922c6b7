"""What a run is: the model, the data and the options that its numbers follow from.

Two runs with the same identity on the same kind of machine, with as many threads in each process,
give the same table, so that one may resume what the other has left. How many processes share the
work is not part of it. The number of threads is noted, and its change told: sums are then made in
another order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mm_lens._storage.checked import tensor_checksum
from mm_lens._storage.fingerprint import weights_digest
from mm_lens._storage.hashing import digest_entries
from mm_lens.data.samples import Samples
from mm_lens.model.check import PROMPT
from mm_lens.profiling.provenance import describe_model, versions
from mm_lens.profiling.reading import Item

LOOKS = 16
"""Samples looked at in a sequence that can tell nothing about itself."""


def manifest(
    model: Any, dataset: Samples, n_samples: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The identity of a run, ready for JSON.

    Cost: one pass over the model's weights; of a `DataSet`, a look at the size and the time of
    every image file; of a list of samples, one pass over the images; of other sequences, their
    length and 16 samples spread over them.
    """
    about = describe_model(model)
    device = torch.device(about.pop("device"))
    return {
        "model": {
            **about,
            "weights": weights_digest(model),
            "config": digest_entries([model.original_model.config.to_dict()]),
            "inputs": _inputs(model),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        "data": {"n_samples": n_samples, "content": _data(dataset, n_samples)},
        "options": dict(options),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def _inputs(model: Any) -> str:
    """Of what the processor makes of a prompt and an image: its settings, as far as they matter."""
    inputs = model.prepare(PROMPT, model.family.probe_image())
    return digest_entries(
        (name, tensor_checksum(value) if isinstance(value, Tensor) else value)
        for name, value in sorted(inputs.items())
    )


def _data(dataset: Samples, n_samples: int) -> str:
    outline = getattr(dataset, "outline", None)
    if outline is not None:
        return digest_entries(outline()[:n_samples])
    looks = n_samples if isinstance(dataset, (list, tuple)) else min(n_samples, LOOKS)
    indices = [i * (n_samples - 1) // max(looks - 1, 1) for i in range(looks)]
    return digest_entries([len(dataset), *(_item(dataset, i) for i in indices)])


def _item(dataset: Samples, index: int) -> Any:
    try:
        return Item.of(index, dataset[index])
    except Exception as error:  # the run will say so, or skip it
        return repr(error)
