"""The file that keeps a sweep: resumed after Ctrl-C, refused for whatever is not the same."""

from __future__ import annotations

import pytest
import torch
from causal_cases import BATCH, OTHER
from conftest import load_tiny
from native_runs import metric

import mm_lens
from mm_lens import DataError, InputError
from mm_lens.causal import patching
from mm_lens.causal.answers import Answers
from mm_lens.causal.knockout import knockout_table
from mm_lens.causal.patching import Box
from mm_lens.causal.sweep import fingerprint, probe_metrics

pytestmark = pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")
IDS = [60, 61, 62, 63]


@pytest.fixture(scope="module")
def sweep(model):
    """A sweep of one layer of the corrupted inputs by everything that may differ."""
    corrupted, clean = (model.prepare(*x) for x in (BATCH, OTHER))
    _, cache = model.run_with_cache(clean, names_filter=mm_lens.names("resid_pre"))

    def run(patching_metric=metric, axis="modality", layers=(1,), inputs=corrupted, **options):
        return patching.get_act_patch_resid_pre(
            model,
            inputs,
            cache,
            patching_metric,
            axis=axis,
            layers=layers,
            progress=False,
            **options,
        )

    return run


@pytest.fixture(scope="module")
def answers(model):
    inputs = model.prepare(*BATCH)

    def make(right):
        return Answers(model, inputs, list("abcd"), right=right, tokens=IDS)

    return make


def test_interrupted_and_resumed(model, sweep, tmp_path):
    """After Ctrl-C in the middle nothing that is done is done again."""
    options = {"layers": None, "batch_size": 2, "save": tmp_path / "sweep"}
    passes = []

    def count(tensor, hook):
        passes.append(1)
        # The baseline, twice, to see that the hooks draw nothing; two chunks, one for each layer.
        if len(passes) == 4:
            raise KeyboardInterrupt

    options["corrupt_hooks"] = [("blocks.2.hook_resid_post", count)]
    with pytest.raises(KeyboardInterrupt):
        sweep(**options)
    passes[:] = [1] * 4
    got = sweep(**options)
    assert len(passes) == 4 + 2 + 2
    assert torch.equal(got.values, sweep(layers=None, batch_size=2).values)
    with pytest.raises(DataError, match="another sweep"):
        sweep(**options, inputs=model.prepare(*OTHER))


def masks(model):
    """Two masks of positions that differ in the middle, where `repr` leaves out."""
    first = model.prepare(*BATCH).layout.mask("visual")
    second = first.clone()
    second[:, 30:50] ^= True
    return first, second


def test_another_sweep_is_refused(model, sweep, answers, tmp_path):
    """Whatever the values depend on is told apart, even where the baseline is the same."""
    a, b = (answers(right) for right in "ab")
    logits = model(model.prepare(*BATCH))
    # Accuracy of two options that the model chooses in no row is 0 for both.
    never = [x for k, x in enumerate("abcd") if not (a.logits(logits).argmax(1) == k).any()]
    few, many = (answers(right).accuracy for right in never[:2])
    assert torch.equal(few(logits), many(logits))
    one, two = masks(model)
    pairs = {
        "metric": ({"patching_metric": few}, {"patching_metric": many}),
        "answers": ({"patching_metric": a.metrics}, {"patching_metric": b.metrics}),
        "name": ({"patching_metric": {"x": metric}}, {"patching_metric": {"y": metric}}),
        "mask": ({"axis": {"m": one}}, {"axis": {"m": two}}),
        "clean": tuple(
            {"axis": {"box": Box(0, 0, 20, 20, clean=(x, 0, x + 20, 20))}} for x in (0, 30)
        ),
        "resample": ({"resample": "nearest"}, {"resample": "mean"}),
    }
    for name, (first, second) in pairs.items():
        save = tmp_path / name
        want = sweep(**first, save=save)
        assert torch.equal(sweep(**first, save=save).values, want.values)
        with pytest.raises(DataError, match="another sweep"):
            sweep(**second, save=save)


