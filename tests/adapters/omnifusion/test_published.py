"""The processor that is read from published files."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from published_files import QUESTION, convert, loaded
from upstream import (
    PROMPT,
    random_parts,
    write_upstream,
)

from mm_lens import MMLensError


def test_the_prompt_is_tokenised_as_sentencepiece_does(parts, tower, source, tmp_path):
    """Upstream's tokenizer is a SentencePiece model; SentencePiece itself is the reference."""
    import io

    import sentencepiece

    generator, model = random.Random(0), io.BytesIO()
    words = ["what", "is", "the", "colour", "of", "this", "sky", "cat", "a", "dialog", "with"]
    lines = [" ".join(generator.choices(words, k=8)) for _ in range(200)]
    options = {
        "model_type": "bpe", "byte_fallback": True, "vocab_size": 320, "minloglevel": 2,
        "remove_extra_whitespaces": False, "hard_vocab_limit": False,
    }  # fmt: skip

    def trained(**more):
        model.seek(0)
        model.truncate()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, **{**options, **more}
        )
        return model.getvalue()

    directory = source / "OmniMistral-v1_1" / "tokenizer"
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(trained(normalization_rule_name="identity"))
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    with pytest.raises(MMLensError, match=r"tokenizer has 3.. tokens, the language model only 113"):
        convert(source, tmp_path / "out", tower)

    big = random_parts(vocab_size=331)
    shutil.rmtree(source)
    write_upstream(source, big)
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    _, processor = loaded(convert(source, tmp_path / "out", tower))
    for question in (QUESTION, "  What  colour?", "a\nb", "Что это? 猫🙂\t", " "):
        ids = processor(text=f"{PROMPT}<USER>{question}<BOT>")["input_ids"][0]
        user, bot = 331 + 2, 331 + 3
        assert ids == [*reference.encode(PROMPT), user, *reference.encode(question), bot]
    words = ["\n", ":"]
    bad = json.loads((tmp_path / "out" / "generation_config.json").read_text())["bad_words_ids"]
    assert bad == [reference.encode(words[0]), [2], reference.encode(words[1]), [13]]

    (directory / "tokenizer.model").write_bytes(trained(normalization_rule_name="nfkc_cf"))
    with pytest.raises(MMLensError, match=r"splits .* in another way"):
        convert(source, tmp_path / "other", tower)
