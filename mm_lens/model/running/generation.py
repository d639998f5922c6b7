"""Generation by the model's own code, called as TransformerLens calls its own.

TransformerLens's loop gives every decoding step the mask of the whole sequence and no positions,
and the image to the first step only. What the positions of a new token are, which cache its
attention keeps, and what of the image is needed again, is known to the model's own `generate` of
transformers. So that one runs: hook points fire in it as in any pass, since its modules are the
bridge's. Arguments and results stay those of TransformerLens; what the checkpoint's
`generation_config` says of sampling does not count, as in TransformerLens.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.tokenize_utils import get_attention_mask
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mm_lens.errors import InputError
from mm_lens.layout.layout import TEXT, TokenLayout
from mm_lens.model.families import without_own

if TYPE_CHECKING:
    from mm_lens.model.bridge import VisionLanguageBridge

_OWN = ("return_cache", "forced_bos_token_id")
"""Arguments of TransformerLens that its own loop answers."""

_STOPPING = ("stop_strings", "stopping_criteria")
"""Arguments that its own loop answers for texts, and refuses for images."""


def generate(bridge: VisionLanguageBridge, input: Any, *args: Any, **kwargs: Any) -> Any:
    """As `TransformerBridge.generate`; further arguments are those of transformers (`num_beams`).

    Args:
        bridge: the model.
        input: tokens, text, or a list of texts.
        args: as `TransformerBridge.generate` takes them.
        kwargs: as `TransformerBridge.generate` takes them, and tensors of the images.

    Raises:
        InputError: an argument is neither of the two, nor one of the model.
    """
    asked = inspect.signature(TransformerBridge.generate).bind(bridge, input, *args, **kwargs)
    asked.apply_defaults()
    a = asked.arguments
    _check_sampling(a)
    tokens, mask = _tokens(bridge, input, a["prepend_bos"], a["padding_side"], a["attention_mask"])
    tensors, options = _sort(bridge, a["multimodal_kwargs"])
    if a["pixel_values"] is not None:
        tensors["pixel_values"] = a["pixel_values"]
    if mask is not None:
        tensors["attention_mask"] = mask
    stops, filler = _stops(bridge, a)
    if a["do_sample"] and a["temperature"] != 0:
        options = {
            "do_sample": True,
            "temperature": float(a["temperature"]),
            "top_k": a["top_k"] or 0,
            # As in TransformerLens: what top_k leaves is not cut once more.
            "top_p": 1.0 if a["top_p"] is None or a["top_k"] else a["top_p"],
            **options,
        }
        if a["freq_penalty"]:
            penalty = FrequencyPenalty(a["freq_penalty"] * options["temperature"])
            options["logits_processor"] = LogitsProcessorList([penalty])
    if a["stopping_criteria"] is not None:
        criteria = a["stopping_criteria"]
        options["stopping_criteria"] = criteria if isinstance(criteria, list) else [criteria]
    if a["stop_strings"] is not None:
        options |= {"stop_strings": a["stop_strings"], "tokenizer": bridge.tokenizer}
    with _plain_config(bridge.original_model), torch.no_grad():
        found = bridge.original_model.generate(  # type: ignore[operator]
            tokens,
            max_new_tokens=a["max_new_tokens"],
            repetition_penalty=float(a["repetition_penalty"]),
            use_cache=a["use_past_kv_cache"],
            eos_token_id=stops,
            pad_token_id=filler,
            output_logits=a["output_logits"] or None,
            return_dict_in_generate=a["output_logits"],
            **options,
            **tensors,
        )
    if a["output_logits"]:
        result = found
    elif a["return_type"] == "str" or (a["return_type"] == "input" and a["input"] is not tokens):
        texts = bridge.tokenizer.batch_decode(found, skip_special_tokens=True)
        result = texts[0] if len(texts) == 1 else texts
    else:
        result = found
    return (result, tokens) if a["return_input_tokens"] else result


class FrequencyPenalty(LogitsProcessor):
    """TransformerLens's: takes off `penalty` for each time that a token stands in the sequence."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """The scores less what is taken off."""
        counts = scores.new_zeros(scores.shape)
        inside = input_ids < scores.shape[-1]  # markers of a family may have no logit
        counts.scatter_add_(1, input_ids * inside, inside.to(scores))
        return scores - self.penalty * counts