def test_another_table_is_refused(answers, tmp_path):
    """Metrics of any sample, masks and any weight: the projector's, or heads in another order."""
    fresh = load_tiny(check=False)
    inputs = fresh.prepare(*BATCH)
    one, two = masks(fresh)

    def table(metrics, mask=one, save=tmp_path / "table"):
        edges = {"edge": (mask, "last")}
        samples = [(inputs, answers("a").metrics), (inputs, metrics)]
        return knockout_table(
            fresh, samples, edges, window=3, save=save, progress=False, n_resamples=10
        )

    want = table(answers("a").metrics)
    assert table(answers("a").metrics).equals(want)
    assert table(answers("a").metrics, save=None).equals(want)
    with pytest.raises(DataError, match="another sweep"):
        table(answers("b").metrics)
    with pytest.raises(DataError, match="another sweep"):
        table(answers("a").metrics, mask=two)
    weights = dict(fresh.original_model.named_parameters())
    projector = next(w for name, w in weights.items() if "projector" in name)
    out = next(w for name, w in weights.items() if "lm_head" in name)
    for weight, other in ((projector, projector * 0.5), (out, out[torch.arange(len(out)).roll(1)])):
        before = weight.detach().clone()
        weight.data.copy_(other.detach())
        with pytest.raises(DataError, match="another sweep"):
            table(answers("a").metrics)
        weight.data.copy_(before)
    assert table(answers("a").metrics).equals(want)


def test_a_table_wants_metrics_of_one_value_per_row(model):
    inputs = model.prepare(*BATCH)
    for bad, complaint in (
        ({}, "no metric"),
        (lambda logits: logits.sum(), r"the shape \(\); it must return one value"),
        ({"a": lambda logits: logits[0, 0]}, "'a' returned the shape"),
    ):
        with pytest.raises(InputError, match=complaint):
            knockout_table(model, [(inputs, bad)], [("visual", "last")], progress=False)


def test_what_repr_leaves_out_is_told():
    first = torch.zeros(2000)
    second = first.clone()
    second[1000] = 1
    assert repr(first) == repr(second)
    for wrap in (lambda x: x, lambda x: [("a", x)], lambda x: {"m": x.numpy()}):
        assert fingerprint(wrap(first)) == fingerprint(wrap(first.clone()))
        assert fingerprint(wrap(first)) != fingerprint(wrap(second))


def test_metrics_are_probed_with_logits_they_have_not_seen():
    """Equal for equal metrics, other for any other token or position; nothing where one fails."""
    logits = torch.zeros(2, 7, 50)

    def describe_group(metric):
        return probe_metrics({"m": metric}, logits)

    base = describe_group(lambda x: x[:, -1, 3])
    assert base == describe_group(lambda x: x[:, 6, 3])
    for other in (
        lambda x: x[:, -1, 4],
        lambda x: x[:, -2, 3],
        lambda x: x[:, -1, 3] * 2,
        lambda x: x[:, -1, 3].mean(),
        lambda x: x.flip(0)[:, -1, 3],
    ):
        assert describe_group(other) != base
    few = describe_group(lambda x: (x[:, -1, :8].argmax(-1) == 2).float())
    assert few != describe_group(lambda x: (x[:, -1, :8].argmax(-1) == 5).float())

    def fails(x):
        raise ValueError("only for its own logits")

    assert (
        describe_group(fails) == describe_group(lambda x: x[:, 99]) != base
    )  # the same name, no more is known


@pytest.mark.parametrize("content", [b"hello", b""])
def test_damaged_file(sweep, tmp_path, content):
    """The remedy is one that there is here."""
    save = tmp_path / "sweep"
    save.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged.*Delete it") as caught:
        sweep(save=save)
    assert "restart" not in str(caught.value)
