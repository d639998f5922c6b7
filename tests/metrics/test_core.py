"""What holds for every metric: presets, seeds, shared work, symmetries, degenerate inputs."""

import ast
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_profiles import planted
from made_tokens import normal, rotation, tokens_of
from torch import Tensor

import mm_lens.metrics.dimension as dimension_module
from mm_lens.drawing import curves as plots
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.metrics import (
    METRICS,
    PRESETS,
    Estimate,
    Kind,
    Tokens,
    UndefinedError,
    evaluate,
    preset,
)


def pair(n: int = 240, d: int = 6, samples: int = 24) -> tuple[Tokens, Tokens]:
    x = normal(0, n, d) * torch.linspace(0.5, 2, d).double() + 1
    y = x + torch.tanh(x) @ normal(1, d, d) + 0.2 * normal(2, n, d)
    return tokens_of(x, samples), tokens_of(y, samples)


# What is of states: others are of two modalities, or of readings.
OF_STATES = [name for name, metric in METRICS.items() if metric.given == "states"]


def everything(a: Tokens, b: Tokens | None, seed: int = 0) -> dict[str, Estimate]:
    return evaluate(a, b, OF_STATES, seed)


def test_every_metric_explains_itself_and_each_family_has_one_headline_per_preset():
    for metric in METRICS.values():
        assert metric.label
        assert metric.description
        assert metric.headline <= metric.presets
        assert metric.presets <= {*PRESETS}
        assert metric.arity in (1, 2)
    for name, least in zip(PRESETS, (3, 3, 3, 1), strict=True):
        heads = [m.kind for m in preset(name) if name in m.headline]
        assert len(heads) == len({*heads}) >= least


def test_a_family_says_whether_it_needs_equal_numbers():
    assert {metric.kind for metric in METRICS.values() if metric.equal_n} == {"dimension"}


def test_the_headline_of_a_new_family_reaches_the_pictures(monkeypatch):
    monkeypatch.setitem(METRICS, "newest", None)
    del METRICS["newest"]
    kind = Kind("new", arity=1, prepare=lambda tokens, seed: tokens)
    kind.metric("newest", label="New", presets=("honest",), headline=("honest",))(str)
    known = ["linearity_heldout_without_massive", "anisotropy_without_massive"]
    profile = planted(metrics=("newest", *known[::-1]))
    assert plots.headline(profile) == [*known, "newest"]


def test_honest_is_the_default_and_presets_share_a_pass():
    a, b = pair()
    assert list(evaluate(a, b)) == [m.name for m in preset("honest")]
    both = evaluate(a, b, preset("paper") + preset("honest"))
    assert set(both) == {name for name in OF_STATES if METRICS[name].presets}
    assert both["linearity_paper"] == METRICS["linearity_paper"].compute(a, b)


def test_the_last_hook_has_no_linearity():
    a, _ = pair()
    assert {METRICS[name].arity for name in evaluate(a)} == {1}
    with pytest.raises(InputError, match="give tokens_next"):
        METRICS["linearity_paper"].compute(a)


def test_wrong_names_and_wrong_pairs_are_refused():
    a, b = pair()
    with pytest.raises(InputError, match="dimension_mle"):
        evaluate(a, b, ["dimension"])
    with pytest.raises(InputError, match="paper, honest"):
        preset("best")
    with pytest.raises(InputError, match="same tokens"):
        evaluate(a, b.take(torch.arange(len(b)).flip(0)))


def test_one_neighbour_search_serves_all_estimators(monkeypatch):
    alone, together = [], []
    search, search_together = dimension_module.nearest, dimension_module.nearest_of_first

    def spy(x: Tensor, k: int = 2, rows: Tensor | None = None) -> object:
        alone.append((len(x), k))
        return search(x, k, rows)

    def spy_together(x: Tensor, searches: list) -> object:
        together.append([(s.rows, s.among, s.k) for s in searches])
        return search_together(x, searches)

    monkeypatch.setattr(dimension_module, "nearest", spy)
    monkeypatch.setattr(dimension_module, "nearest_of_first", spy_together)
    everything(*pair())
    # data, half, quarter, and one with more neighbours
    assert together == [[(240, 240, 2), (120, 120, 2), (60, 60, 2), (240, 240, 16)]]
    assert alone == [(240, 2)]  # the null


