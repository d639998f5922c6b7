"""States of tokens as points in a plane: principal components, t-SNE, or UMAP.

A picture of a cloud, no measurement: two components hold part of the spread (`.attrs["explained"]`
says how much), and t-SNE and UMAP keep neighbours, not distances or sizes of clusters (Wattenberg
et al. 2016, "How to use t-SNE effectively"). Massive tokens take a principal component for
themselves: `unit=True` looks at directions alone.
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
from mm_lens.layout.layout import VISUAL, TokenLayout
from mm_lens.layout.regions import Axis, find_regions
from mm_lens.looking.sampling import each_inputs, gather
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.streams import resolve_layers

Plane: TypeAlias = Literal["pca", "tsne", "umap"]
BOX = ("x0", "y0", "x1", "y1")
"""Columns of a token's place in its picture, in pixels."""


def state_scatter(
    model: VisionLanguageBridge,
    samples: Inputs | Iterable[Inputs],
    where: Sequence[Any] | Mapping[str, Any] = ("visual", "text"),
    *,
    layers: Sequence[int] | None = None,
    how: Plane = "pca",
    together: bool = False,
    regions: Axis | None = None,
    most: int | None = 64,
    unit: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Two numbers for each token at each layer, in a plane of that layer.

    ```python
    points = state_scatter(model, batches, layers=[0, 4, 8])
    mm_lens.drawing.draw_scatter(points, colour="region")
    mm_lens.drawing.explore_scatter(points, batches).save("states.html")
    ```

    Args:
        model: the model.
        samples: what it is run on.
        where: groups, or a mapping from names to groups, boxes, masks.
        layers: states, negative ones from the end; None takes first, middle and last.
        how: "pca"; "tsne" (scikit-learn must be installed); "umap" (umap-learn must be).
        together: one plane for all layers, in which a token moves from layer to layer.
        regions: what the column `region` tells apart, as in `mm_lens.regions`; None: the overview,
            each tile, newlines, and the segments of the text.
        most: tokens of each row and group, drawn at random; None takes all.
        unit: scale states to length 1.
        seed: of the draws, of t-SNE and of UMAP.

    Returns:
        A row for each token and layer: layer, group, picture, x, y; modality, region, word (of the
        text), and where the token is: inputs (numbered as they came), row, position, image, and its
        box in pixels x0 to y1. `.attrs["explained"]` has for each layer the share of the variance
        that a PCA's plane holds.

    Raises:
        InputError: no such layer, token or region; fewer than three tokens; scikit-learn or
            umap-learn is missing.
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
        name: gather(model, kept, group, sorted({*numbers}), most=most, seed=seed)
        for name, group in groups.items()
    }
    if not found:
        raise InputError("where names no group of tokens to read.")
    tokens = _describe(model, kept, torch.cat([x.places for x in found.values()]), regions)
    tokens.insert(0, "group", [name for name, x in found.items() for _ in range(len(x.picture))])
    tokens.insert(1, "picture", torch.cat([x.picture for x in found.values()]).tolist())
    states = {k: torch.cat([x.states[k] for x in found.values()]).double() for k in numbers}
    if unit:
        states = {k: torch.nn.functional.normalize(x, dim=-1) for k, x in states.items()}
    if len(tokens) < 3:
        raise InputError(f"{len(tokens)} tokens make no plane: read three or more.")
    if together:
        points, share = _project(torch.cat([*states.values()]), how, seed)
        planes = dict(zip(states, points.split(len(tokens)), strict=True))
        explained = dict.fromkeys(states, share)
    else:
        made = {k: _project(x, how, seed) for k, x in states.items()}
        planes = {k: points for k, (points, _) in made.items()}
        explained = {k: share for k, (_, share) in made.items()}
    parts = []
    for k, points in planes.items():
        part = tokens.copy()
        part.insert(0, "layer", k)
        part.insert(3, "x", points[:, 0].tolist())
        part.insert(4, "y", points[:, 1].tolist())
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.attrs["explained"] = explained
    table.attrs["together"] = together
    return table


def _describe(
    model: VisionLanguageBridge, kept: Sequence[Inputs], places: Tensor, regions: Axis | None
) -> pd.DataFrame:
    """What each token is, and where."""
    layouts = [inputs.layout.to("cpu") for inputs in kept]
    named = [_name_regions(layout, regions) for layout in layouts]
    ids = [inputs.input_ids.cpu() for inputs in kept]
    rows = []
    for number, row, position in places.tolist():
        layout = layouts[number]
        visual = int(layout.modality[row, position]) == VISUAL
        word = "" if visual else _spell(model.tokenizer, int(ids[number][row, position]))
        rows.append(
            {
                "modality": "visual" if visual else "text",
                "region": named[number][row][position],
                "word": word,
                "inputs": number,
                "row": row,
                "position": position,
                "image": int(layout.image[row, position]),
                **dict(zip(BOX, layout.box[row, position].tolist(), strict=True)),
            }
        )
    return pd.DataFrame(rows)


def _spell(tokenizer: Any, token: int) -> str:
    """The token as it is written; one that writes nothing, by its name."""
    text: str = tokenizer.decode([token])
    return text if text.strip() else repr(tokenizer.convert_ids_to_tokens(token))[1:-1]


def _name_regions(layout: TokenLayout, axis: Axis | None) -> list[list[str]]:
    """The name of the region of each position: of an axis, or of the parts of the layout."""
    if axis is None:
        names = [
            [layout.segment_names[k] for k in row] for row in layout.segment.clamp(min=0).tolist()
        ]
        tiles, newlines = layout.tile.tolist(), layout.newline.tolist()
        for row, position in (layout.modality == VISUAL).nonzero().tolist():
            tile = tiles[row][position]
            names[row][position] = "overview" if tile == 0 else f"tile {tile}"
            if newlines[row][position]:
                names[row][position] = "newline"
        return names
    names = [["elsewhere"] * layout.shape[1] for _ in range(layout.shape[0])]
    for label, mask in find_regions(layout, axis):
        for row, position in mask.nonzero().tolist():
            names[row][position] = label
    return names


def _project(states: Float[Tensor, "n d"], how: Plane, seed: int) -> tuple[Tensor, float]:
    """Points in a plane, and the share of the variance that it holds."""
    if how == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError as error:
            raise InputError('how="tsne" needs scikit-learn: pip install scikit-learn.') from error
        near = min(30.0, (len(states) - 1) / 3)
        made = TSNE(perplexity=near, init="pca", random_state=seed).fit_transform(states.numpy())
        return torch.from_numpy(made), float("nan")
    if how == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise InputError('how="umap" needs umap-learn: pip install umap-learn.') from error
        # UMAP's own start, the spectrum of a graph, fails on few points; that of PCA does not.
        near = min(15, len(states) - 1)
        drawn = UMAP(n_neighbors=near, init="pca", random_state=seed, n_jobs=1)
        return torch.from_numpy(drawn.fit_transform(states.numpy())), float("nan")
    centred = states - states.mean(0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: its largest weight is positive.
    signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()[:, 0]
    points = left[:, :2] * values[:2] * signs[:2]
    share = values.square()[:2].sum() / values.square().sum().clamp(min=1e-300)
    return points, float(share)
