"""One number for each token at each layer: norm, cosine to a mean, error of the linear map.

Layers are states, as in a profile: state 0 enters block 0, state l leaves block l - 1; the last is
taken before the final norm. Every function runs the model once, keeps no more than two states at a
time, and returns `[layers, batch, pos]` on the CPU with NaN where no value was asked for: a tensor
that draws itself on the picture (`plot`, `explore`), and whose rows `values[layer, row]`
`mm_lens.drawing.draw_values` draws. The first axis has the layers in the order in which they were
asked for.

`where` is what `mm_lens.layout.group_mask` takes: a group of `TokenLayout` ("visual", "newline",
"text after", …), "last" for the last attended token of each row, a `Box` in pixels, or a mask of
positions `[batch, pos]` such as `find_words` returns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from mm_lens.arguments import require_kind
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.layout.groups import Box, group_mask
from mm_lens.looking.token_tensor import TokenValues, name_layers
from mm_lens.metrics.numerics.linear_fit import LinearFit
from mm_lens.metrics.numerics.regression import Target
from mm_lens.metrics.tokens import Tokens
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logits import keep_logits
from mm_lens.model.streams import resolve_layers, state_names

Where: TypeAlias = str | Box | Tensor


def norms(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Where = "all",
    layers: Sequence[int] | None = None,
) -> Float32[TokenValues, "layers batch pos"]:
    """Euclidean norm of the state of each token.

    ```python
    values = norms(model, inputs)      # [layers, batch, pos]
    values.plot()                      # on the picture
    ```

    Args:
        model: the model.
        inputs: what `model.prepare` returned.
        where: which tokens; see the module.
        layers: states to read, negative ones from the end; None reads all.

    Raises:
        InputError: there is no such group or layer.
    """
    check_inputs(model, inputs)
    mask = group_mask(inputs.layout, where)
    wanted = resolve_layers(layers, model.cfg.n_layers + 1)
    out = torch.full((len(wanted), *mask.shape), math.nan)

    def read(k: int, state: Tensor) -> None:
        out[k, mask] = _rows(state, mask).norm(dim=-1).cpu()

    read_states(model, inputs, wanted, read)
    return TokenValues.of(out, inputs, "norm of the state", name_layers(wanted))


def cosine_to_mean(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Where = "visual",
    mean_of: Where | None = None,
    layers: Sequence[int] | None = None,
) -> Float32[TokenValues, "layers batch pos"]:
    """Cosine of the state of each token to the mean state of a modality, or of any other group.

    The mean is over all tokens of the group in the batch. Where states share a large common part
    (anisotropy) all cosines are near 1; a token far below the others is one that the mean, and
    metrics built on it, do not describe.

    ```python
    cosine_to_mean(model, inputs, "visual", mean_of="text").plot()
    ```

    Args:
        model: the model.
        inputs: what `model.prepare` returned.
        where: which tokens.
        mean_of: tokens whose mean is taken; None takes those of `where`.
        layers: states to read, negative ones from the end; None reads all.

    Raises:
        InputError: there is no such group or layer, or the group of the mean is empty.
    """
    check_inputs(model, inputs)
    mask = group_mask(inputs.layout, where)
    centre = mask if mean_of is None else group_mask(inputs.layout, mean_of)
    if not centre.any():
        raise InputError("There is no token to take the mean of in these inputs.")
    wanted = resolve_layers(layers, model.cfg.n_layers + 1)
    out = torch.full((len(wanted), *mask.shape), math.nan)

    def read(k: int, state: Tensor) -> None:
        mean = _rows(state, centre).mean(0)
        out[k, mask] = torch.cosine_similarity(_rows(state, mask), mean, dim=-1).cpu()

    read_states(model, inputs, wanted, read)
    return TokenValues.of(out, inputs, "cosine to the mean state", name_layers(wanted))


def linearity_error(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Where = "visual",
    layers: Sequence[int] | None = None,
    *,
    target: Target = "state",
    seed: int = 0,
) -> Float32[TokenValues, "layers batch pos"]:
    """Which tokens a linear map from the state before does not reach: their held-out squared error.

    The error of each token by the map that was fitted to *other rows of the batch*, over the mean
    squared distance of a token from the mean: averaged over the tokens it is one minus the metric
    `linearity_heldout`. 1 is an error as large as the spread of the tokens. State 0, before which
    there is none, is NaN.

    ```python
    inputs = model.prepare([question] * len(images), images)
    linearity_error(model, inputs, layers=[4]).plot()
    ```

    Args:
        model: the model.
        inputs: a batch of three pictures or more, each in a row of its own.
        where: which tokens: the map is fitted to these as well.
        layers: states to predict, negative ones from the end; None predicts all.
        target: "state", or "update" for the difference between the two states.
        seed: of the folds.

    Raises:
        InputError: there is no such group or layer; or the rows or tokens are too few to fit a map.
        UndefinedError: all tokens have the same state.
    """
    check_inputs(model, inputs)
    mask = group_mask(inputs.layout, where)
    wanted = resolve_layers(layers, model.cfg.n_layers + 1)
    n, rows, d = int(mask.sum()), int(mask.any(1).sum()), model.cfg.d_model
    if rows < 3 or n < 3 * d:
        raise InputError(
            f"{n} tokens from {rows} rows are too few to fit a map between states of {d} numbers "
            f"and to score it on other pictures: it takes 3 rows and {3 * d} tokens (better "
            f"{10 * d}). Prepare a batch of more pictures."
        )
    if n < 10 * d:
        warnings.warn(
            f"Only {n / d:.1f} tokens for each dimension of the state (10 wanted): part of the "
            "error is that of a map fitted to too few tokens.",
            MMLensWarning,
            stacklevel=2,
        )
    sample, position = (index.cpu() for index in mask.nonzero(as_tuple=True))
    token_id = inputs.input_ids.cpu()[mask.cpu()]
    out = torch.full((len(wanted), *mask.shape), math.nan)
    needed = tuple(sorted({k for layer in wanted for k in (layer - 1, layer) if k >= 0}))
    before: dict[int, Tokens] = {}

    def read(k: int, state: Tensor) -> None:
        layer = needed[k]
        tokens = Tokens(_rows(state, mask).cpu(), sample, position, token_id)
        if layer in wanted and layer - 1 in before:
            left, total = LinearFit(before[layer - 1], tokens, seed).token_errors(target)
            out[wanted.index(layer), mask] = (left / total.mean()).float()
        before.clear()
        before[layer] = tokens

    read_states(model, inputs, needed, read)
    return TokenValues.of(
        out, inputs, "squared error of the linear map / mean square", name_layers(wanted)
    )


def find_words(model: VisionLanguageBridge, inputs: Inputs, text: str) -> Bool[Tensor, "batch pos"]:
    """Mask of the text tokens that spell `text`, wherever it occurs; spaces do not count.

    ```python
    attention_map(model, inputs, query=find_words(model, inputs, "color"))
    ```

    Args:
        model: the model.
        inputs: what `model.prepare` returned.
        text: a word or a few, as in the prompt.

    Raises:
        InputError: no row says it.
    """
    check_inputs(model, inputs)
    require_kind("text", text, str, "a word or a few, as in the prompt")
    wanted = "".join(text.split())
    layout = inputs.layout
    found = torch.zeros_like(layout.newline)
    for row in range(layout.shape[0]):
        positions = layout.mask("text")[row].nonzero().squeeze(1).tolist()
        pieces = [
            "".join(model.tokenizer.decode([i]).split())
            for i in inputs.input_ids[row, positions].tolist()
        ]
        owners = [p for p, piece in zip(positions, pieces, strict=True) for _ in piece]
        spelled = "".join(pieces)
        start = spelled.find(wanted) if wanted else -1
        while start >= 0:
            found[row, owners[start : start + len(wanted)]] = True
            start = spelled.find(wanted, start + 1)
    if not found.any():
        prompts = "; ".join(inputs.text)
        raise InputError(f"No prompt says {text!r}. The prompts are: {prompts}")
    return found


def read_states(
    model: VisionLanguageBridge,
    inputs: Inputs,
    layers: Sequence[int],
    read: Callable[[int, Float[Tensor, "batch pos d"]], None],
    **options: Any,
) -> Any:
    """Run the model once; `read(k, state)` is called with state `layers[k]` as it appears.

    Returns:
        The logits that `options` ask for (`mm_lens.model.running.logits`): of the last position.
    """
    names = state_names(model.cfg.n_layers)

    def hook(k: int, state: Tensor, hook: Any) -> None:
        read(k, state)

    with torch.no_grad():
        hooks = [(names[layer], partial(hook, k)) for k, layer in enumerate(layers)]
        return model.run_with_hooks(inputs, fwd_hooks=hooks, **(options or keep_logits(model, 1)))


def _rows(state: Tensor, mask: Tensor) -> Float32[Tensor, "n d"]:
    return state[mask.to(state.device)].float()