def test_the_same_seed_gives_the_same_numbers():
    a, b = pair()
    assert str(everything(a, b, 5)) == str(everything(a, b, 5))
    other = everything(a, b, 6)
    assert other["dimension_mle_half"] != everything(a, b, 5)["dimension_mle_half"]
    assert other["linearity_paper"].value == pytest.approx(
        everything(a, b, 5)["linearity_paper"].value, rel=1e-12
    )


def close(found: dict[str, Estimate], expected: dict[str, Estimate], names: list[str]) -> None:
    for name in names:
        for part in ("value", "low", "high"):
            assert getattr(found[name], part) == pytest.approx(
                getattr(expected[name], part), rel=1e-6, abs=1e-9, nan_ok=True
            ), (name, part)


# What holds for every metric but these: a new one for which it does not is named here.
EXCEPTIONS: dict[str, tuple[str, ...]] = {
    "rotation": (),
    "translation": (  # angles and norms about zero
        "mean_cosine",
        "mean_cosine_without_massive",
        "anisotropy_trimmed",
        "massive_tokens",
    ),
    "needs spread": ("massive_tokens",),
}


def all_but_exceptions(what: str) -> list[str]:
    return [name for name in OF_STATES if name not in EXCEPTIONS[what]]


# The hash that picks half of the tokens knows samples and positions, not values: all stay.


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_order_of_tokens_does_not_matter(seed):
    a, b = pair()
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    close(everything(a.take(order), b.take(order)), everything(a, b), OF_STATES)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 0.1, 1e5]))
def test_rotation_and_scale_do_not_matter(seed, scale):
    a, b = pair()
    turn = rotation(seed, a.d) * scale
    turned = (Tokens(t.x @ turn, t.sample, t.position, t.token_id) for t in (a, b))
    close(everything(*turned), everything(a, b), all_but_exceptions("rotation"))


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_translation_does_not_matter_to_centred_metrics(seed):
    a, b = pair()
    shift = 50 * normal(seed, a.d)
    moved = (Tokens(t.x + shift, t.sample, t.position, t.token_id) for t in (a, b))
    close(everything(*moved), everything(a, b), all_but_exceptions("translation"))


def test_half_precision_is_computed_on_in_float64():
    a, b = pair()
    for dtype in (torch.float16, torch.bfloat16):
        low = [Tokens(t.x.to(dtype), t.sample, t.position, t.token_id) for t in (a, b)]
        up = [Tokens(t.x.double(), t.sample, t.position, t.token_id) for t in low]
        found, expected = everything(*low), everything(*up)
        assert {k: e.value for k, e in found.items()} == {k: e.value for k, e in expected.items()}


def test_autocast_changes_nothing():
    a, b = pair()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = everything(a, b)
    assert str(inside) == str(everything(a, b))