def follows_own_loop(
    bridge: VisionLanguageBridge, input: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether TransformerLens's own loop is right: for text, where positions are counted plainly.

    It also answers what only it can: embeddings, a cache of what was made, and where to stop in a
    text; with its own errors, also for images, where it can not.
    """
    known = list(inspect.signature(TransformerBridge.generate).parameters)
    given = {**dict(zip(known[2:], args, strict=False)), **kwargs}
    embedded = isinstance(input, Tensor) and input.is_floating_point()
    if embedded or any(given.get(name) for name in _OWN):
        return True
    plain = all(value is None or name in known for name, value in without_own(kwargs).items())
    seen = bool(bridge.family.pixels(given))
    if any(given.get(name) is not None for name in _STOPPING) and (plain or seen):
        return True
    return plain and not seen and bridge._accepts_derived_position_ids()


def decoding_positions(
    bridge: VisionLanguageBridge, tokens: Any, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Positions of the new tokens of a decoding step, where the model counts them its own way.

    For loops that call the model step by step (`past_key_values`), TransformerLens's
    `generate_stream` among them: the model would take the positions of the whole mask. A prompt
    without an image forgets what the last one left (`rope_deltas`), as in transformers' `generate`.
    """
    base: Any = getattr(bridge.original_model, "base_model", bridge.original_model)
    if not isinstance(tokens, Tensor) or tokens.is_floating_point():
        return {}
    if not hasattr(base, "rope_deltas"):
        return {}
    past = kwargs.get("past_key_values")
    length = 0 if past is None else past.get_seq_length()
    if not length:
        if kwargs.get("pixel_values") is None:
            base.rope_deltas = None
        return {}
    if kwargs.get("position_ids") is not None:
        return {}
    batch, n = tokens.shape
    counted = torch.arange(length, length + n, device=tokens.device).expand(batch, n)
    if (deltas := base.rope_deltas) is not None:
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2 and mask.shape[1] == length + n:
            counted = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -n:]
        counted = counted + deltas.to(counted).repeat_interleave(batch // len(deltas), 0)
    return {"position_ids": counted.expand(3, batch, n)}


def _check_sampling(asked: dict[str, Any]) -> None:
    """Refuse what TransformerLens's `sample_logits` refuses: transformers takes some of it."""
    if asked["freq_penalty"] < 0:
        raise InputError(f"freq_penalty is not negative, but {asked['freq_penalty']} is.")
    if not asked["do_sample"] or asked["temperature"] == 0:
        return
    if asked["top_k"] is not None and asked["top_k"] <= 0:
        raise InputError(f"top_k is at least 1, or None for all tokens, not {asked['top_k']}.")
    if asked["top_p"] is not None and not 0 < asked["top_p"] <= 1:
        raise InputError(f"top_p is above 0 and at most 1, not {asked['top_p']}.")


def _tokens(
    bridge: VisionLanguageBridge,
    input: Any,
    prepend_bos: bool | None,
    padding_side: str | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Tokens of what TransformerLens takes, and what of them is padding."""
    if isinstance(input, Tensor):
        if mask is None and padding_side is not None:
            if getattr(bridge.tokenizer, "pad_token_id", None) is None:
                raise InputError(
                    "padding_side reads what is padding off the tokens, but the tokenizer has no "
                    "pad token. Pass attention_mask."
                )
            bos = bridge.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
            mask = get_attention_mask(bridge.tokenizer, input, bos, padding_side)
        return input, mask
    several = not isinstance(input, str) and len(input) > 1
    side = "left" if several else None
    tokens = bridge.to_tokens(input, prepend_bos=prepend_bos, padding_side=side, truncate=False)
    if several and mask is None:
        bos = bridge.cfg.default_prepend_bos
        mask = get_attention_mask(bridge.tokenizer, tokens, bos, "left").to(tokens.device)
    return tokens, mask


def _sort(
    bridge: VisionLanguageBridge, rest: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the model, and of transformers' `generate`."""
    options = {
        name: value
        for name, value in rest.items()
        if hasattr(GenerationConfig(), name) or name == "logits_processor"
    }
    tensors = {k: v for k, v in without_own(rest).items() if k not in options}
    known = inspect.signature(bridge.original_model.forward).parameters
    taken = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for name, value in tensors.items():
        if name not in known and not (taken and isinstance(value, Tensor)):
            raise InputError(
                f"generate takes no {name}=: it is no argument of TransformerLens's generate, of "
                "transformers' or of the model."
            )
    return tensors, options


def _stops(bridge: VisionLanguageBridge, asked: dict[str, Any]) -> tuple[Any, int | None]:
    """Tokens that end a row, and what a row that ended is filled up with; as TransformerLens."""
    own = None if bridge.tokenizer is None else bridge.tokenizer.eos_token_id
    if not asked["stop_at_eos"]:
        pad = None if bridge.tokenizer is None else bridge.tokenizer.pad_token_id
        return None, own if pad is None else pad
    stop = asked["eos_token_id"]
    if stop is None:
        stop = getattr(bridge.cfg, "eos_token_id", None)
    if stop is None:
        stop = own
    if stop is None:
        raise InputError(
            "The tokenizer has no end-of-sequence token to stop at. Pass eos_token_id=, or "
            "stop_at_eos=False."
        )
    if isinstance(stop, int):
        return stop, stop
    return list(stop), next(iter(stop)) if own is None else own


def find_stops(bridge: VisionLanguageBridge) -> frozenset[int]:
    """Tokens that end what is generated, where the call does not name others."""
    stop, _ = _stops(bridge, {"stop_at_eos": True, "eos_token_id": None})
    return frozenset([stop] if isinstance(stop, int) else stop)


@contextmanager
def _plain_config(model: Any) -> Iterator[None]:
    """Leave out what the checkpoint says of sampling, beams and stops: the call says it all."""
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def split_stream(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `TransformerBridge.generate_stream`, and tensors that it does not take."""
    known = inspect.signature(TransformerBridge.generate_stream).parameters
    tensors = {k: v for k, v in kwargs.items() if k not in known and isinstance(v, Tensor)}
    return {k: v for k, v in kwargs.items() if k not in tensors}, tensors


def steps_of(stream: Any, bridge: VisionLanguageBridge, bound: Any) -> Generator[Any, None, None]:
    """The items of a stream, with inputs bound while a step runs, not while the caller looks."""
    while True:
        with bridge.bound(bound):
            item = next(stream, None)
        if item is None:
            return
        yield item


def with_answer(layout: TokenLayout, n: int) -> TokenLayout:
    """The layout with `n` positions of text behind it, which the model wrote."""
    names = layout.segment_names
    own = "answer" in names  # of a family that names its segments itself
    segment = torch.full(
        (layout.shape[0], n), names.index("answer" if own else "text after"), device=layout.device
    )
    if not own:
        after, only = (
            (layout.segment == names.index(name)).any(1) for name in ("text after", "text only")
        )
        segment[only & ~after] = names.index("text only")
    fills: dict[str, Any] = {"modality": TEXT, "newline": False, "box": torch.nan}

    def grow(name: str, value: Tensor) -> Tensor:
        more = value.new_full((value.shape[0], n, *value.shape[2:]), fills.get(name, -1))
        return torch.cat([value, segment.to(value.dtype) if name == "segment" else more], 1)

    grown: dict[str, Any] = {
        f.name: grow(f.name, value)
        for f in fields(layout)
        if isinstance(value := getattr(layout, f.name), Tensor)
    }
    return replace(layout, **grown)
