"""What can be answered about scenes without looking, or by looking at the wrong thing.

`python -m demo_training.scenes.shortcuts` prints the table of docs/data.md, of the test split:

- `text`: the most frequent answer to the same question in the training split; the text alone.
- `other`: the shape of one of the other objects, whichever side it stands on (left and right only).
- `outermost`: the shape of the first object from the left (or the last), whatever object is named.

A question whether something stands left of an object is asked only where exactly one does; that one
then is the first of all but where a wide object reaches over it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import pandas as pd

from mm_lens.data import datasets
from mm_lens.data.sets.scenes.drawing import Scene

COLUMNS = ("n", "text", "other", "outermost")


def learn_texts(rows: Iterable[Any]) -> dict[str, str]:
    """The most frequent answer to each question; the first one where several are."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.text][row.answer] += 1
    return {text: count.most_common(1)[0][0] for text, count in counts.items()}


def outermost(scene: Scene, side: str) -> str:
    """The shape of the object that begins first on the left, or ends last on the right."""
    if side == "left":
        return min(scene.things, key=lambda thing: thing.box[0]).shape
    return max(scene.things, key=lambda thing: thing.box[2]).shape


def share_of_others(scene: Scene, question: str, answer: str) -> float:
    """How many of the objects that are not named have the shape that is right."""
    others = [thing.shape for thing in scene.things if f" {thing.colour} " not in question]
    return others.count(answer) / len(others)


def tabulate(train: Iterable[Any], test: Iterable[Any]) -> pd.DataFrame:
    """Share of right answers of each kind of question, by each rule; NaN where it has no answer."""
    texts, found = learn_texts(train), []
    for row in test:
        kind, scene = row.about["kind"], row.images[0]
        told: dict[str, Any] = {"kind": kind, "n": 1, "text": texts.get(row.text) == row.answer}
        if kind in ("left", "right"):
            told["other"] = share_of_others(scene, row.text, row.answer)
            told["outermost"] = outermost(scene, kind) == row.answer
        found.append(told)
    rules = list(COLUMNS[1:])
    answers = pd.DataFrame(found, columns=["kind", *COLUMNS]).astype(dict.fromkeys(rules, float))
    groups = answers.groupby("kind", sort=False)
    return pd.concat([groups["n"].sum(), groups[rules].mean()], axis=1)


def main() -> None:
    """Print the table."""
    train, test = (datasets.load("scenes", split=split)._rows for split in ("train", "test"))
    print(tabulate(train, test).to_string(float_format="{:.3f}".format, na_rep=""))


if __name__ == "__main__":
    main()