def test_nothing_leaves_the_device():
    """Read from the source, since no GPU is needed to see it: no copies to the CPU, and every new
    tensor on a device that is given, or sent there at once."""
    factories = {"arange", "empty", "eye", "full", "ones", "rand", "randn", "tensor", "zeros"}
    seen = 0
    for path in Path(dimension_module.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        sent = {  # torch.randn(…, generator=…).to(device)
            id(call.func.value)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "to"
        }
        # Module constants are sent where they are used.
        functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
        for call in (c for f in functions for c in ast.walk(f) if isinstance(c, ast.Call)):
            name = getattr(call.func, "attr", "")
            assert name not in {"cpu", "numpy", "cuda"}, f"{path.name}:{call.lineno}"
            if name in factories and getattr(call.func.value, "id", "") == "torch":
                seen += 1
                placed = any(k.arg == "device" for k in call.keywords) or id(call) in sent
                assert placed, f"{path.name}:{call.lineno}: {name} without a device"
    assert seen > 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_gpu_gives_the_same_numbers_with_tf32_on_or_off(precision):
    a, b = pair()
    torch.set_float32_matmul_precision(precision)
    try:
        found = everything(a.to("cuda"), b.to("cuda"))
    finally:
        torch.set_float32_matmul_precision("highest")
    close(found, everything(a, b), OF_STATES)


def test_rows_that_are_not_finite_are_dropped_and_counted():
    a, b = pair()
    keep = torch.ones(len(a), dtype=torch.bool)
    keep[[3, 50]] = False
    a.x[3, 0], b.x[50, 1] = torch.nan, torch.inf
    found = everything(a, b)
    expected = everything(a.take(keep), b.take(keep))
    for name in found:
        if METRICS[name].arity == 2:
            assert "2 of 240 tokens not finite" in found[name].warning
            assert found[name].value == expected[name].value
        else:
            assert "1 of 240 tokens not finite" in found[name].warning
            assert found[name].n_tokens <= 239


def degenerate() -> dict[str, Tensor]:
    few = {f"{n} tokens": normal(0, n, 4) for n in (0, 1, 2)}
    return few | {
        "zeros": torch.zeros(50, 4).double(),
        "one constant": torch.full((50, 4), 0.1).double(),
        "one row repeated": normal(0, 1, 4).repeat(50, 1),
        "one row in bfloat16": normal(0, 1, 4).repeat(50, 1).bfloat16(),
        "nothing finite": torch.full((50, 4), torch.nan).double(),
        "squares overflow": normal(0, 50, 4) * 1e200,
        "squares underflow": normal(0, 50, 4) * 1e-200,
    }


@pytest.mark.parametrize("name", degenerate())
def test_degenerate_inputs_give_nan_with_a_reason(name):
    tokens = tokens_of(degenerate()[name])
    found = everything(tokens, tokens)
    for metric in EXCEPTIONS["needs spread"]:
        assert math.isfinite(found[metric].value) or found[metric].warning
    for metric in all_but_exceptions("needs spread"):
        estimate = found[metric]
        if metric.startswith("mean_cosine") and ("row" in name or "constant" in name):
            assert estimate.value == pytest.approx(1)  # not centred: one direction
            continue
        if "squares" in name and math.isfinite(estimate.value):
            continue  # scaled before squaring, so it is determined after all
        assert math.isnan(estimate.value), metric
        assert math.isnan(estimate.low), metric
        assert estimate.warning, metric
        assert estimate.n_tokens <= len(tokens)


@pytest.mark.parametrize("x", [normal(0, 3, 4), normal(0, 4, 1), normal(0, 30, 1), normal(0, 5, 9)])
def test_small_and_narrow_inputs_give_a_number_or_a_reason(x):
    y = x + 0.1 * normal(9, *x.shape)
    for estimate in everything(tokens_of(x), tokens_of(y)).values():
        assert math.isfinite(estimate.value) or estimate.warning


def failing(monkeypatch, error: Exception, in_prepare: bool) -> dict[str, Estimate]:
    """Two metrics of a family that raises, and one of another family."""
    for name in ("first", "second"):
        monkeypatch.setitem(METRICS, name, None)

    def fail(*_: object) -> Estimate:
        raise error

    kind = Kind("failing", arity=1, prepare=fail if in_prepare else lambda *given: given)
    for name in ("first", "second"):
        METRICS.pop(name)
        kind.metric(name, label=name, presets=())(fail)
    return evaluate(pair()[0], None, ["first", "second", "anisotropy"])


@pytest.mark.parametrize("in_prepare", [True, False])
def test_one_failing_metric_does_not_end_a_profile(monkeypatch, in_prepare):
    found = failing(monkeypatch, UndefinedError("one dimension has no neighbour"), in_prepare)
    for name in ("first", "second"):
        assert math.isnan(found[name].value)
        assert found[name].warning == "one dimension has no neighbour"
    assert found["anisotropy"].value == METRICS["anisotropy"].compute(pair()[0]).value
    for error in (ValueError("of no use"), IndexError("too far"), KeyError("gone")):
        with pytest.warns(MMLensWarning, match=f"fail failed: {type(error).__name__}"):
            found = failing(monkeypatch, error, in_prepare)
        assert math.isnan(found["first"].value)
        assert f"{type(error).__name__}: {error}" in found["second"].warning
        assert math.isfinite(found["anisotropy"].value)


@pytest.mark.parametrize("in_prepare", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        InputError("give it something else"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
    ],
)
def test_wrong_use_and_a_lack_of_memory_are_raised(monkeypatch, error, in_prepare):
    with pytest.raises(type(error)):
        failing(monkeypatch, error, in_prepare)


def test_two_distinct_states_have_no_dimension():
    x = normal(0, 2, 4).repeat(30, 1)
    estimate = METRICS["dimension_mle"].compute(tokens_of(x))
    assert estimate.warning == "fewer than 3 distinct states (2 among 60 tokens)"


def test_a_regular_grid_has_no_ratios():
    x = torch.cartesian_prod(*[torch.arange(5.0).double()] * 3)
    found = evaluate(tokens_of(x), None, ["dimension_mle", "dimension_paper"])
    for estimate in found.values():
        assert math.isnan(estimate.value)
        assert estimate.warning
