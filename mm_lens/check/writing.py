"""What a model writes: the native model's tokens, one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mm_lens.check import native as plain
from mm_lens.check.subject import TEXTS, Fault, Subject, picture
from mm_lens.check.views import bend
from mm_lens.model.families.placeholders import video_token
from mm_lens.model.inputs import Inputs

STEPS = 5
"""Tokens that are written."""


def greedy(subject: Subject) -> None:
    """Greedy decoding, of one prompt and of a padded batch."""
    for inputs in _prompts(subject):
        same_tokens(subject, inputs, {"do_sample": False}, {"do_sample": False})


def beams(subject: Subject) -> None:
    """Three beams, of which two are returned."""
    options = {"do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    for inputs in _prompts(subject):
        same_tokens(subject, inputs, options, options)


def sampled(subject: Subject) -> None:
    """Sampling with one seed, of all tokens and of the five most probable."""
    for inputs in _prompts(subject):
        for top in (None, 5):
            ours = {"temperature": 0.7, "top_k": top}
            theirs = {"do_sample": True, "temperature": 0.7, "top_k": top or 0}
            same_tokens(subject, inputs, ours, theirs)


def under_hooks(subject: Subject) -> None:
    """An edit of image tokens acts on the prompt, and what is written goes on from it."""
    layer = subject.layers[-1] // 2
    place = plain.find_places(subject.model, layer)["resid_post"]
    view = f"blocks.{layer}.visual.hook_resid_post"
    for inputs in _prompts(subject):
        mask = inputs.layout.mask("visual")

        def change(x: Tensor, mask: Tensor = mask) -> Tensor:
            if x.shape[1] < mask.shape[1]:  # a decoding step
                return x
            shown = mask.repeat_interleave(len(x) // len(mask), 0)
            shown = pad(shown, (0, x.shape[1] - shown.shape[1]))
            return torch.where(shown[..., None], bend(x), x)

        for options in ({"do_sample": False}, {"do_sample": False, "num_beams": 2}):
            with (
                plain.hooked(subject.native, [(place, change)]),
                subject.model.hooks(fwd_hooks=[(view, lambda x, hook: bend(x))]),
            ):
                same_tokens(subject, inputs, options, options)


def same_tokens(
    subject: Subject, inputs: Inputs, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """Both write the same under these options, from the same seed.

    Raises:
        Fault: naming the tokens.
    """
    family = subject.model.family
    never = {family.image_token_id, video_token(family), *family.marker_ids} - {None}
    common: dict[str, Any] = {"max_new_tokens": STEPS, "suppress_tokens": sorted(never)}
    filler = subject.model.tokenizer.pad_token_id
    if filler is None:
        filler = subject.model.tokenizer.eos_token_id
    seed = torch.random.fork_rng(devices=[])
    with seed, torch.no_grad():
        torch.manual_seed(0)
        wanted = subject.native.generate(
            **inputs.native, **common, pad_token_id=filler, eos_token_id=None, **theirs
        )
        torch.manual_seed(0)
        found = subject.model.generate(
            inputs, **common, stop_at_eos=False, verbose=False, return_type="tokens", **ours
        )
    mine, new = (x[:, inputs.input_ids.shape[1] :].cpu() for x in (found, wanted))
    if not torch.equal(mine, new):
        raise Fault(f"generated {mine.tolist()}, natively {new.tolist()}")


def _prompts(subject: Subject) -> list[Inputs]:
    """One prompt, and a batch where the model can be padded on the left."""
    found = [subject.prepare(TEXTS[:1], [picture(0)])]
    if subject.model.family.padding_side != "right":
        images = [picture(0), picture(1)]
        found.append(subject.prepare(TEXTS[:2], images, padding_side="left"))
    return found
