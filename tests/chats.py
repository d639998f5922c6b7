"""Prompts of the tiny OmniFusion, as its chat template makes them."""

from __future__ import annotations

QUESTION = "What is it?"


def chat(question=QUESTION, images=1):
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def prepare(processor, questions, images, **options):
    counts = [len(row) for row in images]
    prompts = [
        processor.apply_chat_template(chat(q, n), add_generation_prompt=True)
        for q, n in zip(questions, counts, strict=True)
    ]
    flat = [image for row in images for image in row]
    return processor(
        images=flat or None, text=prompts, return_tensors="pt", padding=True, **options
    )
