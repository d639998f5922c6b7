"""Attribution to the pixels, and Grad-CAM inside the vision tower.

The pixels are those that the model is given: resized, normalised, cut into tiles (or patches in
rows) by its processor, in the shapes that the inputs have. Gradients go through the vision tower
and the projector; at their grain, single pixels, they are noisy, and sums over patches say more.
The baseline is the mean pixel of each tensor, a plain grey; zero is what the processor makes of its
mean colour.

Grad-CAM on the tower: `max(0, w·x)` at each patch of each tile, `w` the mean of the gradient over
the tile's patches. Where every patch becomes one token its values stand at the tokens too, to be
drawn.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.arguments import require_number, require_whole
from mm_lens.attribution.gradients import COMPLETE
from mm_lens.attribution.result import Attribution
from mm_lens.attribution.running import evaluate
from mm_lens.errors import HookError, InputError, MMLensWarning
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.parts.freezing import frozen
from mm_lens.model.running.logit_metrics import LogitMetric

How: TypeAlias = Literal["gradient_input", "integrated", "smooth"]


@dataclass(frozen=True, eq=False)
class PixelAttribution:
    """A number for each entry of the pixels.

    Attributes:
        pixels: by the name of the tensor in the inputs, in its shape; on the CPU.
        metric: what is attributed, summed over rows.
        baseline: the same where all pixels are the baseline; None for methods that do not run it.
    """

    pixels: dict[str, Float[Tensor, "..."]] = field(repr=False)
    metric: float
    baseline: float | None = None

    @property
    def gap(self) -> float | None:
        """Sum of the values less what they should add up to."""
        if self.baseline is None:
            return None
        total = sum(float(x.double().sum()) for x in self.pixels.values())
        return total - (self.metric - self.baseline)


def pixel_attribution(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    how: How = "gradient_input",
    *,
    steps: int = 16,
    noise: float = 0.1,
    seed: int = 0,
) -> PixelAttribution:
    """Attribute a metric to the pixels that the model is given.

    Cost: one forward and backward pass through tower and language model; `steps` of them (and one
    more) for "integrated" and "smooth".

    Args:
        model: in evaluation mode.
        inputs: what `model.prepare` returned, with an image.
        metric: from logits [batch, pos, d_vocab] to one number for each row; see `mm_lens.answers`.
        how: gradient × (pixel less baseline); its integral on the line from the baseline; the same
            with the mean gradient under noise.
        steps: points of the line, or draws of noise.
        noise: standard deviation, as a share of that of the pixels.
        seed: of the noise.

    Raises:
        InputError: there are no pixels; no such method; the metric has no gradient.
    """
    run = _Pixels(model, inputs, metric)
    if how not in get_args(How):
        raise InputError(f"how is one of {get_args(How)}, not {how!r}.")
    require_whole("steps", steps, 1)
    require_number("noise", noise, 0)
    own = run.own
    start = {name: x.mean().expand_as(x) for name, x in own.items()}
    empty: float | None = None
    gradient, value = run.gradient(own)
    if how == "integrated":
        points, weights = np.polynomial.legendre.leggauss(steps)
        gradient = {name: torch.zeros_like(x) for name, x in own.items()}
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            here = {k: start[k] + float(point) * (x - start[k]) for k, x in own.items()}
            for k, found in run.gradient(here)[0].items():
                gradient[k] += float(weight) * found
        empty = run.gradient(start)[1]
    if how == "smooth":
        generator = derive_generator(seed, "pixels")
        gradient = {name: torch.zeros_like(x) for name, x in own.items()}
        for _ in range(steps):
            here = {
                k: x + noise * x.std() * torch.randn(x.shape, generator=generator).to(x)
                for k, x in own.items()
            }
            for k, found in run.gradient(here)[0].items():
                gradient[k] += found / steps
    values = {k: (gradient[k] * (x - start[k])).float().cpu() for k, x in own.items()}
    result = PixelAttribution(values, value, empty)
    if empty is not None and abs(result.gap or 0.0) > COMPLETE * max(abs(value - empty), 1e-6):
        warnings.warn(
            "Integrated gradients of the pixels do not add up: their sum misses the change of the "
            f"metric by {abs(result.gap or 0.0):.3g} of {abs(value - empty):.3g}. Take more steps.",
            MMLensWarning,
            stacklevel=2,
        )
    return result


def tower_grad_cam(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    *,
    layer: int = -2,
) -> tuple[Float[Tensor, "tile patch"], Attribution | None]:
    """Grad-CAM of what leaves a layer of the vision tower; one forward and one backward pass.

    Args:
        model: in evaluation mode.
        inputs: what `model.prepare` returned, with an image.
        metric: see `pixel_attribution`.
        layer: of the tower, negative ones from the end. Behind the layer whose states the model
            takes there is no gradient, and every value is 0.

    Returns:
        Values of all patches of all tiles, class tokens left out; and the same at the image tokens
        (newlines have none), or None where patches and tokens are not one to one.

    Raises:
        HookError: the tower has no such layer that a hook reaches.
        InputError: there are no pixels; the metric has no gradient.
    """
    run = _Pixels(model, inputs, metric)
    names = sorted(
        (name for name in model.hook_dict if name.startswith("vision_encoder.encoder_layers.")),
        key=lambda name: int(name.split(".")[2]),
    )
    outs = [name for name in names if name.count(".") == 3 and name.endswith(".hook_out")]
    if not -len(outs) <= layer < len(outs):
        raise HookError(
            f"The vision tower has no layer {layer} that a hook reaches: there are {len(outs)}, "
            "vision_encoder.encoder_layers.{i}.hook_out."
        )
    held: list[Tensor] = []

    def keep(tensor: Tensor, hook: Any) -> Tensor:
        held.append(tensor.view_as(tensor))
        return held[-1]

    _, value = run.gradient(run.own, [(outs[layer], keep)], held)
    states, gradient = held[0].detach(), held[1]
    if states.ndim == 2:  # patches of all images in one row
        states, gradient = states[None], gradient[None]
    has_class = math.isqrt(states.shape[1] - 1) ** 2 == states.shape[1] - 1
    states, gradient = states[:, int(has_class) :], gradient[:, int(has_class) :]
    weights = gradient.mean(1, keepdim=True)
    found = (weights * states).sum(-1).relu().float().cpu()
    return found, _at_tokens(inputs, found, value)


def _at_tokens(inputs: Inputs, found: Tensor, value: float) -> Attribution | None:
    """Values of patches at the tokens that they become."""
    layout = inputs.layout.to("cpu")
    side = math.isqrt(found.shape[1])
    placed = (layout.tile >= 0) & ~layout.newline
    tiles = [
        (row, image, tile)
        for row in range(layout.shape[0])
        for image in range(len(layout.image_sizes[row]))
        for tile in sorted({*layout.tile[row][placed[row] & (layout.image[row] == image)].tolist()})
    ]
    fits = int(layout.row[placed].max()) < side if bool(placed.any()) else False
    if side**2 != found.shape[1] or len(tiles) != len(found) or not fits:
        return None
    values = torch.full(layout.shape, torch.nan)
    for number, (row, image, tile) in enumerate(tiles):
        here = placed[row] & (layout.image[row] == image) & (layout.tile[row] == tile)
        at = layout.row[row][here].long() * side + layout.col[row][here].long()
        if int(here.sum()) * 4 < side**2:  # several patches to a token
            return None
        values[row, here] = found[number, at]
    metric = torch.full((layout.shape[0],), value if layout.shape[0] == 1 else torch.nan)
    return Attribution("Grad-CAM on the tower", values, layout, metric)


class _Pixels:
    """Runs of inputs with other pixels, and the metric's gradient there."""

    def __init__(self, model: VisionLanguageBridge, inputs: Inputs, metric: LogitMetric) -> None:
        check_inputs(model, inputs)
        if model.training:
            raise InputError("The model is in training mode; call model.eval() first.")
        given = model.family.pixels(inputs.tensors)
        self.own = {
            name: x.detach()
            for name, x in given.items()
            if isinstance(x, Tensor) and x.is_floating_point()
        }
        if not self.own:
            raise InputError("These inputs hold no pixels to attribute to: prepare an image.")
        self.model, self.inputs, self.metric = model, inputs, metric

    def gradient(
        self, pixels: dict[str, Tensor], hooks: Any = (), held: list[Tensor] | None = None
    ) -> tuple[dict[str, Tensor], float]:
        """Gradient at pixels, and the metric summed over rows; with `held` an activation that a
        hook has put there: its gradient is put behind it."""
        leaves = {name: x.detach().clone().requires_grad_(True) for name, x in pixels.items()}
        changed = replace(self.inputs, tensors={**self.inputs.tensors, **leaves})
        with frozen(self.model):
            logits = self.model.run_with_hooks(changed, fwd_hooks=list(hooks))
            value = evaluate(self.metric, logits, len(self.inputs.input_ids))
            wanted = [*leaves.values(), *(held or [])]
            found = torch.autograd.grad(
                value.sum(), wanted, allow_unused=True, materialize_grads=True
            )
        if held is not None:
            held.append(found[-1])
        return dict(zip(leaves, found, strict=False)), float(value.detach().sum())
