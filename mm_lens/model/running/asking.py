"""`model.ask`: a question about a picture in, what the model answers out.

The text is what the model writes greedily, in its own loop (`running.generation`). The probability
of an option is that of its tokens, one after the other, where the answer begins: options of one
token are read off the first step, longer ones are written by the model under compulsion, once each.
Longer options have more factors below one; compare options of one length, or mind it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mm_lens._notebook import Html, make_table, make_thumbnails
from mm_lens.arguments import require_whole
from mm_lens.data.prompts import list_prompts
from mm_lens.errors import InputError, MMLensWarning
from mm_lens.model.families import Family
from mm_lens.model.inputs import OMITTED, Inputs
from mm_lens.model.running.generation import find_stops

LITTLE = 0.1
"""Probability of all options together below which the user is told that others are meant."""


@dataclass(frozen=True, eq=False)
class Reply:
    """What the model answered to one question.

    Attributes:
        question: the prompt as it was given, without the chat template.
        text: what the model wrote, without the token that ends it.
        tokens: the tokens of the text.
        token_ids: their ids.
        log_probs: natural logarithm of the probability of each, given those before it.
        finished: whether the model ended its text itself, and was not cut off.
        options: share of each option among the options, the most probable first; they add up to 1.
        option_log_probs: log-probability of each option in the whole vocabulary, in this order.
        inputs: what the model was run on.
        row: which row of it.
    """

    question: str
    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool
    options: Mapping[str, float] = field(default_factory=dict)
    option_log_probs: Mapping[str, float] = field(default_factory=dict)
    inputs: Inputs | None = field(default=None, repr=False)
    row: int = 0

    @property
    def log_prob(self) -> float:
        """Natural logarithm of the probability of the whole text."""
        return math.fsum(self.log_probs)

    @property
    def mass(self) -> float:
        """Probability of all options together in the whole vocabulary; NaN without options.

        Small, and the model says something else.
        """
        found = self.option_log_probs.values()
        return math.fsum(math.exp(x) for x in found) if found else math.nan

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        lines = [f"{self.text!r}{self._rest()}"]
        if self.options:
            shares = ", ".join(f"{name} {share:.3g}" for name, share in self.options.items())
            lines.append(f"  of the options: {shares} (together {self.mass:.3g} of everything)")
        return "\n".join(lines)

    def _rest(self) -> str:
        cut = "" if self.finished else ", cut off"
        return f" (log-probability {self.log_prob:.3g}{cut})"

    def _repr_html_(self) -> str:
        """Picture, question, answer, and a bar for each option."""
        pictures = () if self.inputs is None else self.inputs.images[self.row]
        rows: list[tuple[object, object]] = [
            ("question", self.question),
            ("answer", Html(f"<b>{escape(self.text)}</b>{escape(self._rest())}")),
        ]
        rows += [(name, _bar(share)) for name, share in self.options.items()]
        return str(make_thumbnails(pictures)) + make_table(["", ""], rows)

    def plot(self) -> Any:
        """The picture, and the probability of each option or written token, as a figure."""
        from mm_lens.drawing.replies import draw_reply

        return draw_reply(self)


class Replies(tuple[Reply, ...]):
    """What the model answered to each question of a batch, in order."""

    def __repr__(self) -> str:
        return "\n".join(f"{k}: {reply!r}" for k, reply in enumerate(self))

    def _repr_html_(self) -> str:
        """A row for each question."""
        rows = [
            (
                make_thumbnails(() if reply.inputs is None else reply.inputs.images[reply.row]),
                reply.question,
                reply.text,
                f"{reply.log_prob:.3g}",
                ", ".join(f"{name} {share:.3g}" for name, share in reply.options.items()),
            )
            for reply in self
        ]
        return make_table(["", "question", "answer", "log-probability", "options"], rows)


class Asked:
    """What is put on a bridge to ask it questions."""

    @overload
    def ask(self, question: str, images: Any = ..., **options: Any) -> Reply: ...
    @overload
    def ask(self, question: Any, images: Any = ..., **options: Any) -> Any: ...
    def ask(
        self,
        question: Any,
        images: Any = OMITTED,
        *,
        options: Sequence[str] | None = None,
        max_new_tokens: int = 32,
        chat_template: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """Ask a question about a picture: what the model writes, and how sure it is.

        ```python
        reply = model.ask("what color is the shape?", "shape.png", options=["red", "blue"])
        reply.text, reply.log_prob, reply.options      # "red", -0.01, {"red": 0.99, "blue": 0.01}
        model.ask(["what shape is it?"] * 2, ["one.png", "other.png"])   # a batch: one reply each
        ```

        Hooks that are attached work: inside `with model.hooks([…]):` the edited model answers.

        Args:
            question: one prompt, or a list of them, as `prepare` takes them; or what it returned.
            images: the pictures, as `prepare` takes them.
            options: possible answers, at least two: their probabilities are read where the answer
                begins. Of several tokens, an option costs a run of its own.
            max_new_tokens: most tokens that are written.
            chat_template: as `prepare` takes it.
            unknown: further arguments of `prepare`.

        Returns:
            A `Reply`; for a list of prompts `Replies`, a tuple of them.

        Raises:
            InputError: as `prepare` and `generate`; or an option is empty, or two are the same.

        Warns:
            MMLensWarning: the options hold little of the probability: something else is answered.
        """
        model: Any = self
        require_whole("max_new_tokens", max_new_tokens, 1)
        spelled = {} if options is None else spell_options(model.tokenizer, options)
        if isinstance(question, Inputs):
            found = _answer(model, question, spelled, max_new_tokens)
            return found if len(found) > 1 else found[0]
        single, prompts = list_prompts(question)
        unknown = {"chat_template": chat_template, **unknown}
        family: Family = model.family
        if single or family.padding_side != "right":
            side = {} if single else {"padding_side": "left"}
            inputs = model.prepare(question, images, **{**side, **unknown})
            found = _answer(model, inputs, spelled, max_new_tokens)
            return found[0] if single else found
        # Rows of such a model cannot be padded for generation: one after the other.
        pictures = [images] * len(prompts) if images is OMITTED or images is None else images
        return Replies(
            self.ask(
                prompt,
                image,
                options=options,
                max_new_tokens=max_new_tokens,
                **unknown,
            )
            for prompt, image in zip(prompts, pictures, strict=True)
        )


def spell_options(tokenizer: Any, options: Any) -> dict[str, list[int]]:
    """Tokens of each option: all as written or all with a space before, where these are single.

    Where neither makes them single tokens, as written.

    Raises:
        InputError: there are fewer than two, one makes no token, or two make the same.
    """
    words = [] if isinstance(options, str) or not isinstance(options, Iterable) else [*options]
    if len(words) < 2 or not all(isinstance(word, str) for word in words):
        raise InputError("Options are a list of at least two words.")
    spellings = [
        [list(tokenizer(prefix + o, add_special_tokens=False)["input_ids"]) for o in words]
        for prefix in ("", " ")
    ]
    single = [ids for ids in spellings if all(len(tokens) == 1 for tokens in ids)]
    ids = single[0] if single else spellings[0]
    if empty := [o for o, tokens in zip(words, ids, strict=True) if not tokens]:
        raise InputError(f"The option {empty[0]!r} makes no token. Leave it out.")
    if same := [o for o, tokens in zip(words, ids, strict=True) if ids.count(tokens) > 1]:
        kind = "token" if single else "tokens"
        raise InputError(f"The options {same} are the same {kind}: they cannot be told apart.")
    return dict(zip(words, ids, strict=True))


def _answer(
    model: Any,
    inputs: Inputs,
    spelled: Mapping[str, Sequence[int]],
    max_new_tokens: int,
) -> Replies:
    """One reply for each row."""
    n = inputs.layout.shape[1]
    written = _write(model, inputs, max_new_tokens=max_new_tokens)
    steps = torch.stack([step.float().log_softmax(-1).cpu() for step in written.logits], 1)
    new = written.sequences[:, n:].cpu()
    stops = find_stops(model)
    chances = {
        option: steps[:, 0, tokens[0]]
        if len(tokens) == 1
        else _compelled(model, inputs, tokens, stops)
        for option, tokens in spelled.items()
    }
    replies = []
    for row, question in enumerate(inputs.questions or inputs.text):
        ids = new[row].tolist()
        end = next((k for k, token in enumerate(ids) if token in stops), len(ids))
        tokens = ids[:end]
        read = {option: float(chance[row]) for option, chance in chances.items()}
        total = torch.tensor([*read.values()]).logsumexp(0).item() if read else 0.0
        order = sorted(read, key=read.__getitem__, reverse=True)
        replies.append(
            Reply(
                question=question,
                text=model.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
                tokens=tuple(model.tokenizer.decode([token]) for token in tokens),
                token_ids=tuple(tokens),
                log_probs=tuple(float(steps[row, k, token]) for k, token in enumerate(tokens)),
                finished=end < len(ids),
                options={option: math.exp(read[option] - total) for option in order},
                option_log_probs={option: read[option] for option in order},
                inputs=inputs,
                row=row,
            )
        )
    _warn_of_others(replies)
    return Replies(replies)


def _warn_of_others(replies: Sequence[Reply]) -> None:
    little = [reply for reply in replies if reply.mass < LITTLE]
    if little:
        warnings.warn(
            f"The options hold {little[0].mass:.2g} of the probability in {len(little)} of "
            f"{len(replies)} answer(s): the model says something else ({little[0].text!r}). Their "
            "shares compare what it hardly considers. Options spelled as it answers hold more.",
            MMLensWarning,
            stacklevel=4,
        )


def _write(model: Any, inputs: Inputs, **options: Any) -> Any:
    """What the model writes, with the logits of each step."""
    return model.generate(inputs, do_sample=False, verbose=False, output_logits=True, **options)


def _compelled(
    model: Any, inputs: Inputs, tokens: Sequence[int], stops: frozenset[int]
) -> Float[Tensor, " batch"]:
    """Log-probability of several tokens, one after the other, where the answer begins."""
    force = LogitsProcessorList([_Force(tokens, inputs.layout.shape[1])])
    written = _write(
        model, inputs, max_new_tokens=len(tokens), stop_at_eos=False, logits_processor=force
    )
    steps = zip(written.logits, tokens, strict=True)
    chances = [logits.float().log_softmax(-1)[:, token].cpu() for logits, token in steps]
    return torch.stack(chances).sum(0)


class _Force(LogitsProcessor):
    """Leaves the model one token to write at each step."""

    def __init__(self, tokens: Sequence[int], start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(
        self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch d_vocab"]
    ) -> Float[Tensor, "batch d_vocab"]:
        """Nothing but the token of this step."""
        only = torch.full_like(scores, -math.inf)
        only[:, self.tokens[input_ids.shape[1] - self.start]] = 0
        return only


def _bar(share: float) -> Html:
    width = round(120 * share)
    bar = f'<span style="display:inline-block;height:.7em;width:{width}px;background:#0072B2">'
    return Html(f"{bar}</span> {share:.3g}")
