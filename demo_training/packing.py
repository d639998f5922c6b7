"""Several questions about one image in one sequence, each seeing only the image and itself.

The image costs some 200 tokens, a question 10: packing eight questions behind one image costs a
third more than one question alone. Attention mask and positions make the result exactly what
eight separate sequences would give (tests/test_demo_model.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

_PREFIX, _PAD = 0, -1


@dataclass(frozen=True)
class Packed:
    """A batch of packed sequences, right padded.

    Attributes:
        input_ids: Prefix, then question and answer after question and answer, then padding.
        position_ids: Every question continues from the end of the prefix.
        attention_mask: True where the query (row) may look at the key (column).
        labels: The token that follows each position, set where an answer or its end follows;
            -100 elsewhere.
        question_labels: The same for the words of a question, from its second on.
    """

    input_ids: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch 1 pos pos"]
    labels: Int[Tensor, "batch pos"]
    question_labels: Int[Tensor, "batch pos"]


def pack(
    prefixes: Sequence[Sequence[int]],
    turns: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
    pad_id: int,
) -> Packed:
    """Pack one prefix and several (question, answer) turns per row.

    Args:
        prefixes: Token ids per row, up to the last token before the question.
        turns: Per row, pairs of question ids (up to the end of the prompt) and answer ids.
        pad_id: Token that fills the rows up.
    """
    width = max(
        len(prefix) + sum(len(q) + len(a) for q, a in row)
        for prefix, row in zip(prefixes, turns, strict=True)
    )
    ids = torch.full((len(turns), width), pad_id)
    positions = torch.zeros_like(ids)
    owner = torch.full_like(ids, _PAD)
    labels, question_labels = torch.full_like(ids, -100), torch.full_like(ids, -100)
    for b, (prefix, row) in enumerate(zip(prefixes, turns, strict=True)):
        start = len(prefix)
        ids[b, :start] = torch.tensor(prefix)
        positions[b, :start] = torch.arange(start)
        owner[b, :start] = _PREFIX
        for k, (question, answer) in enumerate(row, start=1):
            stop = start + len(question) + len(answer)
            ids[b, start:stop] = torch.tensor([*question, *answer])
            positions[b, start:stop] = torch.arange(stop - start) + len(prefix)
            owner[b, start:stop] = k
            labels[b, stop - len(answer) - 1 : stop - 1] = torch.tensor(list(answer))
            ends = start + len(question) - 1
            question_labels[b, start:ends] = torch.tensor(list(question[1:]))
            start = stop
    return Packed(ids, positions, _mask(owner), labels, question_labels)


def _mask(owner: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch 1 pos pos"]:
    query = rearrange(owner, "batch query -> batch 1 query 1")
    key = rearrange(owner, "batch key -> batch 1 1 key")
    causal = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    return causal & ((key == query) | (key == _PREFIX))
