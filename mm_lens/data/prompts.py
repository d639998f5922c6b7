"""Prompts as a model's processor takes them: text or chat messages, with the chat template or not.

Chat messages are those of transformers' processors: dictionaries with a `role` and a `content`,
which is a text or a list of parts, `{"type": "text", "text": …}` and `{"type": "image"}`. An image
may stand in its part (`image`, `path`, `url` or `base64`); otherwise the next one given is meant.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeAlias

from mm_lens.arguments import describe_value
from mm_lens.data.templates import bounded, check_source
from mm_lens.errors import InputError

Message: TypeAlias = Mapping[str, Any]

KINDS = (
    "A prompt is a text, or chat messages: a list of dictionaries with role and content, as "
    "transformers takes them"
)
IMAGE_KEYS = ("image", "path", "url", "base64")


@dataclass(frozen=True)
class Rendered:
    """A prompt as the tokenizer gets it.

    Attributes:
        text: what it gets, an image placeholder for each image.
        templated: whether the chat template was applied.
        doubt: what the user should know of it; empty if nothing.
    """

    text: str
    templated: bool
    doubt: str = ""


def list_prompts(prompts: Any) -> tuple[bool, list[str | list[Message]]]:
    """Whether one prompt was given, and all of them: each a text or a conversation.

    Raises:
        InputError: there is none, or something is neither text nor messages.
    """
    if isinstance(prompts, str):
        _check_characters(prompts)
        return True, [prompts]
    if isinstance(prompts, (Mapping, bytes)) or not isinstance(prompts, Iterable):
        is_picture = hasattr(prompts, "size") or isinstance(prompts, PathLike)
        swapped = " Are prompt and picture swapped? The prompt comes first." * is_picture
        raise InputError(f"{KINDS}; not {describe_value(prompts)}.{swapped}")
    found = list(prompts)
    if not found:
        raise InputError("There is no prompt. Pass at least one.")
    for k, entry in enumerate(found):
        if isinstance(entry, str):
            _check_characters(entry, f" (prompt {k})")
    if all(isinstance(entry, Mapping) for entry in found):
        return True, [_check_messages(found)]
    return False, [
        entry if isinstance(entry, str) else _check_messages(entry, f" (prompt {k})")
        for k, entry in enumerate(found)
    ]


def read_question(prompt: str | Sequence[Message]) -> str:
    """A prompt as a person reads it: of a conversation, the last text."""
    if isinstance(prompt, str):
        return prompt
    said = [part["text"] for message in prompt for part in message["content"] if "text" in part]
    return str(said[-1]) if said else ""


def _check_messages(messages: Any, where: str = "") -> list[Message]:
    """A conversation whose contents are all lists of parts.

    Templates of processors read lists: some pass over a content that is a text without a word.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InputError(f"{KINDS}; not {describe_value(messages)}{where}.")
    checked: list[Message] = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"{KINDS}; not {describe_value(message)}{where}.")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, (list, tuple)):
            raise InputError(
                "The content of a message is a text or a list of parts, not "
                f"{describe_value(content)}{where}."
            )
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind != "image" and not (kind == "text" and isinstance(part.get("text"), str)):
                raise InputError(
                    'A part of a message is {"type": "text", "text": …} or {"type": "image"}, not '
                    f"{describe_value(part)}{where}."
                )
            _check_characters(part.get("text", ""), where)
        checked.append({**message, "content": list(parts)})
    return checked


def _check_characters(text: Any, where: str = "") -> None:
    try:
        str(text).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"A prompt holds half of a character ({error.object[error.start]!a}), which no "
            f"tokenizer takes{where}. Decode the text again, as UTF-8."
        ) from error


def place_images(prompt: str | Sequence[Message], given: Sequence[Any]) -> list[Any]:
    """The images of a prompt in order: those in its messages, and between them those given.

    Raises:
        InputError: the messages want more or fewer than are given, or hold a damaged one.
    """
    if isinstance(prompt, str):
        return list(given)
    parts = [part for message in prompt for part in message["content"] if part["type"] == "image"]
    own = [next((key for key in IMAGE_KEYS if part.get(key) is not None), None) for part in parts]
    if (wanted := own.count(None)) != len(given):
        raise InputError(
            f"The messages hold {wanted} image part(s) without an image of their own, but "
            f"{len(given)} image(s) were given for them. Write one part "
            '{"type": "image"} for each image.'
        )
    rest = iter(given)
    return [
        next(rest) if key is None else _decoded(part[key]) if key == "base64" else part[key]
        for part, key in zip(parts, own, strict=True)
    ]


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(f"The base64 of an image part cannot be decoded: {error}.") from error


