"""Task vectors across modalities: what a text asks, as a state, put into a run with a picture.

A *task* is a kind of question (the column `kind`). Its vector is the mean state of the last
position over its questions, asked without a picture. It replaces the last position's state in a run
of a picture with a question of another kind.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.utilities.statistics import derive_generator

from mm_lens.causal.ablation import ablation_hooks, mean_activation
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import NamedHook
from mm_lens.recipes.questions import Asked, make_answers, read_all
from mm_lens.recipes.recipe import Measured, Recipe, summarise_changes

Vectors = Mapping[int, Tensor]


def move_tasks(model: VisionLanguageBridge, asked: Sequence[Asked], seed: int) -> Measured:
    """Choose the block on half of the pictures, and count right answers of the others."""
    kinds = list(dict.fromkeys(str(question.sample.about.get("kind")) for question in asked))
    if len(kinds) < 2:
        columns = ["question", "id", "picture", "layer", "vector", "right", "probability"]
        nothing = pd.DataFrame({column: [] for column in columns})
        why = "Tasks are kinds of questions (column kind): the data hold one."
        return Measured(math.nan, math.nan, math.nan, nothing, why)
    texts = {
        kind: Counter(q.sample.text for q in asked if str(q.sample.about.get("kind")) == kind)
        for kind in kinds
    }
    vectors = {kind: _vectors(model, [*texts[kind]]) for kind in kinds}
    rows = []
    for number, question in enumerate(asked):
        kind = str(question.sample.about.get("kind"))
        other = kinds[(kinds.index(kind) + 1) % len(kinds)]
        moved = _ask_another(model, question, asked, texts[other].most_common(1)[0][0])
        about = {"question": number, "id": question.sample.id, "picture": question.picture}
        for name, of in (("none", None), ("task", kind), ("control", other)):
            for layer in [-1] if of is None else range(model.cfg.n_layers):
                hooks = [] if of is None else _put(model, moved, vectors[of], layer)
                with model.hooks(fwd_hooks=hooks):
                    found = read_all(model, moved)
                told = {"right": found["accuracy"], "probability": found["probability"]}
                rows.append({**about, "layer": layer, "vector": name, **told})
    table = pd.DataFrame(rows)
    pictures = table["picture"].unique()
    if len(pictures) < 2:
        why = "One picture is too few to choose on."
        return Measured(math.nan, math.nan, math.nan, table, why)
    order = torch.randperm(len(pictures), generator=derive_generator(seed, "halves")).numpy()
    choosing = table["picture"].isin(pictures[order[: len(order) // 2]])
    task = table["vector"] == "task"
    by_layer = table[choosing & task].groupby("layer")["right"].mean()
    best = int(by_layer.index[int(by_layer.to_numpy().argmax())])
    rest = table[~choosing & (table["layer"] == best)]
    wide = rest.pivot_table(index="question", columns="vector", values="right")
    change = wide["task"] - wide["control"]
    left = [asked[k] for k in change.index]
    guess = sum(1 / len(question.answers.options) for question in left) / len(left)
    note = (
        f"after block {best}: {wide['task'].mean():.2f} right with the task's vector, "
        f"{wide['control'].mean():.2f} with that of the other; "
        f"{guess:.2f} by guessing among the options of the task"
    )
    return summarise_changes(change.tolist(), left, table, seed, note)


def _vectors(model: VisionLanguageBridge, texts: Sequence[str]) -> Vectors:
    """Mean state of the last position after each block, of questions without a picture."""
    with model.text_only_allowed():
        inputs = [model.prepare(text, None) for text in texts]
        return mean_activation(model, inputs, "last", layers=range(model.cfg.n_layers))


def _ask_another(
    model: VisionLanguageBridge, question: Asked, asked: Sequence[Asked], text: str
) -> Asked:
    """The picture with another question; right is what is right of the first, of all options."""
    options = list(dict.fromkeys(option for other in asked for option in other.answers.options))
    inputs = model.prepare(text, question.sample.images[0])
    answers = make_answers(model, inputs, options, str(question.sample.answer))
    return replace(question, inputs=inputs, answers=answers)


def _put(
    model: VisionLanguageBridge, moved: Asked, vectors: Vectors, layer: int
) -> list[NamedHook]:
    """The vector in the place of the last position's state after a block."""
    return ablation_hooks(model, moved.inputs, "last", layers=[layer], how="mean", means=vectors)


RECIPES = (
    Recipe(
        name="task-vectors",
        paper="Luo et al., Vision-Language Models Create Cross-Modal Task Representations, arXiv "
        "2410.22330",
        claim="What is asked is one vector, whatever it was asked in: that of a text has the model "
        "do the task on a picture.",
        statistic="share of right answers, among the options of all tasks, when the last "
        "position's state in a run of the picture with the question of another task is replaced by "
        "the task's mean state in questions without a picture, less the share with the vector of "
        "that other task; after the block that is best on half of the pictures, on the others",
        threshold=0.0,
        above=True,
        published="several models: one vector does better than the task in words, across "
        "modalities (the abstract), no figure of this kind",
        miniature="Two tasks, named in every question that it was trained on: a task of examples "
        "is none that a miniature knows.",
        measure=move_tasks,
    ),
)
