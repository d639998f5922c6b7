"""The demo model's autoencoder: what its recipe learns, and what its card says of it."""

from __future__ import annotations

import re

import pytest
import torch

import mm_lens
from demo_training import dictionary
from mm_lens import demo
from mm_lens.dictionaries import feature_table, load_coder
from mm_lens.recipes.questions import ask


@pytest.fixture(scope="module")
def model():
    return mm_lens.load("demo/llava-next", check=False)


def test_the_recipe_finds_the_directions_that_states_were_made_of(monkeypatch, tmp_path):
    """States are sums of two of twelve directions about a centre."""
    monkeypatch.setattr(dictionary, "WIDTH", 24)
    monkeypatch.setattr(dictionary, "K", 2)
    torch.manual_seed(0)
    atoms = torch.linalg.qr(torch.randn(12, 12)).Q
    which = torch.rand(2000, 12).topk(2).indices
    strength = torch.zeros(2000, 12).scatter(1, which, 1 + torch.rand(2000, 2))
    states = strength @ atoms + 5.0
    weights = dictionary.train(states, 400, batch=128, rate=1e-2)
    dictionary.write(tmp_path / "all", weights)
    dictionary.write(tmp_path / "made", dictionary.prune(weights, states))
    coder, whole = load_coder(tmp_path / "made"), load_coder(tmp_path / "all")
    assert torch.equal(coder.decode(coder.encode(states)), whole.decode(whole.encode(states)))
    assert (coder.encode(states) > 0).any(0).all()
    made = coder.decode(coder.encode(states))
    left = (states - made).square().sum() / (states - states.mean(0)).square().sum()
    assert left < 0.1
    assert (atoms @ coder.weights["W_dec"].T).max(1).values.min() > 0.9
    assert (coder.encode(states) > 0).sum(1).max() == 2


def test_the_recipe_from_questions_to_figures(model, monkeypatch, tmp_path):
    monkeypatch.setattr(dictionary, "TOKENS", 4)
    data = mm_lens.datasets.load("easy-vqa", limit=6, seed=0)
    states = dictionary.collect(model, data, batch=3)
    assert states.shape == (2 * 6 * 4, model.cfg.d_model)
    dictionary.write(tmp_path, dictionary.train(states, 20, batch=16))
    asked = ask(model, mm_lens.datasets.load("easy-vqa", limit=40, seed=1), 2)
    explained, answers = dictionary.measure(model, load_coder(tmp_path), asked)
    assert (explained["active"] <= dictionary.K).all()
    put_back = answers.xs("error put back", level="change")
    plain = answers.loc[("", "none")]
    assert torch.allclose(torch.tensor(put_back.to_numpy()), torch.tensor(plain.to_numpy()))
    assert len(answers) == 1 + 3 * 3


def test_the_card_says_what_the_coder_explains(model):
    """On five test pictures; the card's figures are of more."""
    coder = load_coder("demo/llava-next")
    assert coder.hook_name == f"blocks.{dictionary.LAYER}.hook_resid_post"
    card = (demo.dictionary_path("demo/llava-next") / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (visual|text) \| ([\d.]+) % \|", card, re.M)
    told = {name: float(share) for name, share in rows}
    assert told.keys() == {"visual", "text"}
    data = mm_lens.datasets.load("easy-vqa", limit=5, seed=3)
    shown = model.prepare([x.text for x in data], [x.image for x in data])
    found = feature_table(model, shown, coder, layer=dictionary.LAYER).attrs["explained"]
    for name, share in told.items():
        assert 100 * found[name] == pytest.approx(share, abs=2)
