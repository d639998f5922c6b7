"""How the published pipeline of OmniFusion generates."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
)


def published_generation(tokenizer: Any) -> GenerationConfig:
    """The arguments of the published call, as the default of `generate`.

    Three beams, at most 50 tokens, no 4 tokens twice in the answer, and neither line ends nor
    colons, so that the answer is one line. `[13]` is the line end in Mistral's vocabulary.
    """
    end = tokenizer.eos_token_id
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=50,
        early_stopping=True,
        num_beams=3,
        repetition_penalty=1.0,
        remove_invalid_values=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=end,
        forced_eos_token_id=end,
        use_cache=True,
        no_repeat_ngram_size=4,
        bad_words_ids=[
            *tokenizer(["\n", "</s>", ":"], add_special_tokens=False).input_ids,
            [13],
        ],
    )


class AnswerNGrams(GenerationMixin):
    """Generation in which `no_repeat_ngram_size` looks at the answer alone.

    The published pipeline gives embeddings to `generate`, so its rule against repetition never sees
    the prompt; with `input_ids` it would forbid to take up four tokens of the question.
    """

    def _get_logits_processor(
        self,
        generation_config: Any,
        input_ids_seq_length: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> LogitsProcessorList:
        make: Any = super()._get_logits_processor
        processors = make(generation_config, input_ids_seq_length, *args, **kwargs)
        return LogitsProcessorList(
            _From(input_ids_seq_length or 0, processor)
            if isinstance(processor, NoRepeatNGramLogitsProcessor)
            else processor
            for processor in processors
        )


class _From(LogitsProcessor):
    """Another processor that sees the tokens from a position on."""

    def __init__(self, start: int, processor: LogitsProcessor) -> None:
        self.start, self.processor = start, processor

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocabulary"]
    ) -> Float[Tensor, "row vocabulary"]:
        processed: Tensor = self.processor(input_ids[:, self.start :], scores)
        return processed
