"""The figures of docs/descriptive_or_prescriptive.md.

    python docs/descriptive_or_prescriptive.py measure runs/prescriptive [MODEL]   # minutes
    python docs/descriptive_or_prescriptive.py tell runs/prescriptive      # tables and the picture

`measure` goes on where it was stopped. `tell` writes the tables into the page, between its markers,
and judges them by what the page said beforehand; nothing is written by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import easy_vqa
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import mm_lens
from demo_training import across
from mm_lens import replacing

DOCS = Path(__file__).parent
PAGE = DOCS / "descriptive_or_prescriptive.md"
MODELS = ("demo/omnifusion", "demo/llava-next")
EACH, FEWER, FITTED = 160, 80, 100
"""Questions about single blocks and visual tokens, where answers that never change have to tell two
points; of the other tables; and those that maps and directions are fitted on."""
SIZES = (0, 1, 2, 4, 8, 16, 32, 96)
HOWS = ("affine", "shift", "identity", "random", "mean")
REPLACED = (
    ("visual", "visual", HOWS, [1]),
    ("runs", "visual", HOWS[:3], [2, 4, 8]),
    ("text", "text", HOWS[:3], [1]),
)
"""Tables of replaced blocks: name, tokens, what takes the place of a block, lengths of runs."""
POINTS = 0.02
POPULATION = DOCS.parent / "demo_training" / "tables"
QUANTITIES = (
    *("linearity_paper", "linearity_heldout", "linearity_update_heldout"),
    *("dimension_paper", "dimension_mle", "participation_ratio", "effective_rank"),
    *("anisotropy", "mean_cosine"),
)
LINEAR = 0.98
COUNTS = {
    "dimension_mle": "TwoNN",
    "participation_ratio": "participation ratio",
    "effective_rank": "effective rank",
    "dimensions_95": "95 % of the variance",
}


def measure(out: Path, *models: str, each: int = EACH, fitted: int = FITTED) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in models or MODELS:
        model = mm_lens.load(name)
        stem = out / name.removeprefix("demo/")
        many, few = (ask(model, n, fitted) for n in (each, min(each, FEWER)))
        for kind, group, how, runs in REPLACED:
            if not (path := Path(f"{stem}-{kind}.csv")).exists():
                samples, others = many if kind == "visual" else few
                maps = replacing.fit_maps(model, others, group)
                maps.table.to_csv(f"{stem}-{kind}-maps.csv", index=False)
                table = replacing.replacement_table(
                    model, samples, maps, how=how, runs=runs, save=f"{path}.pt", batch_size=32
                )
                table.to_csv(path, index=False)
        if not (path := Path(f"{stem}-removal.csv")).exists():
            samples, others = few
            subspaces = replacing.fit_subspaces(model, others)
            table = replacing.removal_table(model, samples, subspaces, save=f"{path}.pt")
            table.to_csv(path, index=False)
        if not (path := Path(f"{stem}-dimension.csv")).exists():
            samples, others = few
            subspaces = replacing.fit_subspaces(model, others)
            table = replacing.dimension_table(
                model, samples, subspaces, sizes=SIZES, save=f"{path}.pt", batch_size=32
            )
            table.to_csv(path, index=False)
            functional = replacing.functional_dimension(table, subspaces)
            functional.to_csv(f"{stem}-functional.csv", index=False)


def ask(
    model: mm_lens.VisionLanguageBridge, each: int, fitted: int
) -> tuple[list[tuple[mm_lens.Inputs, mm_lens.Answers]], list[mm_lens.Inputs]]:
    """Questions with their answers, and those that maps and directions are fitted on."""
    data = mm_lens.datasets.load("easy-vqa", limit=each + fitted)
    inputs = [model.prepare(sample.text, sample.image) for sample in data]
    options = easy_vqa.get_answers()
    pairs = zip(inputs[:each], data, strict=False)
    asked = [(x, mm_lens.Answers(model, x, options, one.answer)) for x, one in pairs]
    return asked, inputs[each:]


def read(out: Path, kind: str) -> pd.DataFrame:
    """A table of the models that were measured."""
    tables = []
    for name in MODELS:
        short = name.removeprefix("demo/")
        if (path := out / f"{short}-{kind}.csv").exists():
            tables.append(pd.read_csv(path).assign(model=short))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def interval_of_rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's correlation with an interval by Fisher's transformation (Bonett & Wright 2000)."""
    r = float(spearmanr(x, y).statistic)
    error = 1.96 * np.sqrt((1 + r * r / 2) / (len(x) - 3))
    middle = np.arctanh(np.clip(r, -0.999999, 0.999999))
    return r, float(np.tanh(middle - error)), float(np.tanh(middle + error))


