"""Visual logit lens against the native model: final norm and unembedding of its hidden states."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, load_tiny
from tiny import random_image
from transformer_lens.tools.analysis import logit_lens

import mm_lens.looking.logit_lens
from mm_lens import InputError, MMLensError
from mm_lens.looking.logit_lens import first_token, visual_logit_lens

pytestmark = pytest.mark.every_family


def prepare(model, side="left"):
    return model.prepare(
        ["What is it?", "No picture here.", "And this one?"],
        [random_image(31, 57), None, random_image(40, 22, 2)],
        padding_side=side,
    )


@torch.no_grad()
def native_logits(family, inputs):
    """Logits of every state, by the native model's own modules: [layers, batch, pos, d_vocab]."""
    native, _ = FAMILIES[family]()
    positions = (inputs.attention_mask.cumsum(-1) - 1).clamp(min=0)
    language = native.model.language_model
    states = []
    hooks = [
        layer.register_forward_hook(
            lambda module, args, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in language.layers
    ]
    output = native(**inputs, position_ids=positions, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    states = [output.hidden_states[0], *states]
    lens = [native.lm_head(language.norm(state)) for state in states]
    return torch.stack(lens), output.logits


@pytest.mark.parametrize(("side", "waiting"), [("left", 0), ("right", 2**26)])
def test_every_layer_equals_the_native_modules(model, family, side, waiting, monkeypatch):
    monkeypatch.setattr(mm_lens.looking.logit_lens, "WAITING_BYTES", waiting)
    inputs = prepare(model, side)
    lens, logits = native_logits(family, inputs)
    size = logits.shape[-1]
    found = visual_logit_lens(model, inputs, "all", top_k=size, quantity="logits", chunk_size=7)
    mask = inputs.layout.mask("all")
    ours = torch.zeros_like(lens)[:, mask].scatter(-1, found.top_ids[:, mask], found.top[:, mask])
    assert found.layers == tuple(range(model.cfg.n_layers + 1))
    torch.testing.assert_close(ours, lens[:, mask], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours[-1], logits[mask], atol=1e-6, rtol=1e-6)
    assert found.top[:, ~mask].isnan().all()
    assert (found.top_ids[:, ~mask] == -1).all()
    assert found.entropy[:, ~mask].isnan().all()


def test_words_targets_ranks_and_entropy(model, family):
    inputs = prepare(model)
    lens, _ = native_logits(family, inputs)
    found = visual_logit_lens(model, inputs, layers=[3, 1], top_k=4, targets=["d", " is"])
    assert found.layers == (3, 1)
    words = found.words(row=2)
    for k, layer in enumerate(found.layers):
        for row, position in inputs.layout.mask("visual").nonzero().tolist():
            logits = lens[layer, row, position].double()
            probabilities = logits.softmax(-1)
            best = sorted(range(len(logits)), key=lambda i: -float(logits[i]))[:4]
            assert found.top_ids[k, row, position].tolist() == best
            torch.testing.assert_close(
                found.top[k, row, position].double(), probabilities[best], atol=1e-6, rtol=1e-5
            )
            entropy = -(probabilities * probabilities.log()).sum()
            assert float(found.entropy[k, row, position]) == pytest.approx(float(entropy), rel=1e-5)
            for word in ("d", " is"):
                i = first_token(model, word)
                assert model.tokenizer.decode([i]).strip() == word.strip()[0]
                assert float(found.targets[word][k, row, position]) == pytest.approx(
                    float(probabilities[i]), rel=1e-4
                )
                rank = sum(bool(logit > logits[i]) for logit in logits)
                assert int(found.ranks[word][k, row, position]) == rank
            if row == 2:
                assert words[k][position] == [model.tokenizer.decode([i]) for i in best]
    first_text = inputs.layout.positions("text")[2, 0]
    assert words[0][first_text] == []


def test_equals_transformer_lens(model):
    inputs = prepare(model)
    theirs = logit_lens(model, inputs, positions=None, top_k=3, return_type="logits")
    ours = visual_logit_lens(model, inputs, top_k=3, quantity="logits")
    mask = inputs.layout.mask("visual")
    assert torch.equal(ours.top_ids[:, mask], theirs.readout.top_ids[:, mask])
    torch.testing.assert_close(ours.top[:, mask], theirs.values[:, mask], atol=1e-6, rtol=1e-6)


def test_only_the_asked_positions_are_read(model, monkeypatch):
    inputs = prepare(model)
    read = []

    def spy(bridge, vectors, **options):
        read.append((len(vectors), options.get("chunk_size")))
        return real(bridge, vectors, **options)

    real = mm_lens.looking.logit_lens.logit_readout
    monkeypatch.setattr(mm_lens.looking.logit_lens, "logit_readout", spy)
    mask = torch.zeros_like(inputs.layout.newline)
    mask[0, inputs.layout.positions("visual")[0, :5]] = True
    found = visual_logit_lens(model, inputs, mask, layers=[0], chunk_size=2)
    assert set(read) == {(5, 2), (1, None)}  # the one checks the path, at the last state
    assert int(found.entropy.isfinite().sum()) == 5


def test_what_cannot_be_read_is_refused(model):
    inputs = prepare(model)
    with pytest.raises(InputError, match="no position"):
        visual_logit_lens(model, model.prepare("No picture."))
    with pytest.raises(InputError, match="no layer 4: there are 4"):
        visual_logit_lens(model, inputs, layers=[4])
    with pytest.raises(InputError, match="no token"):
        visual_logit_lens(model, inputs, targets=[" "])
    single = model.prepare("What is it?", random_image(31, 57))
    with pytest.raises(InputError, match="mask of shape"):
        visual_logit_lens(model, single, torch.ones(1, 2, dtype=torch.bool))


def test_a_changed_path_to_the_logits_is_noticed(fresh):
    inputs = prepare(fresh)
    fresh.add_hook("unembed.hook_in", lambda x, hook: -x)
    with pytest.raises(MMLensError, match="something else in between"):
        visual_logit_lens(fresh, inputs)


def test_eager_reads_the_same(family, model):
    inputs = prepare(model)
    eager = load_tiny(family, attention="eager", check=False)
    ours, theirs = (visual_logit_lens(m, inputs, quantity="logits") for m in (model, eager))
    mask = inputs.layout.mask("visual")
    torch.testing.assert_close(ours.top[:, mask], theirs.top[:, mask], atol=1e-4, rtol=1e-4)
