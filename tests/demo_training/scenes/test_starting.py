"""What the language model starts from."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize
from transformers import MistralConfig, MistralForCausalLM

from demo_training.scenes.describing import Describer
from demo_training.scenes.starting import COPIED, start


def test_words_find_what_they_name_and_heads_copy_it() -> None:
    """An object that the word names is looked at most, another one next, then the word itself."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=20,
        hidden_size=64,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    model = MistralForCausalLM(config)
    words = model.get_input_embeddings()
    describer = Describer(words, torch.arange(11))
    start(model, describer.thing)
    said = torch.zeros(2, 4, 11)
    said[0, 1, [0, 5]] = said[1, 1, [1, 6]] = 1
    (named, other), word = describer(said)[:, 1], words.weight[0]
    attention = model.model.layers[0].self_attn
    states = 8 * normalize(torch.stack([word, named, other]), dim=-1)
    query, key, value = (
        (states @ w.weight.T).detach()
        for w in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = torch.zeros(3)
    for head in range(4):
        mine = query[0, head * 16 :][:16]
        scores += key[:, head // 2 * 16 :][:, :16] @ mine
    assert scores[1] > scores[2] + 4 * 4
    assert scores[2] > scores[0]
    groups = value.reshape(3, 2, 1, 16).expand(-1, -1, 2, -1).reshape(3, 64)
    back = (groups @ attention.o_proj.weight.T).detach()
    along = (back * states).sum() / (states * states).sum()
    assert abs(along - COPIED * 32 / 64) < 0.15
