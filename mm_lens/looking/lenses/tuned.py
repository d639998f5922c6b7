"""Tuned lens: an affine map of each state, fitted so that reading it says what the model says.

The state `x` of layer l is read as `x + A_l x + b_l`, through the model's final norm and
unembedding (Belrose et al. 2023, arXiv 2303.08112). `A` and `b` start at zero, where the lens is
the logit lens, and minimise `KL(end || here)` over tokens of *one group*: a lens of image tokens
and one of text tokens are two lenses, since what the last blocks still do to the two differs.

What it does to the reading is measured on pictures that it was not fitted to (`TunedLens.table`). A
lens that is no nearer to the end there than the logit lens warns: too few tokens, most likely. What
a tuned lens says is not what the state says to the rest of the model, but what can be predicted
from it: a good lens of an early layer may know words that the model itself has not found yet.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float32
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.arguments import require_number, require_whole
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.looking.lenses.curves import compare_to_end
from mm_lens.looking.lenses.stored import open_stored
from mm_lens.looking.sampling import Gathered, gather, mean_of_pictures
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs
from mm_lens.model.running.logits import read_log_probs
from mm_lens.model.streams import resolve_layers

FORMAT = "mm_lens tuned lens 1"


@dataclass(frozen=True, eq=False)
class TunedLens:
    """A fitted lens of one group of tokens.

    Attributes:
        layers: states that it was fitted to.
        where: the group.
        weights: `A` of each layer.
        biases: `b` of each layer.
        table: on held-out pictures, for each layer: kl and kl_logit (the logit lens's), gain
            (kl_logit less kl, with low and high over pictures), n_pictures, n_tokens, n_fitted.
    """

    layers: tuple[int, ...]
    where: str
    weights: Float32[Tensor, "layer d d"] = field(repr=False)
    biases: Float32[Tensor, "layer d"] = field(repr=False)
    table: pd.DataFrame = field(repr=False)

    @property
    def d_model(self) -> int:
        """Width of the states."""
        return self.biases.shape[1]

    def translate(self, states: Float[Tensor, "n d"], layer: int) -> Float[Tensor, "n d"]:
        """States of a layer as the lens reads them.

        Raises:
            InputError: it was not fitted to this layer.
        """
        if layer not in self.layers:
            raise InputError(
                f"The lens has no state {layer}: it was fitted to "
                f"{', '.join(map(str, self.layers))}."
            )
        k = self.layers.index(layer)
        weight, bias = (x[k].to(states.device, states.dtype) for x in (self.weights, self.biases))
        return states + states @ weight.T + bias

    def save(self, path: str | Path) -> None:
        """Write it into a safetensors file, the table with it."""
        told = {
            "format": FORMAT,
            "layers": json.dumps(self.layers),
            "where": self.where,
            "table": json.dumps(self.table.to_dict("split")),
        }
        tensors = {"weights": self.weights.contiguous(), "biases": self.biases.contiguous()}
        save_file(tensors, Path(path), metadata=told)

    @classmethod
    def load(cls, path: str | Path) -> TunedLens:
        """Read what `save` wrote.

        Raises:
            DataError: the file is not there, or none of these.
        """
        with open_stored(path, "tuned lens", FORMAT) as file:
            told = file.metadata()
            table = pd.DataFrame(**json.loads(told["table"]))
            weights, biases = (file.get_tensor(name) for name in ("weights", "biases"))
            return cls(tuple(json.loads(told["layers"])), told["where"], weights, biases, table)


def fit_tuned_lens(
    model: VisionLanguageBridge,
    samples: Inputs | Iterable[Inputs],
    where: str = "visual",
    *,
    layers: Sequence[int] | None = None,
    held_out: float = 0.25,
    most: int | None = 256,
    steps: int = 250,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    penalty: float = 1e-3,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> TunedLens:
    """Fit a tuned lens to a group's tokens, and score it on pictures that it did not see.

    ```python
    lens = fit_tuned_lens(model, batches, "visual")
    lens.table                                       # nearer to the end than the logit lens?
    visual_logit_lens(model, inputs, lens=lens).words()
    ```

    Args:
        model: in evaluation mode; its weights are not changed.
        samples: what it is run on; several pictures.
        where: the group: "visual", "text", "last", or any other.
        layers: states, negative ones from the end; None takes all but the last.
        held_out: share of the pictures that it is scored on.
        most: tokens of each row, drawn at random; None takes all.
        steps: of Adam, the rate falling to zero.
        batch_size: tokens of each step.
        learning_rate: of the first step.
        penalty: of the squared entries of `A`, in the loss.
        confidence: of the intervals.
        seed: of split and draws.
        progress: show a progress bar on stderr.

    Raises:
        InputError: fewer than two pictures; no token; the last state is asked for.

    Warns:
        MMLensWarning: at some layer it is farther from the end than the logit lens.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        require_whole(name, value, 1)
    require_number("held_out", held_out, 0, 1)
    require_number("learning_rate", learning_rate, 0)
    require_number("penalty", penalty, 0)
    n_states = model.cfg.n_layers + 1
    numbers = resolve_layers(range(n_states - 1) if layers is None else layers, n_states)
    if n_states - 1 in numbers:
        raise InputError("The last state is read as it is: leave it out of layers=.")
    found = gather(model, samples, where, [*sorted(numbers), n_states - 1], most=most, seed=seed)
    if found.n_pictures < 2:
        raise InputError(
            "A lens is scored on pictures that it was not fitted to: give samples of two pictures "
            "or more."
        )
    order = torch.randperm(found.n_pictures, generator=derive_generator(seed, "held out"))
    n_out = min(max(1, round(held_out * len(order))), len(order) - 1)
    out = torch.zeros(len(order), dtype=torch.bool)
    out[order[:n_out]] = True
    train, test = found.of_pictures(~out), found.of_pictures(out)
    weights, biases = [], []
    for layer in tqdm(numbers, desc="layers", disable=not progress):
        fitted = _fit(
            model, train, layer, steps, batch_size, learning_rate, penalty, derive_generator(seed)
        )
        weights.append(fitted[0])
        biases.append(fitted[1])
    lens = TunedLens(
        numbers, where, torch.stack(weights), torch.stack(biases), table=pd.DataFrame()
    )
    rows = _score(model, lens, test, len(train.picture), confidence, seed)
    lens = TunedLens(numbers, where, lens.weights, lens.biases, pd.DataFrame(rows))
    worse = lens.table[lens.table["gain"] <= 0]["layer"].tolist()
    if worse:
        warnings.warn(
            f"On held-out pictures the tuned lens is no nearer to the end than the logit lens at "
            f"state {worse[0]}: {len(train.picture)} tokens of {int((~out).sum())} pictures are "
            "too few, or penalty= too small. Fit it to more pictures.",
            MMLensWarning,
            stacklevel=2,
        )
    return lens


def _fit(
    model: VisionLanguageBridge,
    train: Gathered,
    layer: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    penalty: float,
    generator: torch.Generator,
) -> tuple[Float32[Tensor, "d d"], Float32[Tensor, " d"]]:
    """`A` and `b` of one layer."""
    x, end = train.states[layer], train.states[model.cfg.n_layers]
    n, d = x.shape
    device = model.W_U.device
    weight = torch.zeros(d, d, dtype=x.dtype, device=device, requires_grad=True)
    bias = torch.zeros(d, dtype=x.dtype, device=device, requires_grad=True)
    adam = torch.optim.Adam([weight, bias], lr=learning_rate)
    for step in range(steps):
        chosen = torch.randperm(n, generator=generator)[:batch_size]
        states = x[chosen].to(device)
        with torch.no_grad():
            wanted = read_log_probs(model, end[chosen])
        with torch.enable_grad():
            said = read_log_probs(model, states + states @ weight.T + bias, grad=True)
            loss = (wanted.exp() * (wanted - said)).sum(-1).mean() + penalty * weight.square().sum()
            gradients = torch.autograd.grad(loss, [weight, bias])
        weight.grad, bias.grad = gradients
        for group in adam.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        adam.step()
    return weight.detach().float().cpu(), bias.detach().float().cpu()


def _score(
    model: VisionLanguageBridge,
    lens: TunedLens,
    test: Gathered,
    n_fitted: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Any]]:
    """How near to the end the lens and the logit lens are, on pictures that it did not see."""
    tuned, plain = (compare_to_end(model, test, lens.layers, x, 64) for x in (lens, None))
    rows = []
    for layer in lens.layers:
        kl, kl_logit = (
            mean_of_pictures(x[layer]["kl"], test.picture, seed=seed)[0] for x in (tuned, plain)
        )
        gain, low, high = mean_of_pictures(
            plain[layer]["kl"] - tuned[layer]["kl"],
            test.picture,
            confidence=confidence,
            seed=seed,
        )
        rows.append(
            {
                "layer": layer,
                "kl": kl,
                "kl_logit": kl_logit,
                "gain": gain,
                "low": low,
                "high": high,
                "n_pictures": len(test.picture.unique()),
                "n_tokens": len(test.picture),
                "n_fitted": n_fitted,
            }
        )
    return rows
