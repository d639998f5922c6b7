"""Prompts and pictures of causal experiments."""

from __future__ import annotations

from tiny import random_image

BATCH = (["What is it?", "Why?"], [random_image(31, 57), random_image(31, 57, 1)])


OTHER = (BATCH[0], [random_image(31, 57, 2), random_image(31, 57, 3)])


IMAGES = [random_image(31, 57), random_image(20, 20, 1)]


PROMPTS = ["What is it?", "Why?"]