def judge_linearity(table: pd.DataFrame) -> tuple[str, dict[str, object]]:
    """By the first row of the page's table; `table` is of single blocks and visual tokens."""
    accuracy = table[table["metric"] == "accuracy"]
    linear = accuracy[accuracy["linearity"] >= LINEAR]
    affine, identity = (linear[linear["how"] == how] for how in ("affine", "identity"))
    divergence = table[(table["metric"] == "kl") & (table["how"] == "affine")]
    r, low, high = interval_of_rank_correlation(
        1 - divergence["linearity"].to_numpy(), divergence["value"].to_numpy()
    )
    keeps = bool((affine["low"] > -POINTS).all())
    needed = bool((identity["high"] < -POINTS).any())
    loses = bool((affine["high"] < -POINTS).any())
    nothing = bool((identity["low"] > -POINTS).all()) and keeps
    told = {
        "blocks": len(affine),
        "map keeps": int((affine["low"] > -POINTS).sum()),
        "map loses": int((affine["high"] < -POINTS).sum()),
        "identity loses": int((identity["high"] < -POINTS).sum()),
        "identity keeps": int((identity["low"] > -POINTS).sum()),
        "correlation": (r, low, high),
    }
    if not len(affine):
        return "undecided", told
    if keeps and needed and low > 0:
        return "prescriptive", told
    if loses or nothing:
        return "descriptive", told
    return "undecided", told


def needed_layers(functional: pd.DataFrame) -> pd.DataFrame:
    """Layers where the mean alone does not keep 95 %, principal directions."""
    principal = functional[functional["directions"] == "principal"]
    return principal[~(principal["k"] == 0)]


def judge_dimension(functional: pd.DataFrame, count: str) -> tuple[str, dict[str, object]]:
    """By the second row: a count against the functional dimension."""
    rows = needed_layers(functional)
    other = functional[functional["directions"] == "random"].set_index(["model", "layer"])["k"]
    random = [other.loc[place] for place in zip(rows["model"], rows["layer"], strict=True)]
    more = np.array([not k >= r for k, r in zip(rows["k"], random, strict=True)])
    value, k = rows[count].to_numpy(), rows["k"].to_numpy()
    low, high = (rows[name].fillna(max(SIZES)).to_numpy() for name in ("low", "high"))
    close = ((value >= k / 2) & (value <= 2 * k)) | ((value >= low) & (value <= high))
    told = {"layers": len(rows), "close": int(close.sum()), "random needs more": int(more.sum())}
    if len(rows) and close.mean() >= 0.75 and bool(more.all()):
        return "prescriptive", told
    if len(rows) and close.mean() <= 0.25:
        return "descriptive", told
    return "undecided", told


def judge_removal(
    table: pd.DataFrame, functional: pd.DataFrame, what: str, control: str
) -> tuple[str, dict[str, object]]:
    """By the last two rows: what a removal costs, beside its control."""
    kept = {
        *zip(needed_layers(functional)["model"], needed_layers(functional)["layer"], strict=True)
    }
    accuracy = table[table["metric"] == "accuracy"]
    here = [place in kept for place in zip(accuracy["model"], accuracy["first_layer"], strict=True)]
    accuracy = accuracy[here]
    if what == "massive tokens":
        accuracy = accuracy[accuracy["massive"] > 0]
    rows = accuracy[accuracy["what"] == what].reset_index(drop=True)
    beside = accuracy[accuracy["what"] == control].reset_index(drop=True)
    costs = (rows["high"] < -POINTS) & (rows["effect"] < beside["effect"])
    cheap = rows["low"] > -POINTS
    told = {"layers": len(rows), "costs": int(costs.sum()), "cheap": int(cheap.sum())}
    if not len(rows):
        return "nothing to say: there are none", told
    many, all_cheap = (0.5, 0.75) if what == "leading direction" else (1e-9, 1.0)
    if costs.mean() >= many:
        return "prescriptive", told
    if cheap.mean() >= all_cheap:
        return "descriptive", told
    return "undecided", told


