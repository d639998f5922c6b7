"""States of words in texts, to be searched: the index of LatentLens.

The texts are run without an image. Of each word of the vocabulary at most so many occurrences are
kept, so that frequent ones do not fill the index; the first position of a text, where states are
those of a sink, and special tokens are none. Memory and file: layers × entries × d.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from einops import einsum
from jaxtyping import Float, Int64
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mm_lens.arguments import require_whole
from mm_lens.errors import InputError
from mm_lens.looking.lenses.stored import open_stored
from mm_lens.looking.token_values import read_states
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.streams import resolve_layers

FORMAT = "mm_lens text index 1"
BEFORE, AFTER = 6, 3
"""Tokens around a word that are shown with it."""


@dataclass(frozen=True, eq=False)
class TextIndex:
    """States of words in texts.

    Attributes:
        layers: states that were kept.
        states: of length 1.
        contexts: each word in its text, the word in brackets.
    """

    layers: tuple[int, ...]
    states: Float[Tensor, "layer entry d"] = field(repr=False)
    contexts: tuple[str, ...] = field(repr=False)

    def nearest(
        self, states: Float[Tensor, "n d"], k: int, layers: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"], Int64[Tensor, "n k"]]:
        """Cosine, entry and layer of the nearest of each state.

        An entry is named once, at the layer where it is nearest.

        Raises:
            InputError: the index has no such layer.
        """
        asked = self.layers if layers is None else tuple(layers)
        if missing := [layer for layer in asked if layer not in self.layers]:
            raise InputError(
                f"The index holds no layer {missing[0]}, but {', '.join(map(str, self.layers))}. "
                "Build it with layers=…, or search all of them (same_layer=False)."
            )
        unit = torch.nn.functional.normalize(states.float(), dim=-1)
        shape = (len(unit), len(self.contexts))
        best = torch.full(shape, -torch.inf, device=unit.device)
        at = torch.zeros(shape, dtype=torch.long, device=unit.device)
        for layer in asked:  # one layer of the index at a time
            stored = self.states[self.layers.index(layer)].to(unit.device).float()
            cosines = einsum(unit, stored, "n d, entry d -> n entry")
            at = torch.where(cosines > best, layer, at)
            best = torch.maximum(best, cosines)
        top = best.topk(k)
        return top.values, top.indices, at.gather(1, top.indices)

    def save(self, path: str | Path) -> None:
        """Write it into a safetensors file."""
        # The texts as bytes: metadata of a file are small.
        told = torch.frombuffer(bytearray(json.dumps(self.contexts).encode()), dtype=torch.uint8)
        save_file(
            {"states": self.states.contiguous(), "contexts": told},
            Path(path),
            metadata={"format": FORMAT, "layers": json.dumps(self.layers)},
        )

    @classmethod
    def load(cls, path: str | Path) -> TextIndex:
        """Read what `save` wrote.

        Raises:
            DataError: the file is not there, or none of these.
        """
        with open_stored(path, "text index", FORMAT) as file:
            states, contexts = (file.get_tensor(x) for x in ("states", "contexts"))
            texts = json.loads(bytes(contexts.tolist()).decode())
            layers = tuple(json.loads(file.metadata()["layers"]))
        return cls(layers, states, tuple(texts))


def build_text_index(
    model: VisionLanguageBridge,
    texts: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    most_per_word: int = 20,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float16,
    progress: bool = False,
) -> TextIndex:
    """Run texts, and keep the states of their words.

    Args:
        model: the model.
        texts: sentences; as they are, without the chat template.
        layers: states to keep, negative ones from the end; None keeps all.
        most_per_word: occurrences of a token that are kept, the first ones.
        batch_size: texts at a time.
        dtype: of what is kept; in 16 bit cosines are right to 0.001.
        progress: show a progress bar on stderr.

    Raises:
        InputError: no text, no such layer, or no word in any of them.
    """
    require_whole("most_per_word", most_per_word, 1)
    require_whole("batch_size", batch_size, 1)
    if isinstance(texts, str) or not texts:
        raise InputError('texts is a list of sentences, as ["a red circle", …].')
    numbers = resolve_layers(layers, model.cfg.n_layers + 1)
    parts: dict[int, list[Tensor]] = {k: [] for k in numbers}
    contexts: list[str] = []
    counted: Counter[int] = Counter()
    special = {*model.tokenizer.all_special_ids, model.family.image_token_id}
    for start in tqdm(range(0, len(texts), batch_size), desc="texts", disable=not progress):
        some = list(texts[start : start + batch_size])
        inputs = model.prepare(some, [None] * len(some), chat_template=False)
        mask = inputs.layout.mask("text").cpu()
        chosen = torch.zeros_like(mask)
        for row, ids in enumerate(inputs.input_ids.cpu()):
            places = mask[row].nonzero()[:, 0].tolist()
            for number, position in enumerate(places):
                token = int(ids[position])
                if not number or token in special or counted[token] >= most_per_word:
                    continue
                counted[token] += 1
                chosen[row, position] = True
                contexts.append(_show(model, ids, places, number))

        def read(k: int, state: Tensor, chosen: Tensor = chosen) -> None:
            rows = state[chosen.to(state.device)].float()
            parts[numbers[k]].append(torch.nn.functional.normalize(rows, dim=-1).to(dtype).cpu())

        if chosen.any():
            with model.text_only_allowed():
                read_states(model, inputs, numbers, read)
    if not contexts:
        raise InputError("The texts hold no word behind their first token: give longer ones.")
    stacked = torch.stack([torch.cat(parts[k]) for k in numbers])
    return TextIndex(numbers, stacked, tuple(contexts))


def _show(model: VisionLanguageBridge, ids: Tensor, places: Sequence[int], number: int) -> str:
    """A word in its text."""

    def spell(part: Sequence[int]) -> str:
        return str(model.tokenizer.decode(ids[list(part)], skip_special_tokens=True))

    before, after = places[max(0, number - BEFORE) : number], places[number + 1 :][:AFTER]
    return f"{spell(before)}[{spell([places[number]])}]{spell(after)}"
