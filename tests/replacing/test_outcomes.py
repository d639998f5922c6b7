"""Outcomes of an answer, in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_questions import ask
from scipy.special import log_softmax, rel_entr, softmax

from mm_lens.replacing import Outcomes
from mm_lens.replacing.outcomes import watch


def test_outcomes_equal_scipy(model):
    ((_, answers),) = ask(model, [0])
    chance = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, *answers.shape, 113, generator=chance)
    found = Outcomes(answers, before[:, -1])
    told, first = after[0, -1].double().numpy(), before[0, -1].double().numpy()
    right = int(answers.tokens[answers.right[0]])
    assert float(found.log_probability(after)) == pytest.approx(log_softmax(told)[right], abs=1e-5)
    want = rel_entr(softmax(first), softmax(told)).sum()
    assert float(found.kl(after)) == pytest.approx(want, abs=1e-5)
    best = max(answers.tokens.tolist(), key=told.__getitem__)
    assert float(found.accuracy(after)) == float(best == right)
    at, alone = found.at_positions()
    assert alone.kl(after[:, at]) == pytest.approx(found.kl(after))
    # A word that was ruled out adds nothing.
    before[..., 7] = -np.inf
    assert float(Outcomes(answers, before[:, -1]).kl(after).isfinite())


def test_without_an_edit_nothing_is_apart(model):
    ((inputs, metrics),) = watch(model, ask(model, [1]))
    with torch.no_grad():
        logits = model(inputs)
    assert float(metrics["kl"](logits).abs()) < 1e-6
    own = [(inputs, lambda logits: logits[:, -1, 0])]
    assert watch(model, own) == own
