"""Train the demo models of scenes: `python -m demo_training.scenes.train --out runs/scenes`.

As `demo_training.train`, each part learns what it can learn alone first; what is known of a scene
says what every single token has to know:

1. *see*: each token of the tower names shape and colour of the object whose centre is near
   (`seeing`), on whole pictures and on tiles.
2. *read*: the language model learns the questions from scenes that are described to it, on small
   grids (`reading`, `describing`): no tower, short sequences. Its heads start as ones that look for
   what is alike (`starting`), and two are told where to look (`looking`). First two objects, then
   up to four; at last tiles too.
3. *connect*: tower and projector learn to say what was described.
4. *answer*: everything learns, from pictures (`joining`).

A dozen questions stand behind each picture (`packing`), evenly over their answers; of the kinds,
those are asked more often that have been answered wrong more often. `--again` goes on from what is
in the folder: which number of steps is enough is told by the shares of right answers in the log.
Weights are exported as a moving average. No picture of a test split is trained on: scenes are drawn
by numbers of their own.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from demo_training.fusions import FUSIONS
from demo_training.parts import Size
from demo_training.scenes.joining import Joining
from demo_training.scenes.reading import Reading
from demo_training.scenes.seeing import Seeing

SIZE = Size(width=64, blocks=4, tower=4, inner=144, tile=72, whole=True)
"""Small: a dozen questions about eight scenes take a core 0.2 s, forward and back."""
STAGES = ("see", "read", *sorted(FUSIONS))


def options() -> argparse.ArgumentParser:
    """What training can be told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--only", choices=STAGES, nargs="+", default=STAGES, help="do these")
    parser.add_argument("--see", type=int, default=800, help="steps of the tower alone")
    parser.add_argument("--read", type=int, default=3000, help="steps of the language model alone")
    parser.add_argument("--connect", type=int, default=300, help="steps of tower and projector")
    parser.add_argument("--answer", type=int, default=1000, help="steps of the whole model")
    parser.add_argument("--again", action="store_true", help="more steps, from what is there")
    parser.add_argument("--blocks", type=int, default=SIZE.blocks, help="of the language model")
    parser.add_argument("--batch", type=int, default=8, help="scenes per step")
    parser.add_argument("--questions", type=int, default=12, help="questions per scene")
    parser.add_argument("--images", type=int, default=2000, help="scenes that are drawn")
    parser.add_argument("--question-weight", type=float, default=0.1, help="of the questions' loss")
    parser.add_argument("--vision-weight", type=float, default=0.1, help="of the tower's naming")
    parser.add_argument("--told-weight", type=float, default=0.3, help="of what tokens have to say")
    parser.add_argument("--look-weight", type=float, default=0.2, help="of where two heads look")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak, where parts are trained")
    parser.add_argument("--lr-all", type=float, default=1e-3, help="peak, where all is trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def curriculum(done: float, chance: random.Random) -> tuple[int, int, bool]:
    """Most objects, side of the grid in tokens, and whether there are tiles; `done` is 0 to 1."""
    most = 2 if done < 0.15 else 3 if done < 0.3 else 4
    if done < 0.6:
        return most, chance.choice((4, 5, 6)), False
    grid = SIZE.tile // 8
    return most, chance.choice((5, 6, grid)), chance.random() < 0.5


def draw(again: bool, chance: random.Random, done: float) -> tuple[int, int, bool]:
    """As `curriculum`, but for its first part where that was had before."""
    return curriculum(0.3 + 0.7 * done if again else done, chance)


def main() -> None:
    """Command line."""
    args = options().parse_args()
    args.size = replace(SIZE, blocks=args.blocks)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    chance = random.Random(args.seed)
    for name in args.only:
        if name == "see":
            Seeing(args).run()
        elif name == "read":
            reading = Reading(args)
            if args.again:
                reading.load()
            reading.read("read", args.read, args.lr, partial(draw, args.again, chance))
        else:
            Joining(args, name).run()


if __name__ == "__main__":
    main()
