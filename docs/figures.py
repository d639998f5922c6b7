"""The tables and figures of docs/metrics: what each metric scores where the truth is known.

    python docs/figures.py [dimension linearity anisotropy spectrum cka gap]

Tables go into the pages, between their markers; figures into docs/images. Everything is measured
here, on one thread in a quarter of an hour; nothing is written by hand.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mm_lens.metrics import METRICS, Tokens, evaluate
from mm_lens.metrics.cka import cka
from mm_lens.metrics.dimension import Neighbourhood
from mm_lens.metrics.gap import integration_estimate
from mm_lens.metrics.numerics.neighbours import nearest
from mm_lens.metrics.numerics.ratios import fit_gride, fit_line, fit_mle, log_ratios
from mm_lens.metrics.spectrum import effective_rank

DOCS = Path(__file__).parent
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555")
MARKERS = ("o", "s", "^", "D", "v")


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def tokens_of(x: Tensor, samples: int | None = None) -> Tokens:
    index = torch.arange(len(x))
    samples = samples or len(x)
    return Tokens(x, index % samples, index // samples, index)


def clustered(seed: int, n: int, d: int, samples: int, shared: float) -> Tensor:
    common = normal(seed + 10**6, samples, d)[torch.arange(n) % samples]
    return shared**0.5 * common + (1 - shared) ** 0.5 * normal(seed, n, d)


def write_table(page: str, name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Put a table between ``<!-- table NAME -->`` and ``<!-- end -->`` of a page."""
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    path = DOCS / "metrics" / f"{page}.md"
    text, count = re.subn(
        rf"(<!-- table {name} -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{table}\n{found[2]}",
        path.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    assert count == 1, f"{path} has no place for table {name}"
    path.write_text(text, encoding="utf-8")
    print(table, flush=True)


def draw(
    name: str,
    curves: dict[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    truth: tuple[Sequence[float], Sequence[float]] | None = None,
    log: str = "x",
    limits: tuple[float, float] | None = None,
) -> None:
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.subplots()
    if truth:
        axes.plot(*truth, color="black", linewidth=1, linestyle=":", label="truth")
    for (label, (x, y)), colour, marker in zip(curves.items(), COLOURS, MARKERS, strict=False):
        axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.3, label=label)
    if "x" in log:
        axes.set_xscale("log")
        ticks = sorted({float(v) for x, _ in curves.values() for v in x})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    if "y" in log:
        axes.set_yscale("log")
    if limits:
        axes.set_ylim(*limits)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(DOCS / "images" / f"{name}.png", dpi=100)


def dimension() -> None:
    truths, sizes = (2, 5, 10, 20, 30, 50), (500, 2000, 8000, 32000)
    names = ("mle", "fit90", "gride_8", "paper")
    found: dict[tuple[str, int, int], float] = {}
    spread: dict[tuple[str, int], float] = {}
    for n in sizes:
        for d in truths:
            draws = []
            for seed in range(max(2, min(20, 20_000 // n))):
                points = Neighbourhood(tokens_of(normal(seed, n, d)), 0).points
                neighbours = nearest(points, 16)
                ratios = log_ratios(neighbours)
                draws.append(
                    (
                        fit_mle(ratios).value,
                        fit_line(ratios, int(0.9 * n)).value,
                        fit_gride(log_ratios(neighbours, 8), 8).value,
                        fit_line(ratios, n // 5).value,
                    )
                )
            means = np.mean(draws, 0)
            found |= {(name, n, d): float(v) for name, v in zip(names, means, strict=True)}
            if n == 2000 and d == 10:
                spread = dict(zip(names, np.std(draws, 0, ddof=1) / means, strict=True))
    labels = {"mle": "`mle`", "fit90": "`fit90`", "gride_8": "`gride_8`", "paper": "`paper`"}
    rows = [
        [labels[name], f"{n:,}", *(f"{found[name, n, d]:.1f}" for d in truths)]
        for name in names
        for n in sizes
    ]
    write_table("dimension", "bias", ["estimator", "n", *(f"d = {d}" for d in truths)], rows)
    write_table(
        "dimension",
        "spread",
        ["estimator", "standard deviation / mean at d = 10, n = 2,000"],
        [[labels[name], f"{100 * spread[name]:.1f} %"] for name in names],
    )
    draw(
        "dimension_bias",
        {f"mle, n = {n:,}": (truths, [found["mle", n, d] for d in truths]) for n in sizes},
        "true dimension",
        "estimate",
        truth=(truths, truths),
        log="",
    )

    shares, copies = (0.0, 0.01, 0.05, 0.1, 0.2), []
    for share in shares:
        x = normal(1, 3000, 10)
        x[: int(share * len(x))] = x[0]
        values = evaluate(tokens_of(x), None, ["dimension_mle", "dimension_paper"])
        copies.append([f"{100 * share:.0f} %", *(f"{v.value:.1f}" for v in values.values())])
    write_table(
        "dimension", "copies", ["copies of one vector", "`mle` (distinct)", "`paper`"], copies
    )


def linearity() -> None:
    d, ratios = 64, (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    names = ["linearity_paper", "linearity_adjusted", "linearity_heldout"]
    found: dict[tuple[str, str, float], float] = {}
    for kind, shared in (("independent", 0.0), ("clustered", 0.8)):
        for ratio in ratios:
            n = int(ratio * d)
            samples = n if not shared else max(8, n // 8)
            draws = []
            for seed in range(6):
                x = clustered(seed, n, d, samples, shared)
                y = clustered(seed + 100, n, d, samples, shared)
                values = evaluate(tokens_of(x, samples), tokens_of(y, samples), names, seed)
                draws.append([values[name].value for name in names])
            for name, value in zip(names, np.mean(draws, 0), strict=True):
                found[name, kind, ratio] = float(value)
    rows = [
        [
            f"`{name.removeprefix('linearity_')}`, {kind} tokens",
            *(
                "–" if np.isnan(found[name, kind, ratio]) else f"{found[name, kind, ratio]:.2f}"
                for ratio in ratios
            ),
        ]
        for kind in ("independent", "clustered")
        for name in names
    ]
    write_table("linearity", "noise", ["R² of noise", *(f"n = {r:g} d" for r in ratios)], rows)
    draw(
        "linearity_noise",
        {
            f"{name.removeprefix('linearity_')}, {kind}": (
                ratios,
                [found[name, kind, ratio] for ratio in ratios],
            )
            for name, kind in (
                (names[0], "independent"),
                (names[1], "independent"),
                (names[1], "clustered"),
                (names[2], "clustered"),
            )
        },
        "tokens per dimension",
        "R² of pure noise",
        truth=(ratios, [0.0] * len(ratios)),
    )


def anisotropy() -> None:
    n, d, counts = 4000, 100, (0, 1, 4, 16, 32, 64, 128)
    names = [f"anisotropy{end}" for end in ("", "_without_first", "_trimmed", "_without_massive")]
    names.append("half_trace_tokens")
    found = []
    for count in counts:
        x = normal(0, n, d)
        x[:count, 0] += 200
        index = torch.arange(n)
        # Half of the massive tokens stand at position 0.
        tokens = Tokens(x, index % 400, (index % 2 + index // 400).clamp(min=0), index)
        values = evaluate(tokens, None, names)
        found.append([values[name].value for name in names])
    rows = [
        [str(count), *(f"{v:.3f}" for v in values[:4]), f"{values[4]:,.0f}"]
        for count, values in zip(counts, found, strict=True)
    ]
    head = ["massive tokens of 4,000", *(f"`{name}`" for name in names)]
    write_table("anisotropy", "massive", head, rows)
    places = [max(c, 0.5) for c in counts]
    draw(
        "anisotropy_massive",
        {name: (places, [v[i] for v in found]) for i, name in enumerate(names[:4])},
        "massive tokens among 4,000 (0.5: none)",
        "anisotropy",
    )
    noise = []
    for ratio in (0.5, 1, 2, 4, 16, 64):
        values = [
            METRICS["anisotropy"].compute(tokens_of(normal(s, int(ratio * 64), 64)))
            for s in range(5)
        ]
        mean = np.mean([v.value for v in values])
        noise.append([f"{ratio:g} d", f"{mean:.3f}", f"{values[0].chance:.3f}", f"{1 / 64:.3f}"])
    write_table(
        "anisotropy", "noise", ["tokens", "isotropic noise scores", "`chance`", "truth, 1/d"], noise
    )


def spectrum() -> None:
    d, ratios = 64, (0.5, 1.0, 2.0, 4.0, 16.0, 64.0)
    names = ["participation_ratio", "effective_rank", "dimensions_95"]
    spectra = {"flat": torch.ones(d).double(), "1/k": 1 / torch.arange(1, d + 1).double()}
    rows, curves = [], {}
    for kind, variances in spectra.items():
        found = []
        for ratio in ratios:
            draws = [
                [
                    e.value
                    for e in evaluate(
                        tokens_of(normal(s, int(ratio * d), d) * variances.sqrt()), None, names
                    ).values()
                ]
                for s in range(5)
            ]
            found.append(np.mean(draws, 0))
        held = (variances.cumsum(0) < 0.95 * variances.sum()).sum() + 1
        truths = (
            float(variances.sum() ** 2 / variances.square().sum()),
            float(effective_rank(variances)),
            float(held),
        )
        for i, (name, truth) in enumerate(zip(names, truths, strict=True)):
            values = [float(f[i]) for f in found]
            rows.append([f"`{name}`, {kind}", *(f"{v:.1f}" for v in values), f"{truth:.1f}"])
            if kind == "flat":
                curves[name] = (ratios, values)
    head = ["eigenvalues", *(f"n = {r:g} d" for r in ratios), "truth"]
    write_table("spectrum", "bias", head, rows)
    draw(
        "spectrum_bias",
        curves,
        "tokens per dimension",
        "count of 64 equal directions",
        truth=(ratios, [64.0] * len(ratios)),
    )


def plain_cka(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def similarity() -> None:
    d, ratios = 128, (0.25, 0.5, 1.0, 2.0, 4.0, 16.0)
    kinds = {"plain": plain_cka, "debiased": cka}
    rows, curves = [], {}
    for relation, truth in (("unrelated", 0.0), ("half shared", 0.5)):
        for kind, function in kinds.items():
            values = []
            for ratio in ratios:
                n, draws = int(ratio * d), []
                for s in range(8):
                    x, y = normal(s, n, d), normal(s + 50, n, d)
                    if truth:
                        y[:, : d // 2] = x[:, : d // 2]
                    draws.append(function(x, y))
                values.append(float(np.mean(draws)))
            rows.append([f"{kind}, {relation}", *(f"{v:.2f}" for v in values), f"{truth:g}"])
            curves[f"{kind}, {relation}"] = (ratios, values)
    write_table("cka", "bias", ["linear CKA", *(f"n = {r:g} d" for r in ratios), "truth"], rows)
    draw("cka_bias", curves, "rows per dimension", "linear CKA of states of 128 dimensions")


def gap() -> None:
    d, ratios, steps = 64, (1.0, 2.0, 4.0, 16.0, 64.0), (0.0, 0.5, 2.0)
    rows, curves = [], {}
    for step in steps:
        values, chances = [], []
        for ratio in ratios:
            n, draws = int(ratio * d), []
            for s in range(4):
                a, b = normal(s, n, d), normal(s + 50, n, d)
                a[:, 0] += step
                draws.append(integration_estimate(tokens_of(a), tokens_of(b)))
            values.append(float(np.mean([e.value for e in draws])))
            chances.append(float(np.mean([e.chance for e in draws])))
        truth = step**2 / d  # the mean norm of a text token is close to sqrt(d)
        cells = [f"{v:.3f} ({c:.3f})" for v, c in zip(values, chances, strict=True)]
        rows.append([f"{step:g}", *cells, f"{truth:.3f}"])
        curves[f"centroids {step:g} apart"] = (ratios, values)
        if not step:
            curves["chance"] = (ratios, chances)
    head = ["centroids apart", *(f"n = {r:g} d" for r in ratios), "truth"]
    write_table("gap", "bias", head, rows)
    draw("gap_bias", curves, "tokens per dimension", "integration_distance", log="xy")


PARTS = {
    "dimension": dimension,
    "linearity": linearity,
    "anisotropy": anisotropy,
    "spectrum": spectrum,
    "cka": similarity,
    "gap": gap,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
