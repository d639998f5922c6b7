"""What a run takes is said beforehand, is what it takes, and keeps within a limit or is refused."""

from __future__ import annotations

import gc
import itertools
import weakref
from dataclasses import replace

import pytest
import torch
from made_data import make_data, quick
from made_hooks import ALL_KINDS, same_bytes

import mm_lens
from mm_lens import InputError
from mm_lens.metrics import METRICS, Tokens, evaluate
from mm_lens.profiling import memory, run
from mm_lens.profiling.collecting import counting


@pytest.mark.parametrize(
    ("text", "host", "gpu"),
    [
        ("24GB", 24 * 10**9, None),
        ("1.5GiB", 3 * 2**29, None),
        (" 24 GB , gpu=60GB", 24 * 10**9, 60 * 10**9),
        ("gpu=500kB", None, 500_000),
        (None, None, None),
    ],
)
def test_sizes_are_read(text, host, gpu):
    assert memory.read_limits(text) == memory.Limits(host, gpu)


@pytest.mark.parametrize("text", ["24", "24 gigabytes", "GB", "1GB,2GB", "cpu=1GB", 24, "", b"1GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match=r"as '24GB' \(host\) or '24GB,gpu=60GB'"):
        memory.read_limits(text)


def made_tokens(n, d, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator)
    x = (torch.randn(n, d, generator=generator) @ mixing).to(dtype)
    count = torch.arange(n)
    return Tokens(x, count // 40, count % 40, count % 97, count)


def live_peak(work):
    """Most bytes alive at a time by torch's own record of what it allocates and frees."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("paper", [True, False])
@pytest.mark.parametrize("kind", ["linearity", "anisotropy", "dimension"])
@pytest.mark.parametrize(
    ("n", "d", "dtype"), [(2500, 64, torch.float32), (1200, 160, torch.bfloat16)]
)
def test_metrics_take_what_is_told(kind, paper, n, d, dtype):
    chosen = [m for m in METRICS.values() if m.kind == kind and m.takes_all == paper]
    one = made_tokens(n, d, dtype, 0)
    other = made_tokens(n, d, dtype, 1) if chosen[0].arity == 2 else None
    taken = live_peak(lambda: evaluate(one, other, chosen))
    told = max(memory.peak(metric, n, d, d, dtype.itemsize) for metric in chosen)
    assert told == pytest.approx(taken, rel=0.05), "python benchmarks/metrics_memory.py"


def held_bytes(states):
    (part,) = states.tokens.parts
    return sum(
        x[: r.bottom.size].nbytes for r in part.reservoirs.values() for x in r.store.slots.values()
    )


@pytest.fixture
def counted(monkeypatch):
    """Small data sets are counted as well."""
    monkeypatch.setattr(counting, "FEW", 0)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("tokens", [60, 3000])
def test_states_are_counted_to_the_byte(model, monkeypatch, capsys, tokens):
    held, collect = [], run.collect

    def watch(*args, **options):
        assert "Beside the model" in capsys.readouterr().err, "said before the first forward pass"
        states = collect(*args, **options)
        held.append(held_bytes(states))
        return states

    monkeypatch.setattr(run, "collect", watch)
    p = quick(model, make_data(9), hooks=["states", "post"], tokens=tokens, progress=True)
    takes = p.provenance["memory"]["takes"]
    assert held == [takes["states"]]
    assert takes["host"] == takes["states"] + takes["metrics"] + memory.SPARE
    assert takes["disk"] == 0


@pytest.mark.usefixtures("counted")
def test_files_are_counted_to_the_byte(model, tmp_path):
    p = quick(model, make_data(9), run_dir=tmp_path / "run", modalities=["all"])
    files = [*(tmp_path / "run").glob("part-0/*.*.*")]
    takes = p.provenance["memory"]["takes"]
    assert takes["disk"] == sum(file.stat().st_size - 64 for file in files) > 0
    assert takes["states"] == 0


def test_more_passes_keep_it_and_one_at_a_time_is_held(model, monkeypatch, tmp_path):
    data, alive, collect = make_data(9), [], run.collect
    whole = quick(model, data, **ALL_KINDS)
    takes = whole.provenance["memory"]["takes"]

    def watch(*args, **options):
        gc.collect()
        assert not any(each() for each in alive), "the states of the pass before are gone"
        states = collect(*args, **options)
        alive.append(weakref.ref(states))
        assert held_bytes(states) <= takes["states"] * 0.7
        return states

    monkeypatch.setattr(run, "collect", watch)
    limit = int(takes["host"] + takes["massive"] - 0.3 * takes["states"])
    kept = quick(model, data, **ALL_KINDS, memory=f"{limit}B")
    assert kept.provenance["memory"]["passes"] == len(alive) > 1
    now = kept.provenance["memory"]["takes"]
    assert now["host"] + now["massive"] <= limit
    same_bytes(tmp_path, whole, kept)


@pytest.mark.parametrize("place", ["host", "gpu"])
def test_too_much_is_refused_before_anything_runs(model, monkeypatch, place):
    monkeypatch.setattr(run, "collect", None)
    if place == "gpu":
        monkeypatch.setattr(run, "choose_device", lambda model: "cuda:0")
    with pytest.raises(InputError, match=r"would take .* memory, of") as caught:
        quick(model, make_data(9), memory={"host": "2kB", "gpu": "1GB,gpu=2kB"}[place])
    for said in ("metrics", "run_dir=", "tokens=", "hooks=", "without linearity"):
        assert said in str(caught.value)


def test_of_states_in_files_no_place_in_memory_is_asked(model, tmp_path):
    p = quick(model, make_data(9), run_dir=tmp_path / "run")
    takes = p.provenance["memory"]["takes"]
    limit = f"{takes['host'] + takes['massive']}B"
    quick(model, make_data(9), run_dir=tmp_path / "run", memory=limit)
    with pytest.raises(InputError, match="would take") as caught:
        quick(model, make_data(9), run_dir=tmp_path / "other", memory="1kB")
    assert "run_dir" not in str(caught.value)
    assert not (tmp_path / "other").exists()


def test_on_a_gpu_metrics_are_there_and_rows_pass_four_buffers(model):
    points, spots = run.choose_spots(model, ["post"], None, False)
    plan = run.SamplingPlan(1000, ("residual",), ("visual",), 400, 16, 0, "raise")
    plan = replace(plan, points=points, spots=spots)
    chosen = [METRICS["anisotropy"]]
    width = points[0].width
    takes = memory.Needs(plan, chosen, {"visual": 5000, "text": 0}, 2, True).demand(
        memory.Holding(400, (spots,), 1, 1)
    )
    assert takes.staging == 4 * (16 * 5000 // 1000 + 1) * width * 2
    assert takes.states == len(points) * 400 * width * 2
    assert takes.gpu == takes.metrics > 2 * 400 * width * 2
    assert takes.host == takes.states + takes.staging + takes.reading + memory.SPARE
    assert takes.most("gpu") == takes.gpu + 400 * width * 2
    everything = memory.Needs(plan, chosen, None, 2, True).demand(
        memory.Holding(400, (spots,), 1, 1)
    )
    assert everything.staging == 4 * 400 * width * 2
    assert "of the GPU's (metrics)" in takes.describe()


def test_the_profile_of_a_cache_takes_what_it_takes(model):
    inputs = model.prepare("What?", None)
    _, cache = model.run_with_cache(inputs, names_filter=mm_lens.names("resid_post"))
    assert quick(cache).provenance["memory"] is None