def write_numbers(row: pd.Series) -> str:
    if row["effect"] == row["low"] == row["high"] == 0:  # no answer changed: that is no interval
        return "0"
    return f"{row['effect']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def blocks_table(table: pd.DataFrame, maps: pd.DataFrame) -> str:
    """Single blocks: how linear, and what each replacement does to the accuracy."""
    hows = [how for how in HOWS if (table["how"] == how).any()]
    lines = [f"| model | block | R² | R², update | {' | '.join(hows)} | KL, affine |"]
    lines.append("|---|--:|--:|--:|" + "--:|" * (len(hows) + 1))
    for (model, block), rows in table.groupby(["model", "first_layer"]):
        fitted = maps[(maps["model"] == model) & (maps["block"] == block)].iloc[0]
        accuracy = rows[rows["metric"] == "accuracy"].set_index("how")
        divergence = rows[rows["metric"] == "kl"].set_index("how")
        cells = [write_numbers(accuracy.loc[how]) for how in hows]
        lines.append(
            f"| {model} | {block} | {fitted['linearity']:.3f} | {fitted['linearity_update']:.2f} | "
            f"{' | '.join(cells)} | {divergence.loc['affine', 'value']:.3f} |"
        )
    return "\n".join(lines)


def runs_table(table: pd.DataFrame) -> str:
    """Runs of blocks: the mean over runs of one length."""
    accuracy = table[table["metric"] == "accuracy"].assign(
        length=table["last_layer"] - table["first_layer"] + 1
    )
    hows = [how for how in HOWS if (accuracy["how"] == how).any()]
    wide = accuracy.pivot_table(index=["model", "length"], columns="how", values="value")[hows]
    lines = [f"| model | blocks in a row | {' | '.join(hows)} |", "|---|--:|" + "--:|" * len(hows)]
    for (model, length), row in wide.iterrows():
        lines.append(f"| {model} | {length} | {' | '.join(f'{v:.3f}' for v in row)} |")
    return "\n".join(lines)


def dimension_text(functional: pd.DataFrame) -> str:
    """The functional dimension of each layer beside the counts."""
    lines = ["| model | layer | principal | random | " + " | ".join(COUNTS.values()) + " |"]
    lines.append("|---|--:|--:|--:|" + "--:|" * len(COUNTS))
    for (model, layer), rows in functional.groupby(["model", "layer"]):
        of = rows.set_index("directions")
        ks = [
            f"{of.loc[which, 'k']:.0f} [{of.loc[which, 'low']:.0f}, {of.loc[which, 'high']:.0f}]"
            for which in ("principal", "random")
        ]
        counts = [f"{of.loc['principal', name]:.1f}" for name in COUNTS]
        lines.append(f"| {model} | {layer} | {' | '.join(ks)} | {' | '.join(counts)} |")
    return "\n".join(lines).replace("nan", "–")


