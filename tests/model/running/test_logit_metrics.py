"""The user's metrics on logits: their values as they are, and clear refusals of other shapes."""

from __future__ import annotations

import pytest
import torch

from mm_lens import InputError
from mm_lens.model.running.logit_metrics import evaluate_metrics, name_metrics

LOGITS = torch.arange(24.0).reshape(2, 3, 4)


def first(logits):
    return logits[:, -1, 0]


def test_metrics_have_names():
    assert name_metrics(first) == {"metric": first}
    assert name_metrics({"a": first}) == {"a": first}
    with pytest.raises(InputError, match="no metric"):
        name_metrics({})


def test_values_are_those_of_the_metrics():
    both = {"a": first, "b": lambda logits: logits.double().sum((1, 2))}
    found = evaluate_metrics(both, LOGITS.clone().requires_grad_(), 2)
    assert found.tolist() == [[8.0, 20.0], [66.0, 210.0]]
    assert not found.requires_grad
    scalars = {"a": lambda logits: logits.sum(), "b": lambda logits: float(logits[0, 0, 1])}
    assert evaluate_metrics(scalars, LOGITS, 2, scalars=True).tolist() == [276.0, 1.0]


def test_other_shapes_are_refused():
    for metric, scalars, complaint in (
        (lambda logits: logits.sum(), False, r"the shape \(\); it must return one value"),
        (lambda logits: logits[:, 0], True, "must return a scalar, or one value for each of the 2"),
        (lambda logits: logits[0, :, 0], True, r"'a' returned the shape \(3,\)"),
    ):
        with pytest.raises(InputError, match=complaint):
            evaluate_metrics({"a": metric}, LOGITS, 2, scalars=scalars)
    mixed = {"a": first, "b": lambda logits: logits.sum()}
    with pytest.raises(InputError, match="Some metrics return a scalar"):
        evaluate_metrics(mixed, LOGITS, 2, scalars=True)
