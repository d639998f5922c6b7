"""Where the model is to look while it answers: dense supervision of the language model.

To find the object that a question names, words have to be compared with image tokens, both shape
and colour of the same one; the answer alone rewards that so rarely that yes and no stay at chance
for a thousand steps. What is named is known, so one head is told: before it answers, look at the
tokens of what the question names, and at the first token where there is no such thing. A head of
the next block is told to look at what stands left or right of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from demo_training.scenes.describing import places, whole
from demo_training.scenes.packing import Rooms
from mm_lens.data.sets.scenes.drawing import Scene
from mm_lens.data.sets.scenes.questions import Question


def named(scene: Scene, question: Question) -> list[int]:
    """The objects that a question names."""
    return question.meant(scene)


def beside(scene: Scene, question: Question) -> list[int]:
    """The objects that stand where it asks; of other questions, those that it names."""
    meant = question.meant(scene)
    if question.kind not in ("left", "right"):
        return meant
    return [i for i in question.subjects(scene) if i not in meant]


def wanted(
    scene: Scene, things: Sequence[int], grid: int, first: int, length: int
) -> Float[Tensor, " prefix"]:
    """Shares of attention over a prefix.

    Args:
        scene: what is shown.
        things: which of its objects to look at; of none, it is the first position.
        grid: side of the whole picture in tokens.
        first: where in the prefix the picture begins.
        length: of the prefix.
    """
    shares = torch.zeros(length)
    if not things:
        shares[0] = 1
        return shares
    only = Scene(
        scene.width, scene.height, scene.ground, scene.grain, tuple(scene.things[i] for i in things)
    )
    loud = places(only, whole(scene), grid).sum(-1)
    shares[first : first + grid**2] = loud / loud.sum()
    return shares


def stray(
    rooms: Rooms, layer: int, head: int, aims: Float[Tensor, "batch room prefix"], ends: Tensor
) -> Float[Tensor, ""]:
    """Cross-entropy of where a head looks at the end of each question.

    Args:
        rooms: of the last pass.
        layer: of the head.
        head: of that layer.
        aims: where it is to look.
        ends: of each question, its last position in its room.
    """
    shares = rooms.shares[layer][:, head]
    batch, count = ends.shape
    rows = torch.arange(count) * rooms.length + ends
    looked = shares[torch.arange(batch)[:, None], rows]
    return -(aims.to(looked.device) * (looked + 1e-6).log()).sum(-1).mean()
