"""Visual logit lens: what each image token would say at each layer.

The state of a token is read through the model's own final norm and unembedding, as if the model
stopped there (nostalgebraist 2020, "interpreting GPT: the logit lens"; for image tokens Neo et al.
2024, arXiv 2410.07149). The readout is TransformerLens's `logit_readout`; what is added is the
choice of tokens by what they are, batches of unequal pictures, and bounded memory:
`transformer_lens.tools.analysis.logit_lens` gives the same numbers for all positions of a batch,
and keeps `layers × batch × pos × d_model` several times over. Here layers are read while the model
runs, `chunk_size` tokens at a time, and only the top words are kept. As `logit_readout` looks over
the whole model whenever it is called, states of small models wait for a call together.

An image token predicts the token after it, which in training never was asked for: what the lens
shows is how its state lies to the words' directions, not what the model thinks there is.

Layers are states: 0 enters block 0, l leaves block l - 1; the last gives the model's own logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from einops import rearrange
from jaxtyping import Float32, Int64
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformer_lens.tools.analysis import logit_readout

from mm_lens._notebook import make_table
from mm_lens.arguments import require_whole
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.layout.layout import TokenLayout
from mm_lens.looking.token_values import Where, read_states
from mm_lens.looking.translating import check_lens, layers_of, translate
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.running.logits import Kept, check_path
from mm_lens.model.streams import resolve_layers

ReturnType: TypeAlias = Literal["probs", "log_probs", "logits"]
QUANTITIES: dict[ReturnType, str] = {
    "probs": "probability",
    "log_probs": "log-probability",
    "logits": "logit",
}
"""What values of words are, as pictures say it."""
WAITING_BYTES = 2**26
"""States that wait to be read together: those of a small model all, of a large one a few layers."""


@dataclass(frozen=True, eq=False)
class Readout:
    """Words at tokens and layers; NaN and -1 where a position was not read. All on the CPU.

    Attributes:
        layers: states that were read, as they were asked for: the first axis of every tensor.
        layout: what the positions are.
        quantity: what `top` and `targets` hold.
        top_ids: ids of the top words, best first.
        top: their probability, log probability or logit.
        entropy: of the distribution over the vocabulary, in nats.
        targets: the same quantity for each word that was asked for.
        ranks: its rank, 0 for the top word.
        images: the pictures of each row.
    """

    layers: tuple[int, ...]
    layout: TokenLayout
    quantity: ReturnType
    top_ids: Int64[Tensor, "layers batch pos k"]
    top: Float32[Tensor, "layers batch pos k"]
    entropy: Float32[Tensor, "layers batch pos"]
    targets: Mapping[str, Float32[Tensor, "layers batch pos"]]
    ranks: Mapping[str, Float32[Tensor, "layers batch pos"]]
    tokenizer: Any = field(repr=False)
    images: tuple[tuple[Image.Image, ...], ...] = field(default=(), repr=False)

    def plot(
        self,
        word: str | None = None,
        *,
        layers: Sequence[int] | None = None,
        row: int = 0,
        image: int = 0,
        limits: tuple[float, float] | None = None,
    ) -> Any:
        """Draw a word's value at every image token on the picture, as a matplotlib figure.

        ```python
        visual_logit_lens(model, inputs, targets=["red"]).plot("red")
        ```

        Args:
            word: one of `targets`; None takes the first of them, and without any the top word.
            layers: places in the first axis; None takes up to five, evenly spread.
            row: row of the batch.
            image: image of this row.
            limits: of the colours; None takes the range of the values.

        Raises:
            InputError: there is no such word, image or layer, or no image token was read.
        """
        from mm_lens.drawing.on_image import spread_out
        from mm_lens.drawing.overlay import draw_values

        values, label = self._of_word(word)
        layers = spread_out(len(self.layers)) if layers is None else layers
        return draw_values(
            self._picture(row, image),
            self.layout,
            values[:, row],
            row=row,
            index=image,
            label=label,
            layers=layers,
            names=[f"layer {self.layers[k]}" for k in layers if 0 <= k < len(self.layers)],
            limits=limits,
        )

    def explore(self, word: str | None = None, *, row: int = 0, image: int = 0) -> Any:
        """The same with a slider, and the top words on hover; see `mm_lens.drawing.explore`.

        Args:
            word: one of `targets`; None gives a menu of all of them and the top word.
            row: row of the batch.
            image: image of this row.
        """
        from mm_lens.drawing.explorer import explore

        picture = self._picture(row, image)
        return explore(picture, self.layout, self.kinds(row, word), row=row, index=image)

    def kinds(self, row: int = 0, word: str | None = None) -> dict[str, Any]:
        """What a page has to show of a row, as `mm_lens.drawing.explore` takes it, by its name."""
        from mm_lens.drawing.explorer import Shown

        shown = [self._of_word(each) for each in ([word] if word else self.targets)]
        if word is None:
            shown.append(self._of_top())
        names, words = [f"layer {k}" for k in self.layers], self.words(row)
        return {label: Shown(values[:, row], names, words) for values, label in shown}

    def _of_word(self, word: str | None) -> tuple[Float32[Tensor, "layers batch pos"], str]:
        """What is drawn of a word, and what it is."""
        if word is None and not self.targets:
            return self._of_top()
        word = next(iter(self.targets)) if word is None else word
        if word not in self.targets:
            known = ", ".join(self.targets) or "none"
            raise InputError(
                f"{word!r} is not among the words that were asked for: {known}. Name it in "
                "visual_logit_lens(…, targets=[…])."
            )
        return self.targets[word], f"{QUANTITIES[self.quantity]} of “{word}”"

    def _of_top(self) -> tuple[Float32[Tensor, "layers batch pos"], str]:
        return self.top[..., 0], f"{QUANTITIES[self.quantity]} of the top word"

    def _picture(self, row: int, image: int) -> Image.Image:
        pictures = self.images[row] if 0 <= row < len(self.images) else ()
        if not 0 <= image < len(pictures):
            raise InputError(f"Row {row} has {len(pictures)} image(s); there is no image {image}.")
        return pictures[image]

    def _repr_html_(self) -> str:
        """On the first picture, with a slider; where there is none, the top words of the end."""
        try:
            html: str = self.explore()._repr_html_()
            return html
        except InputError:
            read = enumerate(self.words()[-1])
            rows = [(position, " · ".join(top)) for position, top in read if top]
            return make_table(["position", f"top words at layer {self.layers[-1]}"], rows)

    def words(self, row: int = 0) -> list[list[list[str]]]:
        """Top words of one row of the batch: for each layer and position, best first.

        Empty where a position was not read.
        """
        ids = self.top_ids[:, row]
        spelled = {i: self.tokenizer.decode([i]) for i in ids.unique().tolist() if i >= 0}
        return [
            [[spelled[i] for i in top if i >= 0] for top in position] for position in ids.tolist()
        ]


def visual_logit_lens(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Where = "visual",
    *,
    layers: Sequence[int] | None = None,
    top_k: int = 5,
    targets: Sequence[str] = (),
    quantity: ReturnType = "probs",
    lens: Any = None,
    chunk_size: int = 64,
    progress: bool = False,
) -> Readout:
    """Read image tokens at each layer through the final norm and unembedding.

    Memory: `chunk_size × d_vocab` logits, up to 64 MiB of states that wait (one layer's, if that is
    more), and `layers × batch × pos × top_k` results.

    ```python
    lens = visual_logit_lens(model, model.prepare("what color is it?", image), targets=["red"])
    lens.words()[-1]             # top words of each position at the last layer
    lens.plot("red")             # on the picture; lens.explore() with a slider and the words
    ```

    Args:
        model: the model, in eval mode.
        inputs: what `model.prepare` returned; rows may hold unequal pictures and padding.
        where: which tokens: a group, "last", or a mask; see `mm_lens.token_values`.
        layers: states to read, negative ones from the end; None reads all, or all of the lens.
        top_k: how many words to keep.
        targets: words whose value and rank are wanted at every token; a second readout. A word of
            several tokens stands for its first.
        quantity: "probs", "log_probs" or "logits".
        lens: what states are translated by before they are read: a `TunedLens`, a `JacobianLens`.
        chunk_size: tokens read at a time.
        progress: show a progress bar on stderr.

    Raises:
        InputError: no token or no such layer is asked for, or a target is not a word.
        MMLensError: the last state read like this does not give the model's logits.
    """
    check_inputs(model, inputs)
    mask = group_mask(inputs.layout, where)
    if not mask.any():
        raise InputError(f"These inputs hold no position of {where!r} to read.")
    n_states = model.cfg.n_layers + 1
    fitted = None if lens is None or layers is not None else [*layers_of(lens), n_states - 1]
    wanted = resolve_layers(fitted or layers, n_states)
    check_lens(lens, wanted, n_states, model.cfg.d_model)
    require_whole("top_k", top_k, 1)
    if top_k > model.cfg.d_vocab:
        raise InputError(f"top_k={top_k} is more than the {model.cfg.d_vocab} words there are.")
    require_whole("chunk_size", chunk_size, 1)
    if quantity not in get_args(ReturnType):
        raise InputError(f"quantity is one of {get_args(ReturnType)}, not {quantity!r}.")
    if isinstance(targets, str):
        raise InputError(f"targets is a list of words, as [{targets!r}].")
    target_ids = [first_token(model, word) for word in targets]
    shape = (len(wanted), *mask.shape)
    top_ids = torch.full((*shape, top_k), -1)
    top = torch.full((*shape, top_k), math.nan)
    entropy = torch.full(shape, math.nan)
    values = torch.full((*shape, len(targets)), math.nan)
    ranks = torch.full((*shape, len(targets)), math.nan)
    readout = partial(logit_readout, model, return_type=quantity, chunk_size=chunk_size)
    # One token of each row is enough to see that the path is the model's.
    probe = mask & (mask.cumsum(1) == 1)
    checked: dict[str, Tensor] = {}
    bar = tqdm(total=len(wanted), desc="layers", disable=not progress)

    rows, positions = mask.cpu().nonzero(as_tuple=True)
    waiting: dict[int, Tensor] = {}

    def read_waiting() -> None:
        device = next(iter(waiting.values())).device  # layers may lie on several
        states = torch.cat([states.to(device) for states in waiting.values()])
        found = readout(states, top_k=top_k)
        assert found.top_ids is not None
        at = (torch.tensor([*waiting])[:, None], rows, positions)

        def of_layers(x: Tensor) -> Tensor:
            return rearrange(x.cpu(), "(layers n) ... -> layers n ...", layers=len(waiting))

        top_ids[at], top[at] = of_layers(found.top_ids), of_layers(found.values.float())
        entropy[at] = of_layers(found.entropy)
        if target_ids:
            found = readout(states, targets=target_ids)
            assert found.target_ranks is not None
            values[at] = of_layers(found.values.float())
            ranks[at] = of_layers(found.target_ranks.float())
        bar.update(len(waiting))
        waiting.clear()

    def read(k: int, state: Tensor) -> None:
        if k < len(wanted):
            waiting[k] = translate(lens, state[mask.to(state.device)], wanted[k], n_states)
            if sum(states.nbytes for states in waiting.values()) >= WAITING_BYTES:
                read_waiting()
        if layered[k] == n_states - 1:
            checked["read"] = logit_readout(model, state[probe.to(state.device)]).values

    layered = wanted if n_states - 1 in wanted else (*wanted, n_states - 1)
    with bar:
        some = probe.any(1).nonzero()[:, 0]  # of the other rows any position will do
        kept = Kept(model, probe.int().argmax(1))
        logits = kept.of(read_states(model, inputs, layered, read, **kept.options))[:, 0]
        if waiting:
            read_waiting()
    check_path(checked["read"].cpu().float(), logits[some.to(logits.device)].cpu().float())
    return Readout(
        layers=wanted,
        layout=inputs.layout.to("cpu"),
        quantity=quantity,
        top_ids=top_ids,
        top=top,
        entropy=entropy,
        targets={word: values[..., i] for i, word in enumerate(targets)},
        ranks={word: ranks[..., i] for i, word in enumerate(targets)},
        tokenizer=model.tokenizer,
        images=inputs.images,
    )


def first_token(model: VisionLanguageBridge, word: str) -> int:
    """Id of the first token of a word as it stands in an answer, after a space.

    Raises:
        InputError: the text makes no token.
    """
    ids = model.tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"]
    spelled = [i for i in ids if model.tokenizer.decode([i]).strip()]
    if not spelled:
        raise InputError(f"{word!r} makes no token: there is nothing to read.")
    return int(spelled[0])
