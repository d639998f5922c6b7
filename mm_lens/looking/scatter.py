"""States of tokens as points in a plane: principal components, or t-SNE.

A picture of a cloud, no measurement: two components hold part of the spread (`.attrs["explained"]`
says how much), and t-SNE keeps neighbours, not distances or sizes of clusters (Wattenberg et al.
2016, "How to use t-SNE effectively"). Massive tokens take a principal component for themselves:
`unit=True` looks at directions alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens.arguments import require_whole
from mm_lens.errors import InputError
from mm_lens.looking.sampling import each_inputs, gather
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.streams import resolve_layers

Plane: TypeAlias = Literal["pca", "tsne"]


def state_scatter(
    model: VisionLanguageBridge,
    samples: Inputs | Iterable[Inputs],
    where: Sequence[Any] | Mapping[str, Any] = ("visual", "text"),
    *,
    layers: Sequence[int] | None = None,
    how: Plane = "pca",
    most: int | None = 64,
    unit: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Two numbers for each token at each layer, in a plane of that layer.

    ```python
    points = state_scatter(model, batches, layers=[0, 4, 8])
    mm_lens.drawing.draw_scatter(points, colour="group")
    ```

    Args:
        model: the model.
        samples: what it is run on.
        where: groups, or a mapping from names to groups, boxes, masks.
        layers: states, negative ones from the end; None takes first, middle and last.
        how: "pca"; "tsne" (scikit-learn must be installed).
        most: tokens of each row and group, drawn at random; None takes all.
        unit: scale states to length 1.
        seed: of the draws and of t-SNE.

    Returns:
        A row for each token and layer: layer, group, picture, x, y. `.attrs["explained"]` has for
        each layer the share of the variance that a PCA's plane holds.

    Raises:
        InputError: no such layer or token; fewer than three tokens; scikit-learn is missing.
    """
    if how not in get_args(Plane):
        raise InputError(f"how is one of {get_args(Plane)}, not {how!r}.")
    if most is not None:
        require_whole("most", most, 1)
    n = model.cfg.n_layers
    numbers = resolve_layers([*dict.fromkeys([0, n // 2, n])] if layers is None else layers, n + 1)
    groups = dict(where) if isinstance(where, Mapping) else {str(g): g for g in where}
    kept = list(each_inputs(model, samples))
    found = {
        name: gather(model, kept, group, sorted(numbers), most=most, seed=seed)
        for name, group in groups.items()
    }
    parts: list[pd.DataFrame] = []
    explained: dict[int, float] = {}
    for layer in numbers:
        states = torch.cat([x.states[layer] for x in found.values()]).double()
        if len(states) < 3:
            raise InputError(f"{len(states)} tokens make no plane: read three or more.")
        if unit:
            states = torch.nn.functional.normalize(states, dim=-1)
        points, explained[layer] = _project(states, how, seed)
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "group": [name for name, x in found.items() for _ in range(len(x.picture))],
                    "picture": torch.cat([x.picture for x in found.values()]).tolist(),
                    "x": points[:, 0].tolist(),
                    "y": points[:, 1].tolist(),
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    table.attrs["explained"] = explained
    return table


def _project(states: Float[Tensor, "n d"], how: Plane, seed: int) -> tuple[Tensor, float]:
    if how == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError as error:
            raise InputError('how="tsne" needs scikit-learn: pip install scikit-learn.') from error
        near = min(30.0, (len(states) - 1) / 3)
        made = TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(states.numpy())
        return torch.from_numpy(made), float("nan")
    centred = states - states.mean(0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: its largest weight is positive.
    signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()[:, 0]
    points = left[:, :2] * values[:2] * signs[:2]
    share = values.square()[:2].sum() / values.square().sum().clamp(min=1e-300)
    return points, float(share)