def removal_text(table: pd.DataFrame) -> str:
    accuracy = table[table["metric"] == "accuracy"]
    whats = [*accuracy["what"].unique()]
    lines = [f"| model | layer | massive tokens | {' | '.join(whats)} |"]
    lines.append("|---|--:|--:|" + "--:|" * len(whats))
    for (model, layer), rows in accuracy.groupby(["model", "first_layer"]):
        of = rows.set_index("what")
        cells = [write_numbers(of.loc[what]) for what in whats]
        lines.append(f"| {model} | {layer} | {of['massive'].iloc[0]:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(out: Path) -> list[tuple[str, str, dict[str, object]]]:
    """Each quantity, what the interventions say of it, and on what grounds."""
    table, functional, removal = (read(out, kind) for kind in ("visual", "functional", "removal"))
    found = [("linearity", *judge_linearity(table))]
    if not functional.empty:
        found += [(COUNTS[name], *judge_dimension(functional, name)) for name in COUNTS]
    for name, what, control in (
        ("anisotropy", "leading direction", "random direction"),
        ("sinks", "massive tokens", "ordinary tokens"),
    ):
        if not removal.empty and not functional.empty:
            found.append((name, *judge_removal(removal, functional, what, control)))
    return found


def draw(out: Path, path: Path) -> None:
    """What replacing each block costs, beside how linear it is."""
    table = read(out, "visual")
    single = table[table["metric"] == "accuracy"]
    figure = Figure(figsize=(9, 3), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, single["model"].nunique(), sharey=True, squeeze=False)[0]
    colours = {"affine": "#0072B2", "identity": "#D55E00", "random": "#CC79A7", "mean": "#555555"}
    for axis, (model, rows) in zip(axes, single.groupby("model"), strict=True):
        for shift, (how, colour) in enumerate(colours.items()):
            one = rows[rows["how"] == how]
            spread = [one["effect"] - one["low"], one["high"] - one["effect"]]
            at = one["first_layer"] + 0.12 * (shift - 1.5)
            axis.errorbar(at, one["value"], spread, fmt="o", ms=4, color=colour, label=how)
        affine = rows[rows["how"] == "affine"]
        axis.axhline(affine["baseline"].iloc[0], color="#999999", lw=0.8)
        labels = [
            f"{k}\n{r:.3f}" for k, r in zip(affine["first_layer"], affine["linearity"], strict=True)
        ]
        axis.set_xticks(affine["first_layer"], labels, fontsize=7)
        axis.set_title(f"demo/{model}", fontsize=9)
        axis.set_xlabel("block, and its held-out R²", fontsize=8)
    axes[0].set_ylabel("accuracy with the block replaced", fontsize=8)
    axes[-1].legend(fontsize=7)
    figure.savefig(path)


def population_text(folder: Path) -> str:
    """What goes with accuracy across models: the quantities that the findings are about."""
    table = across.join(*across.read(folder))
    found = across.relate(table)
    print(f"{len(table)} models, accuracy {table['accuracy'].min():.2f}", end=" ")
    print(f"to {table['accuracy'].max():.2f}; {int(found['holds'].sum())} of {len(found)} hold")
    print(found.head(12).to_string(float_format="%.2f"))
    rows = found[found["metric"].isin(QUANTITIES) & (found["modality"] != "all")]
    rows = rows.sort_values(["metric", "stream", "modality"])
    lines = [
        "| quantity | stream | tokens | overall | equal training | goes with accuracy | fusion |",
        "|---|---|---|--:|--:|---|--:|",
    ]
    for _, row in rows.iterrows():
        lines.append(
            f"| {row['metric']} | {row['stream']} | {row['modality']} | {row['overall']:+.2f} | "
            f"{row['equal']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] | "
            f"{'yes' if row['holds'] else 'no'} | "
            f"{row['fusion']:+.2f} [{row['fusion_low']:+.2f}, {row['fusion_high']:+.2f}] |"
        )
    return "\n".join(lines)


def put(text: str, name: str, content: str) -> str:
    """The page with a table between its markers."""
    pattern = rf"(<!-- table {name} -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.S)


def tell(out: Path) -> None:
    judged = verdicts(out)
    lines = ["| quantity | verdict of the interventions | grounds |", "|---|---|---|"]
    for name, verdict, told in judged:
        grounds = "; ".join(
            f"{key} {value:.2f}" if isinstance(value, float)
            else f"{key} {value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"
            if isinstance(value, tuple)
            else f"{key} {value}"
            for key, value in told.items()
        )  # fmt: skip
        lines.append(f"| {name} | {verdict} | {grounds} |")
    page = PAGE.read_text("utf-8")
    page = put(page, "verdicts", "\n".join(lines))
    for name, kind, write in (
        ("blocks", "visual", lambda table: blocks_table(table, read(out, "visual-maps"))),
        ("runs", "runs", runs_table),
        ("text", "text", lambda table: blocks_table(table, read(out, "text-maps"))),
        ("dimension", "functional", dimension_text),
        ("removal", "removal", removal_text),
    ):
        if not (table := read(out, kind)).empty:
            page = put(page, name, write(table))
    if POPULATION.exists():
        page = put(page, "population", population_text(POPULATION))
    PAGE.write_text(page, "utf-8")
    draw(out, DOCS / "images" / "replacing.png")


if __name__ == "__main__":
    what, folder, *names = sys.argv[1:]
    {"measure": measure, "tell": tell}[what](Path(folder), *names)
