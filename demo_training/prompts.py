"""The one way a question about an image is put to a chat model."""

from typing import Any

from transformers import ProcessorMixin


def prompt(processor: ProcessorMixin, question: str, images: int = 1) -> str:
    """Chat-templated user turn of `images` images and a question, ready for the answer."""
    content: list[Any] = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    conversation: list[Any] = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(conversation, add_generation_prompt=True))
