"""What a state is nearest to: rows of the embedding, or states of words in texts (LatentLens).

Nearest by cosine. Embedding rows are words out of context, at the very entrance: what an image
token is near to there says little of later layers. LatentLens (arXiv 2602.00462) asks instead which
words *in texts* the model gives a like state: an index of these
(`mm_lens.looking.lenses.text_index`) is built once, and searched for each image token, over the
index's layers together or at its own.

What it finds is as good as the texts: a word that they lack is never named. Where all states share
a large common part, cosines are all near 1 and their order is what counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from mm_lens.arguments import require_whole
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.layout.layout import TokenLayout
from mm_lens.looking.lenses.text_index import TextIndex
from mm_lens.looking.token_tensor import TokenValues, name_layers
from mm_lens.looking.token_values import Where, read_states
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.streams import resolve_layers

Find = Callable[[int, Tensor], "tuple[Tensor, Tensor, Tensor]"]
"""From a layer and states [n, d] to the cosine, number and layer of each one's nearest, [n, k]."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What states are nearest to, by layer, the nearest first; on the CPU.

    Attributes:
        layers: states that were read.
        inputs: of these.
        cosine: NaN where a position was not read.
        entries: which word of the vocabulary, or entry of the index; -1 where none was read.
        at_layers: the layer of the index that it was found at; 0 for embeddings.
    """

    layers: tuple[int, ...]
    inputs: Inputs = field(repr=False)
    cosine: Float32[Tensor, "layer batch pos k"] = field(repr=False)
    entries: Int64[Tensor, "layer batch pos k"] = field(repr=False)
    at_layers: Int64[Tensor, "layer batch pos k"] = field(repr=False)
    spell: Callable[[int], str] = field(repr=False)

    @property
    def layout(self) -> TokenLayout:
        """What the positions are."""
        return self.inputs.layout

    @property
    def best(self) -> Float32[TokenValues, "layer batch pos"]:
        """Cosine to the nearest, drawn by `.plot()` and `.explore()`."""
        return TokenValues.of(
            self.cosine[..., 0].clone(),
            self.inputs,
            "cosine to the nearest",
            name_layers(self.layers),
        )

    def words(self, row: int = 0) -> list[list[list[str]]]:
        """For each layer and position of a row its nearest, as `Readout.words`."""
        ids = self.entries[:, row]
        spelled = {i: self.spell(i) for i in ids.unique().tolist() if i >= 0}
        return [[[spelled[i] for i in top if i >= 0] for top in at] for at in ids.tolist()]


def embedding_neighbours(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Where = "visual",
    *,
    layers: Sequence[int] | None = None,
    top_k: int = 5,
    chunk_size: int = 64,
) -> Neighbours:
    """Rows of the input embedding that states are nearest to, by cosine.

    Args:
        model: the model.
        inputs: what `model.prepare` returned.
        where: which tokens.
        layers: states to read, negative ones from the end; None reads all.
        top_k: how many neighbours.
        chunk_size: tokens at a time; memory is `chunk_size × d_vocab`.

    Raises:
        InputError: there is no such token or layer.
    """
    weight = model.original_model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    rows = torch.nn.functional.normalize(weight.float(), dim=-1)
    # The placeholder's row is in no prompt's states: what stands there is the image.
    if 0 <= model.family.image_token_id < len(rows):
        rows[model.family.image_token_id] = torch.nan

    def find(layer: int, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = [
            (torch.nn.functional.normalize(x.float(), dim=-1) @ rows.T).nan_to_num(-2).topk(top_k)
            for x in states.to(rows.device).split(chunk_size)
        ]
        entries = torch.cat([x.indices for x in found])
        return torch.cat([x.values for x in found]), entries, torch.zeros_like(entries)

    _check_count(top_k, len(rows))
    require_whole("chunk_size", chunk_size, 1)
    return _search(
        model, inputs, where, layers, top_k, find, lambda i: str(model.tokenizer.decode([i]))
    )


def latent_lens(
    model: VisionLanguageBridge,
    inputs: Inputs,
    index: TextIndex,
    where: Where = "visual",
    *,
    layers: Sequence[int] | None = None,
    same_layer: bool = False,
    top_k: int = 5,
    chunk_size: int = 64,
) -> Neighbours:
    """Words in texts whose states are nearest, from an index of texts.

    ```python
    index = build_text_index(model, texts)
    latent_lens(model, inputs, index).words()[8]        # "a [red] circle", …
    ```

    Args:
        model: that the index was built with.
        inputs: what `model.prepare` returned.
        index: of `build_text_index`, or loaded.
        where: which tokens.
        layers: states to read, negative ones from the end; None reads all (with `same_layer` those
            of the index).
        same_layer: compare with states of the same layer only.
        top_k: how many neighbours.
        chunk_size: tokens at a time; memory is `chunk_size × entries`, and a layer of the index.

    Raises:
        InputError: there is no such token or layer; the index is of another model or too small.
    """
    if index.states.shape[-1] != model.cfg.d_model:
        raise InputError(
            f"The index is of states of {index.states.shape[-1]} numbers, those of this model have "
            f"{model.cfg.d_model}: it was built with another model."
        )
    _check_count(top_k, len(index.contexts))
    require_whole("chunk_size", chunk_size, 1)
    asked = list(index.layers) if same_layer and layers is None else layers

    def find(layer: int, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = [layer] if same_layer else None
        found = [index.nearest(x, top_k, at) for x in states.split(chunk_size)]
        cosine, entries, layers = (torch.cat(x) for x in zip(*found, strict=True))
        return cosine, entries, layers

    return _search(model, inputs, where, asked, top_k, find, index.contexts.__getitem__)


def _check_count(top_k: int, there: int) -> None:
    if require_whole("top_k", top_k, 1) > there:
        raise InputError(f"top_k={top_k} is more than the {there} words there are.")


def _search(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Where,
    layers: Sequence[int] | None,
    top_k: int,
    find: Find,
    spell: Callable[[int], str],
) -> Neighbours:
    check_inputs(model, inputs)
    mask = group_mask(inputs.layout, where).cpu()
    if not mask.any():
        raise InputError(f"These inputs hold no position of {where!r} to read.")
    wanted = resolve_layers(layers, model.cfg.n_layers + 1)
    shape = (len(wanted), *mask.shape, top_k)
    cosine = torch.full(shape, torch.nan)
    entries, at = torch.full(shape, -1), torch.full(shape, -1)

    def read(k: int, state: Float[Tensor, "batch pos d"]) -> None:
        found = find(wanted[k], state[mask.to(state.device)])
        cosine[k, mask], entries[k, mask], at[k, mask] = (x.cpu() for x in found)

    read_states(model, inputs, wanted, read)
    return Neighbours(wanted, inputs, cosine, entries, at, spell)