def render(
    processor: Any,
    prompt: str | Sequence[Message],
    n_images: int,
    chat_template: bool | None,
    behind_image: str = "\n",
) -> Rendered:
    """A prompt as the model gets it; see `mm_lens.model.inputs.prepare`.

    Args:
        processor: the model's processor.
        prompt: a text or messages.
        n_images: images of the prompt.
        chat_template: whether the template is applied; None: where no placeholder is written.
        behind_image: what stands behind a placeholder that is put before a text without a template.

    Raises:
        InputError: placeholders and images do not match; there is no template where one is needed,
            or it drops a text or an image.
    """
    token, template = processor.image_token, getattr(processor, "chat_template", None)
    if not isinstance(prompt, str):
        if chat_template is False or template is None:
            raise InputError(
                "Messages are rendered by the processor's chat template, and "
                + ("chat_template=False forbids it" if template else "there is none")
                + ". Write the prompt as text in the model's own format."
            )
        return Rendered(_apply_template(processor, prompt, n_images), True)
    written = prompt.count(token)
    if written and written != n_images:
        raise InputError(
            f"The prompt holds {written} image placeholder(s) {token!r}, but {n_images} image(s) "
            "were given for it. Write one placeholder for each image, or none at all."
        )
    if chat_template and template is None:
        raise InputError(
            "The processor has no chat template. Pass chat_template=False and write the prompt in "
            "the model's own format."
        )
    as_it_is = prompt if written else (token + behind_image) * n_images + prompt
    if chat_template is False or template is None:
        return Rendered(as_it_is, False)
    rendered = _apply_template(processor, [_user_turn(prompt, token, n_images)], n_images)
    if chat_template:
        return Rendered(rendered, True)
    in_format = _is_in_format(processor, prompt, n_images)
    if not written:
        return Rendered(rendered, True, _TWICE if in_format else "")
    return Rendered(as_it_is, False, "" if in_format else f"Prompts hold {token!r} {_SKIPPED}")


_SKIPPED = (
    "already, so the chat template is not applied to them: the model sees them as they stand. Pass "
    "chat_template=True to have it applied, or False if they are meant so."
)
_TWICE = (
    "Prompts are in the format of the chat template already, and it is applied once more. Pass "
    "chat_template=False if they are complete, or True if they are meant so."
)


def _user_turn(prompt: str, token: str, n_images: int) -> Message:
    """A user's turn: images where they are written in the prompt, else first."""
    image: Message = {"type": "image"}
    first, *rest = prompt.split(token)
    if not rest:
        return {"role": "user", "content": [image] * n_images + [_text(prompt)]}
    parts = [_text(first.rstrip())]
    for k, piece in enumerate(rest, start=1):
        # The template itself puts space between image and text.
        parts += [image, _text(piece.strip() if k < len(rest) else piece.lstrip())]
    return {"role": "user", "content": [part for part in parts if part is image or part["text"]]}


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def _apply_template(processor: Any, messages: Sequence[Message], n_images: int) -> str:
    """The messages as text; ends where the model is to answer, unless they end with an answer."""
    plain = [
        {
            **message,
            "content": [
                {"type": "image"} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]
    try:
        with bounded():
            if isinstance(template := processor.chat_template, str):
                check_source(template)
            rendered: str = processor.apply_chat_template(
                plain, add_generation_prompt=plain[-1]["role"] != "assistant", tokenize=False
            )
    except Exception as error:  # a template is a program: it may fail in any way
        raise InputError(
            f"The chat template cannot render these messages: {type(error).__name__}: {error}."
        ) from error
    said = [
        part["text"].strip()
        for message in plain
        for part in message["content"]
        if part["type"] == "text" and message["role"] != "assistant"  # whose thoughts may go
    ]
    if dropped := [text for text in said if text not in rendered]:
        raise InputError(
            f"The processor's chat template drops the text {describe_value(dropped[0])}: the model "
            "would not see it. Mend chat_template of the processor, or pass chat_template=False."
        )
    if (placed := rendered.count(processor.image_token)) != n_images:
        raise InputError(
            f"Rendered by the processor's chat template, the messages hold {placed} image "
            f"placeholder(s) {processor.image_token!r}, but there are {n_images} image(s). Leave "
            "placeholders out of the texts of messages; else the template drops or doubles images."
        )
    return rendered


def _is_in_format(processor: Any, prompt: str, n_images: int) -> bool:
    """Whether a prompt ends as the template ends a question."""
    probe = "0d7c"  # a text that no template holds
    frame = _apply_template(
        processor, [_user_turn(probe, processor.image_token, n_images)], n_images
    )
    end = frame.rpartition(probe)[2].strip()
    return len(end) >= 3 and prompt.rstrip().endswith(end)
