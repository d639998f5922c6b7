"""Does geometry go with accuracy across models? `python -m demo_training.across FOLDER`.

FOLDER holds the tables of `demo_training.population`. A quantity is a metric of one stream and
modality, its mean over layers. Of each:

- `overall`: Spearman's correlation with accuracy over all models. Both move while a model learns,
  so that nearly everything goes with accuracy.
- `equal`: the same at equal training: ranks are taken within each moment, so that what all models
  have learnt by then drops out. Its interval leaves out whole trainings one by one (jackknife,
  Student's t), since the moments of one training are no models of their own.
- `holds`: whether that interval leaves out 0 and both fusions have its sign.
- `fusion`: the difference between the fusions (the second by name less the first) that is left of
  the quantity once a line through accuracy is taken out, in standard deviations, with an interval
  over seeds (paired, Student's t).

Accuracy is the mean over kinds of questions, with the picture. Limits: six trainings tell strong
relations alone, and so many quantities are looked at (`looked`) that some hold by chance. How many
do is told by `deal`: the accuracies of each training are dealt to the other seeds of its fusion,
which leaves training and fusion as they are.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from mm_lens.metrics.intervals import jackknife_error, margin

PLACE = ["stream", "modality", "metric"]
TRAINING = ["fusion", "seed"]
MOMENT = ["stage", "step"]


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables of a population."""
    return pd.read_csv(folder / "models.csv"), pd.read_parquet(folder / "geometry.parquet")


def join(models: pd.DataFrame, geometry: pd.DataFrame) -> pd.DataFrame:
    """A row for each model: its accuracy, and a column for each quantity."""
    given = models[models["condition"] == "given"]
    accuracy = given.groupby([*TRAINING, *MOMENT])["accuracy"].mean()
    states = geometry[geometry["hook"].str.contains(r"hook_resid_(?:pre|post)$")]
    mean = states.groupby([*TRAINING, *MOMENT, *PLACE])["value"].mean()
    wide = mean.unstack(PLACE)
    wide = wide.loc[:, wide.notna().all() & (wide.std() > 0)]
    found = wide.copy()
    found["accuracy", "", ""] = accuracy
    return found


def relate(table: pd.DataFrame) -> pd.DataFrame:
    """What the module says, a row for each quantity, the strongest first."""
    accuracy = table["accuracy"].to_numpy()
    rows = []
    for place in [column for column in table if column[0] != "accuracy"]:
        values = table[place].to_numpy()
        found = equal_training(table.index, values, accuracy)
        half = margin(*jackknife_error(_left_out(table.index, values, accuracy)))
        fusions = {
            name: equal_training(table.index[here], values[here], accuracy[here])
            for name in table.index.unique("fusion")
            if (here := table.index.get_level_values("fusion") == name).any()
        }
        same = {np.sign(value) for value in fusions.values()} == {np.sign(found)}
        rows.append(
            {
                **dict(zip(PLACE, place, strict=True)),
                "overall": float(stats.spearmanr(values, accuracy).statistic),
                "equal": found,
                "low": found - half,
                "high": found + half,
                "holds": bool(abs(found) > half and same),
                **_between(table.index, values, accuracy),
            }
        )
    order = pd.DataFrame(rows).assign(looked=len(rows))
    return order.sort_values("equal", key=abs, ascending=False, ignore_index=True)


def equal_training(
    index: pd.MultiIndex, values: Float[np.ndarray, " n"], accuracy: Float[np.ndarray, " n"]
) -> float:
    """Correlation of the ranks within each moment."""
    frame = pd.DataFrame({"x": values, "y": accuracy}, index=index)
    ranks = frame.groupby(MOMENT).rank()
    ranks = ranks - ranks.groupby(MOMENT).transform("mean")
    spread = float(np.sqrt((ranks["x"] ** 2).sum() * (ranks["y"] ** 2).sum()))
    return float((ranks["x"] * ranks["y"]).sum()) / spread if spread else 0.0


def deal(table: pd.DataFrame) -> list[int]:
    """How many quantities hold in every way to deal accuracies to seeds; as they are comes first.

    A few seconds for each: `n!` ways for `n` seeds of one fusion, and their product.
    """
    fusions, seeds = sorted(table.index.unique("fusion")), sorted(table.index.unique("seed"))
    accuracy, found = table["accuracy", "", ""], []
    for ways in itertools.product(itertools.permutations(seeds), repeat=len(fusions)):
        given = {
            name: dict(zip(seeds, way, strict=True))
            for name, way in zip(fusions, ways, strict=True)
        }
        dealt = table.copy()
        dealt["accuracy", "", ""] = [
            accuracy[name, given[name][seed], *moment] for name, seed, *moment in table.index
        ]
        found.append(int(relate(dealt)["holds"].sum()))
    return found


def _left_out(index: pd.MultiIndex, values: np.ndarray, accuracy: np.ndarray) -> list[float]:
    """The same without each training."""
    training = list(zip(*(index.get_level_values(name) for name in TRAINING), strict=True))
    found = []
    for one in dict.fromkeys(training):
        kept = np.array([each != one for each in training])
        found.append(equal_training(index[kept], values[kept], accuracy[kept]))
    return found


def _between(index: pd.MultiIndex, values: np.ndarray, accuracy: np.ndarray) -> dict[str, float]:
    """The difference between the fusions that accuracy leaves, and its interval over seeds."""
    names = sorted(index.unique("fusion"))
    if len(names) != 2:
        return {"fusion": np.nan, "fusion_low": np.nan, "fusion_high": np.nan}
    slope, shift = np.polyfit(accuracy, values, 1) if np.ptp(accuracy) else (0.0, values.mean())
    rest = pd.Series((values - slope * accuracy - shift) / values.std(), index=index)
    by = rest.groupby(TRAINING).mean().unstack("fusion")
    apart = (by[names[1]] - by[names[0]]).to_numpy()
    half = np.inf
    if len(apart) > 1:
        half = float(stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5)
    mean = float(apart.mean())
    return {"fusion": mean, "fusion_low": mean - half, "fusion_high": mean + half}


def main() -> None:
    """Command line."""
    table = join(*read(Path(sys.argv[1])))
    found = relate(table)
    print(f"{len(table)} models, accuracy {table['accuracy'].min():.2f} to ", end="")
    print(f"{table['accuracy'].max():.2f}; {int(found['holds'].sum())} of {len(found)} hold")
    print(found.to_string(float_format="%.2f"))
    as_it_is, *others = deal(table)
    print(
        f"{as_it_is} hold; of {len(others)} other ways to deal accuracies to seeds, as many do in ",
        end="",
    )
    middle = sorted(others)[len(others) // 2]
    print(f"{sum(n >= as_it_is for n in others)}; the middle one has {middle}")


if __name__ == "__main__":
    main()
