"""Tables of replaced blocks, against the native model under plain hooks."""

from __future__ import annotations

import pytest
import torch
from made_questions import OPTIONS, ask, run_replaced
from native_runs import run_native
from scipy.special import log_softmax, rel_entr

from mm_lens import InputError
from mm_lens.replacing import fit_maps, replacement_table

pytestmark = [pytest.mark.every_family, pytest.mark.filterwarnings("ignore:The maps are fitted")]


def outcomes(logits, plain, answers):
    """Accuracy, log-probability and divergence of one row, by scipy."""
    told, before = (log_softmax(x[0, -1].double().numpy()) for x in (logits, plain))
    options = [told[int(token)] for token in answers.tokens]
    right = int(answers.right[0])
    kl = rel_entr(torch.tensor(before).exp().numpy(), torch.tensor(told).exp().numpy()).sum()
    return max(range(len(OPTIONS)), key=options.__getitem__) == right, options[right], kl


def test_a_table_equals_a_loop_of_native_hooks(model, native, samples, others):
    maps = fit_maps(model, others)
    table = replacement_table(
        model, samples, maps, how=["identity", "block"], runs=[1, 2], progress=False
    ).set_index(["how", "first_layer", "last_layer", "metric"])
    table = table.sort_index()
    for first, last in ((1, 1), (0, 1)):
        found = []
        for inputs, answers in samples:
            edits = {layer: lambda x, y: x for layer in range(first, last + 1)}
            plain = run_native(native, inputs)
            found.append(outcomes(run_replaced(native, inputs, edits), plain, answers))
        want = torch.tensor(found, dtype=torch.float64).mean(0)
        place = table.loc["identity", first, last]
        got = place.loc[["accuracy", "log_probability", "kl"], "value"].to_numpy()
        assert torch.tensor(got) == pytest.approx(want, abs=1e-4)
        assert place.loc["kl", "value"] > 1e-4
    assert table.loc["block", "effect"].abs().max() < 1e-5
    assert len(table) == 2 * (3 + 2) * 3
    linear = maps.table["linearity"]
    assert table.loc["block", 0, 1]["linearity"].iloc[0] == min(linear[:2])


def test_what_was_fitted_on_is_not_tried(model, samples, others):
    maps = fit_maps(model, [*others, samples[2][0]])
    with pytest.raises(InputError, match="The picture of sample 2"):
        replacement_table(model, samples, maps, progress=False)
    partial = fit_maps(model, others, layers=[0])
    for options, complaint in (
        ({"maps": partial}, "no map of block 1"),
        ({"runs": []}, "runs names"),
        ({"how": []}, "how is out of"),
    ):
        with pytest.raises(InputError, match=complaint):
            replacement_table(
                model, samples, **{"maps": fit_maps(model, others), **options}, progress=False
            )


def test_text_can_be_replaced(model, others):
    """The last position is text: replacing it by its mean leaves nothing of the question."""
    maps = fit_maps(model, others, "text")
    table = replacement_table(
        model, ask(model, range(4)), maps, how=["mean"], progress=False
    ).set_index(["first_layer", "metric"])
    assert table.loc[(2, "kl"), "value"] > 1e-3
