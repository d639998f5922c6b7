"""What is cut at a place of a growing text, by hand; against native models: test_rewriting.py."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import load_tiny
from made_layouts import image, laid_out, token
from native_writing import edges_cut, native_greedy
from tiny import random_image, tiny_llava_next

from mm_lens import InputError, MMLensWarning, VisionLanguageBridge
from mm_lens.causal.cutting import (
    Check,
    Edges,
    attention_of,
    choose_heads,
    kept_keys,
    same_for_copies,
    with_attention,
)
from mm_lens.causal.knockout import knockout
from mm_lens.model.running.writing import Place


def drawn(edges):
    return ["".join("x" if key else "." for key in row) for row in edges]


def a_layout():
    """One word, two image tokens, two words; and padding, one image token, three words."""
    two = image(4, 8, token(0, 0, 0, 0, 0, 4, 4), token(0, 0, 1, 4, 0, 8, 4))
    one = image(4, 4, token(0, 0, 0, 0, 0, 4, 4))
    return laid_out([1, two, 2], [-1, one, 3])


class Pass:
    """What is asked of a forward pass, without a model: where in the text of a layout it is."""

    def __init__(self, layout, rows, start=0, total=5, *, writing=False, decoding=False):
        self.layout, self.stands = layout, Place(torch.tensor(rows), start, total)
        self.writing, self.decoding = writing, decoding
        self.asked = 0

    def place(self, layout, what):
        assert layout is self.layout
        assert what == "The knock-out"
        self.asked += 1
        return self.stands


def test_edges_of_a_step_by_hand():
    """Two beams of the second row at their second new position."""
    layout = a_layout()
    step = Place(torch.tensor([1, 1]), 6, 7)
    for query, key, want in (
        ("text", "visual", ".x....."),
        ("written", "text after", "..xxxxx"),
        ("visual", "text", "......."),
        ("last", "written", ".....xx"),
    ):
        cut = Edges(layout, query, key).at(step)
        assert cut.shape == (2, 1, 1, 7)
        assert drawn(cut[:, 0, 0]) == [want] * 2, query
    kept = Edges(layout, "all", "all", keep_self=True).at(step)
    assert drawn(kept[:1, 0, 0]) == [".xxxxx."]
    heads = torch.tensor([True, False, True])
    cut = Edges(layout, "last", "visual", heads=heads).at(step)
    assert cut[0, :, 0].any(-1).tolist() == [True, False, True]


def test_edges_are_made_once_for_the_blocks_of_a_pass():
    layout = a_layout()
    edges = Edges(layout, "last", "visual")
    cut_in = inspect.unwrap(Edges.__call__)  # a pass of the model is asked for
    first, second = Pass(layout, [0]), Pass(layout, [1])
    for one, want in ((first, ".xx.."), (second, ".x..."), (first, ".xx..")):
        for _ in range(3):
            assert drawn(cut_in(edges, one)[0, 0]) == [*4 * ["....."], want]
    assert (first.asked, second.asked) == (2, 1)


def test_copies_lose_the_same_keys_one_after_the_other():
    layout, required = a_layout(), []
    edges = torch.rand(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    thrice = SimpleNamespace(shape=(6, 5), require=lambda *asked: required.append(asked))
    cut = inspect.unwrap(same_for_copies(edges, layout))(thrice)
    assert torch.equal(cut, torch.cat([edges, edges, edges]))
    assert required == [(layout, "The knock-out")]


# ---- whether something is cut, and something left ----

CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
ITSELF = torch.eye(5, dtype=torch.bool)


def tell(check, one, block, *seen):
    """A block of a pass: what its queries see, row by row."""
    edges = Edges(check.layout, "last", "visual").at(one.stands)
    inspect.unwrap(Check.__call__)(check, block, one, torch.stack(seen)[:, None], edges)


def test_the_verdict_on_a_pass_is_that_of_all_its_blocks():
    layout = a_layout()
    check, one = Check(layout, "e", [5, 0, 2]), Pass(layout, [0, 1])
    for _ in range(2):
        tell(check, one, 0, CAUSAL, ITSELF)
        tell(check, one, 2, ITSELF, ITSELF)
        tell(check, one, 5, ITSELF, CAUSAL)
    copies = Pass(layout, [0, 1, 0, 1])
    tell(check, copies, 0, CAUSAL, ITSELF, ITSELF, ITSELF)
    tell(check, copies, 2, ITSELF, ITSELF, ITSELF, CAUSAL)
    tell(check, copies, 5, ITSELF, ITSELF, ITSELF, ITSELF)
    check.close()
    tell(check, one, 0, CAUSAL, ITSELF)  # what an earlier pass cut does not count
    tell(check, one, 2, CAUSAL, ITSELF)
    with pytest.raises(InputError, match="nothing to knock out in row 1: of e, no query"):
        tell(check, one, 5, ITSELF, ITSELF)
    for blocks, where in (([2], "block 2"), ([2, 0], "any of the blocks")):
        check = Check(layout, "e", blocks)
        with pytest.raises(InputError, match=f" row 0: of e, no query sees a key at {where}. A "):
            tell(check, one, 2, ITSELF, ITSELF)


def test_the_verdict_on_a_text_that_is_written_comes_at_its_end():
    """Of all its passes; the second row is written twice, as two beams."""
    layout = a_layout()
    check = Check(layout, "e", [0, 2])
    check.close()  # nothing was run, nothing is said
    prompt = Pass(layout, [0, 1, 1], writing=True)
    for block in (0, 2):
        tell(check, prompt, block, ITSELF, ITSELF, ITSELF)
    step = Pass(layout, [0, 1, 1], 5, 6, decoding=True)
    last = torch.tensor([6 * [True]])
    none = torch.tensor([5 * [False] + [True]])
    for block in (0, 2):
        tell(check, step, block, last, none, none)
    with pytest.raises(InputError) as error:
        check.close()
    assert " row 1: of e, no query sees a key at any of the blocks. " in str(error.value)
    tell(check, step, 0, none, none, last)
    tell(check, step, 2, none, none, none)
    check.close()
    visual = torch.tensor([[False, True, False, False, False, False]])
    with pytest.raises(InputError, match=r"Position 5 of row 1 would .* at block 2, so"):
        tell(check, step, 2, last, visual, last)


def test_a_block_by_hand():
    """Two rows, three heads, two queries: the first sees one key, the second two, none a third."""
    check = Check(a_layout(), "e", [3])
    seen = torch.tensor([[True, False, False], [True, True, False]]).expand(2, 3, 2, 3).clone()
    edges, real = torch.zeros_like(seen), torch.ones(2, 2, dtype=torch.bool)
    edges[0, 1, 1, 0] = edges[0, 1, 1, 2] = edges[1, 0, 0, 2] = True
    assert check.block(3, seen, edges, real).tolist() == [True, False]
    assert check.block(3, seen[:1], edges, real).tolist() == [True, False]
    blind = seen.clone()
    blind[0, :, 0] = False  # as padding may see nothing: that is not the knock-out's doing
    assert check.block(3, blind, edges, real).tolist() == [True, False]
    edges[1, 2] = True
    for unreal, start, said in (
        ([], 0, "Position 0 of row 1"),
        ([], 4, "Position 4 of row 1"),
        ([0], 4, "Position 5 of row 1"),
    ):
        true = real.clone()
        true[1, unreal] = False
        with pytest.raises(InputError, match=f"^{said} would be left without any key to attend to"):
            check.block(3, seen, edges, true, *([start] if start else []))
    assert check.block(3, seen, edges, real & torch.tensor([[True], [False]])).all()
    with pytest.raises(InputError, match="in row 0: of e, no query sees a key at all"):
        check.verdict(torch.tensor([False, False]), "all")


# ---- what of a model can be cut ----


def test_keys_that_a_cache_has_by_hand():
    """The latest four of seven; or room for two more behind them."""
    keys = torch.tensor([[c == "x" for c in row] for row in ("x..x.x.", ".x.xx.x")])[None, None]
    for sizes, want in (
        ((4, 2), [".x.x", ".xx."]),
        ((9, 0), ["x..x.x...", ".x.xx.x.."]),
        ((7, 0), ["x..x.x.", ".x.xx.x"]),
    ):
        # By the number of queries and the block.
        cache = SimpleNamespace(get_mask_sizes=lambda n, layer, at=sizes: {(2, 1): at}[n, layer])
        frame = SimpleNamespace(inputs={"past_key_values": cache})
        assert drawn(inspect.unwrap(kept_keys)(frame, 1, keys)[0, 0]) == want
    for inputs in ({}, {"past_key_values": None}, {"past_key_values": ()}):
        frame = SimpleNamespace(inputs=inputs)
        assert inspect.unwrap(kept_keys)(frame, 1, keys) is keys


class Blocks(VisionLanguageBridge):
    """A model, as far as it is asked which of its blocks have attention, and how many heads."""

    def __init__(self, *blocks):
        vars(self).update(blocks=blocks, cfg=SimpleNamespace(n_layers=len(blocks), n_heads=4))

    def __repr__(self):
        return "Blocks"


def test_blocks_with_and_without_attention():
    attends, mixes = SimpleNamespace(attn="its attention"), SimpleNamespace(mixer=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert with_attention(Blocks(attends, attends)) == [0, 1]
    with pytest.warns(MMLensWarning) as warned:
        assert with_attention(Blocks(mixes, attends, SimpleNamespace(attn=None), attends)) == [1, 3]
    assert str(warned[0].message) == (
        "Blocks 0, 2 have no attention to knock out: they mix positions in another way, and let "
        "pass there what is knocked out in the others."
    )
    none = "Block 0 has no attention to knock out"
    with pytest.raises(InputError, match=none):
        with_attention(Blocks(mixes, mixes))
    assert attention_of(Blocks(mixes, attends), 1) == "its attention"
    for block in (mixes, SimpleNamespace(attn=None)):
        with pytest.raises(InputError, match="Block 1 has no attention to knock out"):
            attention_of(Blocks(attends, block), 1)


def test_chosen_heads_by_hand():
    model = Blocks()
    assert choose_heads(model, None) is None
    assert choose_heads(model, [1, -1]).tolist() == [False, True, False, True]
    assert choose_heads(model, range(2)).tolist() == [True, True, False, False]
    for heads, said in (
        ([], "heads= names no head. Leave it out to take all."),
        ([0, 4], "There is no head 4: there are 4, 0 to 3 (or -4 to -1 from the end)."),
    ):
        with pytest.raises(InputError) as error:
            choose_heads(model, heads)
        assert str(error.value) == said


def test_keys_that_a_sliding_window_still_has():
    """Its cache keeps the latest alone: what is hidden are those columns of the whole text."""
    options = {"language": {"sliding_window": 5}}
    native = tiny_llava_next(**options)[0]
    native.set_attn_implementation("eager")
    inputs = None
    for attention in ("sdpa", "eager"):
        model = load_tiny(attention=attention, check=False, **options)
        inputs = model.prepare("What is it, then?", random_image(20, 20))
        n = inputs.input_ids.shape[1]
        near = torch.zeros(1, n, dtype=torch.bool)
        near[:, n - 4 : n - 1] = True

        def under(total, near=near, n=n):
            edges = torch.zeros(1, total, total, dtype=torch.bool)
            edges[:, n - 1 :, n - 4 : n - 1] = True
            return edges_cut(native, edges, [0, 1, 2])

        tokens, logits = native_greedy(native, inputs, 4, under)
        _, plain = native_greedy(native, inputs, 4)
        with knockout(model, inputs, query="last", key=near):
            found = model.generate(
                inputs,
                max_new_tokens=4,
                do_sample=False,
                stop_at_eos=False,
                output_logits=True,
                verbose=False,
                suppress_tokens=[*range(90, 113)],
            )
        assert torch.equal(found.sequences[:, n:], tokens)
        assert (torch.stack(found.logits, 1) - logits).abs().max() < 1e-4 * logits.std()
        assert (logits - plain)[:, :2].abs().amax(-1).min() > 1e-2
