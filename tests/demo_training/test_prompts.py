"""Prompts."""

from __future__ import annotations

from typing import Any

import pytest
from built_demos import picture

from demo_training.prompts import prompt


@pytest.mark.parametrize("name", ["llava-next"], indirect=True)
def test_chat_template(processor: Any) -> None:
    image, question = {"type": "image"}, {"type": "text", "text": "why?"}
    user = {"role": "user", "content": [image, question]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": "so"}]}
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}

    def render(*messages: Any) -> str:
        return str(processor.apply_chat_template([*messages], add_generation_prompt=True))

    assert render(user) == "[INST] <image>\nwhy? [/INST]"
    assert render({"role": "user", "content": [question]}) == "[INST] why? [/INST]"
    assert render({"role": "user", "content": "why?"}) == "[INST] why? [/INST]"
    assert render({"role": "user", "content": [image, image, question]}) == (
        "[INST] <image>\n<image>\nwhy? [/INST]"
    )
    assert render(system, user, reply, user) == (
        "<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST] <image>\nwhy? [/INST] so</s>"
        "[INST] <image>\nwhy? [/INST]"
    )
    with pytest.raises(Exception, match="Only user, system and assistant"):
        render({"role": "judge", "content": "why?"})


@pytest.mark.parametrize("name", ["llava-next"], indirect=True)
def test_one_leading_bos(processor: Any) -> None:
    ids = processor(text=prompt(processor, "why?"), images=picture()).input_ids[0]
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1
