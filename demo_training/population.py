"""Many small models, each measured while it learns: `python -m demo_training.population --out DIR`.

Does geometry go with accuracy *across* models? One model cannot say, and two that differ in their
fusion differ in both. Here are both fusions, several seeds (of weights, of parts, of batches), and
five moments of each training, from parts that were joined and never met to the end. Each moment is
asked the same questions, as many of each kind, and profiled on the same pictures.

Two tables come out. `models.csv`: a row for each model and kind of question; `geometry.parquet`:
the profile of each model, as `mm_lens.profile` gives it. A run of one seed and fusion that is done
is not done again. What the tables say: `demo_training.across`.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import mm_lens
from demo_training import train
from demo_training.fusions import FUSIONS
from demo_training.parts import Size
from mm_lens.data.samples import DataSet

SIZE = Size(width=48, blocks=4, tower=3, inner=128)
"""A quarter of a million weights: a sixth of the demo's."""
STAGES = {
    **{"see": 300, "read": 900, "negate": 400, "connect": 100, "answer": 400},
    **{"images": 1000, "copies": 0, "batch": 8, "lr": 3e-3, "lr_all": 1e-3},
}
"""Steps of each stage, pictures and pictures in a step, and rates, which small models bear higher.
With fewer steps of *read* (220) every model stays at chance. The defaults of `demo_training.train`
are twice as many, of models six times as large."""
TOKENS = 768
"""Of each modality, in a profile: 16 to a dimension."""
MOMENTS = ("joined", "connected", 0.25, 0.5, 1.0)
"""Where a model is measured: parts that were joined, connected, and parts of the last stage."""
KINDS = ("shape", "colour", "yes/no")


class Watched(train.Fusing):
    """A training that is measured at `MOMENTS`.

    Attributes:
        measured: accuracies and profile of each moment.
    """

    def __init__(self, args: argparse.Namespace, name: str, data: DataSet) -> None:
        super().__init__(args, name, SIZE)
        self.data = data
        self.measured: list[tuple[pd.DataFrame, pd.DataFrame]] = []

    def watch(self, stage: str, step: int) -> None:
        """Measure the model, where it is time to."""
        steps = [round(part * self.args.answer) for part in MOMENTS if isinstance(part, float)]
        if stage not in MOMENTS and (stage != "answering" or step not in steps):
            return
        chance = torch.get_rng_state()
        place = {"fusion": self.name, "seed": self.args.seed, "stage": stage, "step": step}
        folder = self.args.out / self.name / f"{stage}-{step}"
        self.slow.eval().save_pretrained(folder)
        self.fusion.processor.save_pretrained(folder)
        found = measure(folder, self.data, self.args.profiled, self.args.metrics)
        self.measured.append(tuple(table.assign(**place) for table in found))  # type: ignore[arg-type]
        torch.set_rng_state(chance)


def measure(
    folder: Path, data: DataSet, profiled: int, metrics: list[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How often the model in a folder is right, and its profile on the first `profiled` samples."""
    model = mm_lens.load(str(folder), check=False)
    options: Any = {"progress": False, "conditions": ["given"]}
    scores = mm_lens.evaluate(model, data, batch_size=32, max_tokens=3, **options)
    right = scores.answers.groupby(["condition", "kind"])["right"].agg(["mean", "size"])
    accuracy = right.reset_index().rename(columns={"mean": "accuracy", "size": "n"})
    profile = mm_lens.profile(
        model,
        data,
        modalities=["visual", "text"],
        samples=profiled,
        tokens=TOKENS,
        metrics=metrics,
        progress=False,
    )
    return accuracy, profile.table


def questions(each: int) -> DataSet:
    """As many test questions of each kind, about different pictures as far as there are some.

    Kinds take turns, so that the first few are of all kinds.
    """
    data = mm_lens.datasets.load("easy-vqa", limit=20 * each, seed=0)
    kinds = [data[i].about["kind"] for i in range(len(data))]
    places = [[i for i, kind in enumerate(kinds) if kind == name][:each] for name in KINDS]
    return data.select([i for turn in zip(*places, strict=True) for i in turn])


def run(args: argparse.Namespace) -> None:
    """Train and measure every seed and fusion that is not done, then join the tables."""
    data, folder = questions(args.each), args.out
    for seed in args.seeds:
        # Pictures are the same for all seeds; weights, batches and questions are not.
        given = argparse.Namespace(**{**vars(args), "seed": seed, "out": folder / f"seed-{seed}"})
        given.out.mkdir(parents=True, exist_ok=True)
        todo = [name for name in sorted(FUSIONS) if not (given.out / f"{name}.parquet").exists()]
        if todo and not (given.out / train.PARTS_FILE).exists():
            train.Pretraining(given, SIZE).run()
        for name in todo:
            training = Watched(given, name, data)
            training.run()
            accuracies, profiles = zip(*training.measured, strict=True)
            pd.concat(accuracies).to_csv(given.out / f"{name}.csv", index=False)
            pd.concat(profiles).to_parquet(given.out / f"{name}.parquet", index=False)
    runs = [folder / f"seed-{seed}" / name for seed in args.seeds for name in sorted(FUSIONS)]
    models = pd.concat([pd.read_csv(f"{path}.csv") for path in runs])
    models.to_csv(folder / "models.csv", index=False, float_format="%.6g")
    geometry = pd.concat([pd.read_parquet(f"{path}.parquet") for path in runs])
    geometry.to_parquet(folder / "geometry.parquet", index=False, compression="zstd")


def options() -> argparse.ArgumentParser:
    """What the recipe can be told: all that training can, but for the seed."""
    parser = train.options()
    parser.description = __doc__.splitlines()[0]
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--each", type=int, default=30, help="questions of each kind")
    parser.add_argument("--profiled", type=int, default=40, help="samples of a profile")
    parser.add_argument("--metrics", nargs="+", help="these alone, instead of both presets")
    parser.set_defaults(**STAGES)
    return parser


def main() -> None:
    """Command line."""
    args = options().parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    run(args)


if __name__ == "__main__":
    main()
