"""Patchscopes: a state is put into another prompt, and the model goes on from there in words.

The state of a token at layer `l` takes the place of the placeholder's state at layer `l'` of a
prompt that makes the model say what stands there (Ghandeharioun et al. 2024, arXiv 2401.06102): by
default one that repeats words. What is written is what the model can decode from the state, with
all its later blocks; what those blocks add of their own (the most likely word after such a prompt)
is written too, so put in a state of nothing (a mean) beside it.

Cost: one pass of the inputs; for each token one short prompt and `new_tokens` decoding steps.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mm_lens.arguments import require_whole
from mm_lens.errors import InputError
from mm_lens.layout.groups import group_mask
from mm_lens.looking.token_values import Where, find_words, read_states
from mm_lens.model.bridge import VisionLanguageBridge
from mm_lens.model.hooks import find_frame
from mm_lens.model.inputs import Inputs, check_inputs
from mm_lens.model.streams import resolve_layers, state_names

TARGET = "cat -> cat; 1135 -> 1135; hello -> hello; ?"
"""The identity prompt of the paper."""


def patchscope(
    model: VisionLanguageBridge,
    inputs: Inputs,
    where: Where = "visual",
    *,
    layer: int,
    target: str = TARGET,
    placeholder: str = "?",
    target_layer: int | None = None,
    new_tokens: int = 5,
    batch_size: int = 16,
) -> pd.DataFrame:
    """What the model writes when a token's state stands in the place of the placeholder.

    ```python
    patchscope(model, inputs, layer=4, target_layer=0)    # row, position, text
    ```

    Args:
        model: in evaluation mode.
        inputs: what `model.prepare` returned.
        where: which tokens' states are put in, one after the other.
        layer: state that is taken, negative ones from the end.
        target: the prompt that it is put into, without an image, and without the chat template.
        placeholder: text of `target` whose last token it takes the place of, where it stands last.
        target_layer: state in whose place it is put; None: `layer`.
        new_tokens: tokens to write, greedily.
        batch_size: tokens of `where` at a time.

    Returns:
        A row for each token: row, position, text, and token_ids, what was written.

    Raises:
        InputError: there is no such token or layer; the last state of the prompt would be replaced;
            the placeholder is not in the prompt.
    """
    check_inputs(model, inputs)
    require_whole("new_tokens", new_tokens, 1)
    require_whole("batch_size", batch_size, 1)
    n_states = model.cfg.n_layers + 1
    (source,) = resolve_layers([layer], n_states)
    (aim,) = resolve_layers([layer if target_layer is None else target_layer], n_states)
    mask = group_mask(inputs.layout, where).cpu()
    if not mask.any():
        raise InputError(f"These inputs hold no position of {where!r} to read.")
    held: list[Tensor] = []
    read_states(model, inputs, [source], lambda k, state: held.append(state[mask.to(state.device)]))
    written: list[Tensor] = []
    name = state_names(n_states - 1)[aim]
    with model.text_only_allowed():
        for states in held[0].split(batch_size):
            written.append(_write(model, states, target, placeholder, name, new_tokens))
    tokens = torch.cat(written)
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    rows, positions = mask.nonzero(as_tuple=True)
    return pd.DataFrame(
        {
            "row": rows.tolist(),
            "position": positions.tolist(),
            "text": texts,
            "token_ids": tokens.tolist(),
        }
    )


def _write(
    model: VisionLanguageBridge,
    states: Float[Tensor, "n d"],
    target: str,
    placeholder: str,
    name: str,
    new_tokens: int,
) -> Tensor:
    n = len(states)
    prompt = model.prepare([target] * n, [None] * n, chat_template=False, padding_side="left")
    here = _last(find_words(model, prompt, placeholder))

    def put(tensor: Tensor, hook: Any) -> Tensor | None:
        place = find_frame(hook).place(prompt.layout, "The patchscope")
        inside = place.of(torch.nn.functional.pad(here, (0, place.total - here.shape[1])))
        if not bool(inside.any()):
            return None
        out = tensor.clone()
        out[inside.to(tensor.device)] = states[place.rows.to(states.device)].to(tensor)
        return out

    with model.hooks(fwd_hooks=[(name, put)]):
        found: Tensor = model.generate(
            prompt,
            max_new_tokens=new_tokens,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            return_type="tokens",
        )
    return found[:, prompt.input_ids.shape[1] :].cpu()


def _last(mask: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """The last position of each row's mask alone."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)
