"""Forward passes whose activations are differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mm_lens.errors import InputError
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.parts.freezing import frozen
from mm_lens.model.running.logit_metrics import LogitMetric
from mm_lens.model.streams import resolve_layers


def evaluate_rows(metric: LogitMetric, logits: Tensor, rows: int) -> Float[Tensor, " batch"]:
    """A metric for each row, without its graph, in float64 on the CPU.

    Raises:
        InputError: it has another shape.
    """
    value = metric(logits)
    if not isinstance(value, Tensor) or value.shape != (rows,):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"The metric returned {shape}; it must return a tensor of one value for each of the "
            f"{rows} row(s). See mm_lens.answers."
        )
    return value.detach().double().cpu()


def evaluate(metric: LogitMetric, logits: Tensor, rows: int) -> Float[Tensor, " batch"]:
    """A metric for each row, with its graph.

    Raises:
        InputError: it has no gradient, or another shape.
    """
    value = metric(logits)
    if not isinstance(value, Tensor) or value.shape != (rows,):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"The metric returned {shape}; to be attributed it must return a tensor of one value "
            f"for each of the {rows} row(s). See mm_lens.answers."
        )
    if not value.requires_grad:
        raise InputError(
            "The metric has no gradient: it counts (as an accuracy does) or was detached. "
            "Attribute a difference of logits or a probability: Answers(…).logit_diff."
        )
    return value


class Differentiated:
    """Runs of `inputs` with the stream that enters a block changed, and the metric's gradient."""

    def __init__(
        self, model: VisionLanguageBridge, inputs: Inputs, metric: LogitMetric, layer: int
    ) -> None:
        """Check the arguments.

        Args:
            model: in evaluation mode.
            inputs: what `model.prepare` returned.
            metric: from logits to one number for each row.
            layer: block whose input is differentiated, negative ones from the end.

        Raises:
            InputError: there is no such block; the model is in training mode.
        """
        check_inputs(model, inputs)
        if model.training:
            raise InputError("The model is in training mode; call model.eval() first.")
        self.model, self.inputs, self.metric = model, inputs, metric
        (self.layer,) = resolve_layers([layer], model.cfg.n_layers)
        self.name = f"blocks.{self.layer}.hook_resid_pre"

    def run(
        self, change: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One run.

        Args:
            change: what enters the block, from what would enter it.

        Returns:
            What would enter the block, the gradient of the metric where it entered, and the metric.
        """
        held: list[Tensor] = []

        def hook(tensor: Tensor, hook: Any) -> Tensor:
            own = tensor.detach()
            leaf = (own if change is None else change(own)).clone().requires_grad_(True)
            held.extend([own, leaf])
            return leaf

        with frozen(self.model):
            logits = self.model.run_with_hooks(self.inputs, fwd_hooks=[(self.name, hook)])
            value = evaluate(self.metric, logits, len(self.inputs.input_ids))
            (gradient,) = torch.autograd.grad(value.sum(), held[1])
        return held[0], gradient, value.detach()


def differentiate_points(
    model: VisionLanguageBridge,
    inputs: Inputs,
    metric: LogitMetric,
    points: Sequence[str],
    enter: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Tensor]:
    """Activations at hook points, the metric's gradient there, and the metric, from one run.

    Args:
        model: in evaluation mode.
        inputs: what it is run on.
        metric: from logits to one number for each row.
        points: names of hook points of the blocks.
        enter: what enters block 0, from what would enter it.
    """
    held: dict[str, Tensor] = {}

    def start(tensor: Tensor, hook: Any) -> Tensor:
        own = tensor.detach()
        return (own if enter is None else enter(own)).clone().requires_grad_(True)

    def keep(tensor: Tensor, hook: Any, name: str) -> Tensor:
        # A view of its own is on the path to the output, also where the hook point reshapes.
        held[name] = tensor.view_as(tensor)
        return held[name]

    hooks: list[Any] = [("blocks.0.hook_resid_pre", start)]
    hooks += [(name, partial(keep, name=name)) for name in points]
    with frozen(model):
        logits = model.run_with_hooks(inputs, fwd_hooks=hooks)
        value = evaluate(metric, logits, len(inputs.input_ids))
        found = torch.autograd.grad(
            value.sum(), [held[name] for name in points], allow_unused=True, materialize_grads=True
        )
    activations = {name: held[name].detach() for name in points}
    return activations, dict(zip(points, found, strict=True)), value.detach()
