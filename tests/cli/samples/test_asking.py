"""`mm-lens ask`, `generate` and `layout` say what Python says."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mm_lens.cli import commands

pytestmark = pytest.mark.filterwarnings("ignore::mm_lens.MMLensWarning")


def test_ask(mm_lens, bridges, pictures):
    found, text, page = mm_lens("ask", "--options", "a,b", "--max-new-tokens", "3")
    reply = bridges["sdpa"].ask(
        "What is it?", Image.open(pictures[0]), options=["a", "b"], max_new_tokens=3
    )
    assert found["answer"] == reply.text
    assert found["log_prob"] == pytest.approx(reply.log_prob)
    assert found["options"] == pytest.approx(dict(reply.options))
    assert [token["token"] for token in found["tokens"]] == [*reply.tokens]
    assert f"{next(iter(reply.options))} 0." in text
    assert page.count("<img alt=") == 2


@pytest.mark.parametrize("given", ["a", "a,a", ""])
def test_options_of_one_are_refused(given, pictures, capsys):
    code = commands.run(["ask", pictures[0], "What?", "--model", "org/tiny", "--options", given])
    assert code == 2
    assert "two or more different words" in capsys.readouterr().err


def test_generate(mm_lens, bridges, pictures):
    bridge = bridges["sdpa"]
    inputs = bridge.prepare("What is it?", pictures[0])
    want = bridge.generate(inputs, max_new_tokens=4, do_sample=False, verbose=False)
    written = want[0, inputs.input_ids.shape[1] :]
    found, text, _ = mm_lens("generate", "--max-new-tokens", "4")
    assert found["text"] == bridge.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert text.strip() == found["text"]
    torch.manual_seed(3)
    want = bridge.generate(inputs, max_new_tokens=4, temperature=2.0, verbose=False)
    drawn, _, _ = mm_lens(
        "generate", "--max-new-tokens", "4", "--temperature", "2", "--seed", "3", "--overwrite"
    )
    written = want[0, inputs.input_ids.shape[1] :]
    assert drawn["text"] == bridge.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_layout(mm_lens, bridges, pictures):
    layout = bridges["sdpa"].prepare("What is it?", pictures[0]).layout
    found, text, page = mm_lens("layout")
    assert found["positions"] == layout.shape[1]
    assert found["groups"] == {group: int(layout.counts(group)[0]) for group in layout.groups}
    assert found["images"] == [{"width": 57, "height": 31}]
    assert layout.describe() in text
    assert "Tokens on the picture" in page
