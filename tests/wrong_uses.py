"""A hundred and more wrong uses of the Python surface, each run for real, and what comes of it.

Run as a script: in a process of its own no type checker stands in front of the package, as with
users. It writes what happened as JSON; tests/test_wrong_uses.py judges. What each should come to is
here, beside the use: a message of ours that names the cause (`says`), Python's or TransformerLens's
own where that names it (`names`), a warning (`warns`), or the right result (`right`).
"""

from __future__ import annotations

import copy
import json
import pickle
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import before_transformers  # noqa: F401  torchvision, where it is
import numpy as np
import torch
from PIL import Image
from tiny import random_image, tiny_llava_next
from transformer_lens import patching as by_position

import mm_lens
from mm_lens import ablation, corruptions, datasets, knockout, patching, replacing
from mm_lens.causal import knockout_table
from mm_lens.data import Sample
from mm_lens.drawing import draw_layout, draw_values
from mm_lens.layout import Box
from mm_lens.looking import find_words, norms, visual_logit_lens
from mm_lens.model import take_rows

SIZE = (31, 57)


class Case:
    """One model, and what is used wrongly; made when first asked for."""

    image, other = random_image(*SIZE), random_image(20, 20, 2)

    @staticmethod
    def load(**options: Any) -> Any:
        model, processor = tiny_llava_next()
        return mm_lens.load(hf_model=model, processor=processor, check=False, **options)

    @cached_property
    def model(self) -> Any:
        return self.load()

    @cached_property
    def x(self) -> Any:
        return self.model.prepare("What is it?", self.image)

    @cached_property
    def y(self) -> Any:
        return self.model.prepare("What is it?", random_image(*SIZE, 1))

    @cached_property
    def batch(self) -> Any:
        images = [self.image, random_image(*SIZE, 1)]
        return self.model.prepare(["What is it?", "Why?"], images)

    @cached_property
    def text(self) -> Any:
        return self.model.prepare("What is it?", None)

    @cached_property
    def cache(self) -> Any:
        return self.model.run_with_cache(self.x)[1]

    @cached_property
    def answers(self) -> Any:
        tokens = [60, 61, 62]
        return mm_lens.Answers(self.model, self.x, ["a", "b", "c"], right="a", tokens=tokens)

    @cached_property
    def samples(self) -> list[Sample]:
        return [Sample(str(i), "What is it?", random_image(*SIZE, i), None) for i in range(5)]

    @cached_property
    def pairs(self) -> list[Any]:
        inputs = (self.model.prepare("What is it?", random_image(*SIZE, i)) for i in range(4))
        return [(x, self.answers.logit_diff) for x in inputs]

    @cached_property
    def profile(self) -> Any:
        return profile(self.model, self.samples)

    def hooked(self, *hooks: Any, inputs: Any = None, **options: Any) -> Any:
        inputs = self.x if inputs is None else inputs
        return self.model.run_with_hooks(inputs, fwd_hooks=list(hooks), **options)

    def cut(self, inputs: Any = None, **options: Any) -> Any:
        inputs = self.x if inputs is None else inputs
        with knockout.knockout(self.model, inputs, **options):
            return self.model(inputs)

    def sweep(self, *arguments: Any, **options: Any) -> Any:
        given = [self.model, self.y, self.cache, self.answers.logit_diff]
        given[: len(arguments)] = [
            g if a is None else a for a, g in zip(arguments, given, strict=False)
        ]
        return patching.get_act_patch_resid_pre(*given, progress=False, **options)

    def table(self, samples: Any = None, edges: Any = (("visual", "last"),), **options: Any) -> Any:
        samples = self.pairs if samples is None else samples
        return knockout_table(self.model, samples, edges, progress=False, **options)

    def ablate(self, *arguments: Any, **options: Any) -> Any:
        hooks = ablation.ablation_hooks(self.model, *arguments, **options)
        return self.model.run_with_hooks(self.x, fwd_hooks=hooks)


def profile(*arguments: Any, **options: Any) -> Any:
    return mm_lens.profile(*arguments, progress=False, **{"metrics": ["anisotropy"], **options})


def zero(rows: Any, hook: Any) -> Any:
    return rows * 0


VIEW = "blocks.0.visual.hook_resid_post"


MAPS = replacing.BlockMaps("visual", {}, frozenset())
DIRECTIONS = replacing.Subspaces("visual", {}, frozenset())


@dataclass(frozen=True)
class Use:
    """A wrong use, and what should come of it."""

    do: Callable[[Case], Any]
    kind: str
    text: str


def says(text: str, do: Callable[[Case], Any]) -> Use:
    return Use(do, "says", text)


def names(text: str, do: Callable[[Case], Any]) -> Use:
    return Use(do, "names", text)


def warns(text: str, do: Callable[[Case], Any]) -> Use:
    return Use(do, "warns", text)


def right(do: Callable[[Case], Any]) -> Use:
    return Use(do, "right", "")


def two_threads(c: Case) -> bool:
    """Each thread's cache holds its own pass."""
    found = []

    def run(x: Any) -> None:
        for _ in range(6):
            _, cache = c.model.run_with_cache(x, names_filter=mm_lens.names("z", "visual"))
            found.append((x, tuple(cache["z", 1, "visual"].shape[:2])))

    inputs = c.x, c.model.prepare("Why?", c.other)
    threads = [threading.Thread(target=run, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return all(shape == tuple(x.layout.valid("visual").shape) for x, shape in found)


def nan_model() -> Any:
    model = Case.load()
    with torch.no_grad():
        next(model.blocks[1].mlp.parameters()).fill_(float("nan"))
    return model


def nan_weights() -> Any:
    model, processor = tiny_llava_next()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    return mm_lens.load(hf_model=model, processor=processor)


def loaded_twice(c: Case) -> Any:
    model, processor = tiny_llava_next()
    for _ in range(2):
        mm_lens.load(hf_model=model, processor=processor, check=False)


def other_weights(c: Case) -> Any:
    model, processor = tiny_llava_next(seed=1)
    other = mm_lens.load(hf_model=model, processor=processor, check=False)
    return other.run_with_cache(other.prepare("What is it?", c.image))[1]


def copied(c: Case) -> bool:
    """A deep copy runs as the original, leaves nothing in it, and edits of the copy count."""
    model = c.load(attention="eager")
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each.set_use_hook_mlp_in(True)
    hook = ("blocks.1.hook_mlp_in", zero)
    one, two = (each.run_with_hooks(c.x, fwd_hooks=[hook]) for each in (model, twin))
    copy.deepcopy(model)  # fails where the copy has left a tensor with gradients
    return torch.equal(one, two) and not torch.equal(two, twin(c.x))


def file(content: bytes, name: str) -> str:
    path = Path(tempfile.mkdtemp()) / name
    path.write_bytes(content)
    return str(path)


def misspelt(c: Case) -> Any:
    folder = Path(tempfile.mkdtemp())
    (folder / "mine-llava").mkdir()
    return mm_lens.load(str(folder / "mine-lava"))


def bound(c: Case, *inputs: Any) -> Any:
    with c.model.bound(*inputs):
        return c.model(c.x.input_ids)


def is_same(c: Case, **options: Any) -> bool:
    return torch.equal(c.model(c.x, **options), c.model(c.x))


USES: dict[str, Use] = {
    # ---- prepare ----
    "no prompt": says("A prompt is a text", lambda c: c.model.prepare(None)),
    "a number as a prompt": says("not int 5", lambda c: c.model.prepare(5)),
    "an empty list of prompts": says("no prompt", lambda c: c.model.prepare([])),
    "an empty text": right(lambda c: c.model.prepare("", c.image).layout.counts("visual") == 49),
    "swapped": says("A prompt is a text", lambda c: c.model.prepare(c.image, "What?")),
    "a prompt of bytes": says("not bytes", lambda c: c.model.prepare(b"What?", c.image)),
    "half a character": says("half of a character", lambda c: c.model.prepare("\ud800", c.image)),
    "one of two prompts None": says(r"prompt 1", lambda c: c.model.prepare(["a", None], None)),
    "one image for two": says("images for 1", lambda c: c.model.prepare(["a", "b"], c.image)),
    "a word that takes no block's place": says(
        "how is out of affine", lambda c: replacing.replacement_hooks(c.model, MAPS, how="linear")
    ),
    "maps of no block": says(
        "no map of block 1", lambda c: replacing.replacement_hooks(c.model, MAPS, layers=[1])
    ),
    "a model in place of maps": says(
        "what fit_maps returns", lambda c: replacing.replacement_table(c.model, c.pairs, c.model)
    ),
    "directions that are no word": says(
        "directions are out of",
        lambda c: replacing.dimension_table(c.model, c.pairs, DIRECTIONS, directions="principal"),
    ),
    "no such image": says("cannot be read", lambda c: c.model.prepare("What?", "no-such.png")),
    "an image that is a number": says("not int", lambda c: c.model.prepare("What?", 3)),
    "an address": says("not fetched", lambda c: c.model.prepare("What?", "https://a.org/b.png")),
    "four axes": says("several", lambda c: c.model.prepare("", np.zeros((2, 5, 5, 3), np.uint8))),
    "normalised pixels": says("undo a norm", lambda c: c.model.prepare("", torch.randn(3, 8, 8))),
    "pixels of NaN": says("from nan", lambda c: c.model.prepare("", np.full((5, 5), np.nan))),
    "complex pixels": says("no pixels", lambda c: c.model.prepare("", np.zeros((5, 5), complex))),
    "no pixels": says("no pixels", lambda c: c.model.prepare("", np.zeros((0, 5), np.uint8))),
    "a line": right(lambda c: len(c.model.prepare("", Image.new("RGB", (90_000, 1))).text) == 1),
    "image=": says("called images=", lambda c: c.model.prepare("What?", image=c.image)),
    "a template as chat_template": says(
        "chat_template is one of", lambda c: c.model.prepare("", c.image, chat_template="{{ x }}")
    ),
    "a middle side": says(
        "padding_side is one", lambda c: c.model.prepare("", None, padding_side="middle")
    ),
    "two placeholders for one image": says(
        "2 image placeholder", lambda c: c.model.prepare("<image><image>?", c.image)
    ),
    "a message of another interface": says(
        "A part of a message",
        lambda c: c.model.prepare([{"role": "user", "content": [{"type": "image_url"}]}]),
    ),
    "inputs to no device": says("no device", lambda c: c.x.to("nowhere")),
    "inputs to a GPU that is not there": says("no device", lambda c: c.x.to("cuda:7")),
    "inputs to a dtype": says("takes a device", lambda c: c.x.to(torch.float16)),
    "an entry that inputs lack": names("they hold input_ids", lambda c: c.x["pixels"]),
    "an attribute that inputs lack": names("they hold input_ids", lambda c: c.x.pixels),
    "the first of the inputs": names("they hold input_ids", lambda c: c.x[0]),
    "inputs compared": right(lambda c: c.x == c.x and c.x != c.y and c.x in [c.y, c.x]),
    "a group that is none": says("Did you mean 'visual'", lambda c: c.x.layout.mask("vissual")),
    "a number as a group": says("No group", lambda c: c.x.layout.mask(3)),
    "a row that is not there": says("no row 9", lambda c: c.x.layout.row_of(9)),
    "a pixel outside": says("lies outside", lambda c: c.x.layout.tokens_at(0, 99, 0)),
    "rows by truth values": right(
        lambda c: torch.equal(
            take_rows(c.batch, torch.tensor([True, False]))["input_ids"], c.batch.input_ids[:1]
        )
    ),
    "rows from the end": right(
        lambda c: torch.equal(take_rows(c.batch, [-1])["pixel_values"], c.batch.pixel_values[1:])
    ),
    "rows that are not there": says("no row 5", lambda c: take_rows(c.batch, [5])),
    # ---- running ----
    "bare tokens": says("answer blind", lambda c: c.model(c.x.input_ids)),
    "a text with a placeholder": says("answer blind", lambda c: c.model("<image> What?")),
    "pixels None": says("answer blind", lambda c: c.model(c.x, pixel_values=None)),
    "an image as input": says("A model is called with", lambda c: c.model(c.image)),
    "pixels as input": says("A model is called with", lambda c: c.model(c.x.pixel_values)),
    "tokens as floats": says("A model is called with", lambda c: c.model(c.x.input_ids.float())),
    "truth values as tokens": says(
        "A model is called with", lambda c: c.model(torch.ones(1, 4, dtype=torch.bool))
    ),
    "a list of inputs": says("A model is called with", lambda c: c.model([c.x, c.y])),
    "a layout as input": says("A model is called with", lambda c: c.model(c.x.layout)),
    "nothing as input": names("input_ids|A model", lambda c: c.model(None)),
    "an id beyond the vocabulary": says(
        "no such token", lambda c: c.model(torch.tensor([[1, 5, 99999]]))
    ),
    "a negative id": says("no such token", lambda c: c.model(torch.tensor([[1, 5, -1]]))),
    "no tokens": says("no token", lambda c: c.model(torch.zeros(1, 0, dtype=torch.long))),
    "a mask of another length": says(
        "attention_mask is of shape", lambda c: c.model(c.x, attention_mask=torch.ones(1, 3))
    ),
    "sizes of another image": says(
        "Make tokens and pixels", lambda c: c.model(c.x, image_sizes=torch.tensor([[99, 5]]))
    ),
    "height and width swapped": says(
        "Make tokens and pixels", lambda c: c.model(c.x, image_sizes=c.x.image_sizes.flip(1))
    ),
    "tokens cut off": says(
        "Make tokens and pixels",
        lambda c: c.model(**{**c.x, "input_ids": c.x.input_ids[:, :9], "attention_mask": None}),
    ),
    "one row with the pixels of two": says(
        "Make tokens and pixels",
        lambda c: c.model(
            **{**c.batch, "input_ids": c.batch.input_ids[:1], "attention_mask": None}
        ),
    ),
    "pixels in half precision": right(
        lambda c: torch.allclose(
            c.model(c.x, pixel_values=c.x.pixel_values.half()), c.model(c.x), atol=0.05
        )
    ),
    "a return type that is none": names(
        "Invalid return_type", lambda c: c.model(c.x, return_type="bogus")
    ),
    "a start behind the end": names(
        "out of range", lambda c: c.model(torch.randn(1, 5, 24), start_at_layer=99)
    ),
    # ---- hooks and caches ----
    "a hook name misspelt": says(
        "mean 'blocks.0.visual.hook_resid_post'",
        lambda c: c.hooked(("blocks.0.vsual.hook_resid_post", zero)),
    ),
    "a hook that is none": says("hook_dict holds", lambda c: c.hooked(("nothing.of.ours", zero))),
    "a short name misspelt": says("mean 'resid_post'", lambda c: mm_lens.names("residpost")),
    "images in two lists": says("one list", lambda c: c.model.prepare("What?", [[c.image]])),
    "a prompt in the place of the picture": says(
        "swapped", lambda c: c.model.prepare(c.image, "What is it?")
    ),
    "an address as a path": says(
        "not fetched", lambda c: c.model.prepare("What?", Path("https://a.org/b.png"))
    ),
    "a question to no picture": says("cannot be read", lambda c: c.model.ask("What?", "no.png")),
    "one option": says("at least two", lambda c: c.model.ask("What?", c.image, options=["a"])),
    "a picture of a row that has none": says("no image 0", lambda c: c.text.plot()),
    "a head of no heads": says("leave head=", lambda c: norms(c.model, c.x).plot(head=1)),
    "a word that was not asked for": says(
        "not among the words", lambda c: visual_logit_lens(c.model, c.x).plot("red")
    ),
    "a metric of no table": says("no metric 'bogus'", lambda c: c.table().plot("bogus")),
    "a layer that was not swept": says(
        "was not swept", lambda c: c.sweep(axis="cell").plot(layers=[9])
    ),
    "a metric in place of a list": says(
        "Did you mean 'linearity_paper'", lambda c: profile(c.model, c.samples, metrics="linearity")
    ),
    "one metric in place of a list": says(
        r"As a list: \['anisotropy'\]", lambda c: profile(c.model, c.samples, metrics="anisotropy")
    ),
    "a directory that is not there": says("no directory ./nope", lambda c: mm_lens.load("./nope")),
    "a run twice in one place": says("overwrite=True", lambda c: saved_twice(c)),
    "a filter that matches nothing": says(
        "matches no hook point", lambda c: c.hooked((mm_lens.names("z", layers=[99]), zero))
    ),
    "add_hook with such a filter": says(
        "matches no hook point", lambda c: c.model.add_hook(lambda name: False, zero)
    ),
    "no pair": says(
        "Hooks are a list of pairs", lambda c: c.model.run_with_hooks(c.x, fwd_hooks=(VIEW, zero))
    ),
    "no list": says(
        "Hooks are a list of pairs", lambda c: c.model.run_with_hooks(c.x, fwd_hooks=zero)
    ),
    "a hook that is a text": says("A hook is a function", lambda c: c.hooked((VIEW, "zero"))),
    "a hook and its name swapped": says("A hook is a function", lambda c: c.hooked((zero, VIEW))),
    "add_hook of a text": says("A hook is a function", lambda c: c.model.add_hook(VIEW, "zero")),
    "add_hook of nothing": says("goes to a name", lambda c: c.model.add_hook(None, zero)),
    "a hook of one argument": says("is called as", lambda c: c.hooked((VIEW, lambda rows: rows))),
    "rows of another shape": says(
        "must return", lambda c: c.hooked((VIEW, lambda rows, hook: rows[:, :1]))
    ),
    "an array returned": says(
        "must return", lambda c: c.hooked((VIEW, lambda rows, hook: rows.detach().numpy()))
    ),
    "rows in double precision": right(
        lambda c: torch.equal(c.hooked((VIEW, lambda rows, hook: rows.double())), c.model(c.x))
    ),
    "a visual hook without an image": says(
        "Was the image forgotten",
        lambda c: c.hooked((VIEW, zero), inputs=c.model.to_tokens("What is it?")),
    ),
    "a hook behind the stop": says(
        "lies behind stop_at_layer",
        lambda c: c.hooked(("blocks.2.visual.hook_resid_post", zero), stop_at_layer=1),
    ),
    "a dead hook": says("never fires", lambda c: c.hooked(("rotary_emb.hook_out", zero))),
    "rotated queries under sdpa": says(
        "eager", lambda c: c.hooked(("blocks.0.attn.hook_rot_q", zero))
    ),
    "an edit of placeholders": says("does not reach", lambda c: c.hooked(("embed.hook_out", zero))),
    "a number as a filter": says(
        "names_filter is the name", lambda c: c.model.run_with_cache(c.x, names_filter=5)
    ),
    "a cache of nothing": warns(
        "nothing is cached|Nothing is cached",
        lambda c: c.model.run_with_cache(c.x, names_filter=mm_lens.names("z", layers=[99])),
    ),
    "a tuple of names": right(
        lambda c: len(c.model.run_with_cache(c.x, names_filter=(VIEW,))[1].cache_dict) == 1
    ),
    "a name of no hook": says(
        r'mm_lens.names\("resid_post"\) names it',
        lambda c: c.model.run_with_cache(c.x, names_filter="resid_post"),
    ),
    "a layer that is no list": says("list of layers", lambda c: mm_lens.names("z", layers=3)),
    "a layer that is a text": says("whole number", lambda c: mm_lens.names("z", layers=["3"])),
    "no layer": says("names no layer", lambda c: mm_lens.names("z", layers=[])),
    "no hook": says("names takes", lambda c: mm_lens.names(None)),
    "a modality that is none": says("no hook points for", lambda c: mm_lens.names("z", "image")),
    "a key of no layer": names("is not in this cache", lambda c: c.cache["resid_post", 99]),
    "a key the wrong way round": names("no key of a cache", lambda c: c.cache[1, "resid_post"]),
    "a number as a key": names("no key of a cache", lambda c: c.cache[3]),
    "nothing bound": says("nothing to bind", lambda c: bound(c)),
    "tokens bound": says("What is bound", lambda c: bound(c, c.x.input_ids)),
    "a list bound": says("What is bound", lambda c: bound(c, [c.x, c.y])),
    "two layouts bound": says(
        "different layouts", lambda c: bound(c, c.x, c.model.prepare("Why is it so?", c.image))
    ),
    "right padding, generated from": says(
        "padded on the right",
        lambda c: c.model.generate(
            c.model.prepare(["What is it?", "?"], [c.image, c.other], padding_side="right")
        ),
    ),
    "two threads": right(two_threads),
    "deep copies": right(copied),
    "a copy with hooks": says("has hooks", lambda c: hooked_copy(c)),
    "inputs pickled": right(lambda c: pickle.loads(pickle.dumps(c.x)).layout.shape == (1, 78)),
    "a cache pickled": says("cannot be pickled", lambda c: pickle.dumps(c.cache)),
    "a model pickled": says("cannot be pickled", lambda c: pickle.dumps(c.model)),
    # ---- patching, knock-out, ablation ----
    "clean and corrupted swapped": says(
        "corrupted input is", lambda c: c.sweep(None, c.cache, c.y)
    ),
    "inputs for a cache": says("The clean cache is", lambda c: c.sweep(None, None, c.x)),
    "a cache of another model": says(
        "of another model", lambda c: c.sweep(None, None, other_weights(c))
    ),
    "a metric of nothing": says(
        "returned NoneType", lambda c: c.sweep(None, None, None, lambda logits: None)
    ),
    "a metric by name": says(
        "is a function of logits", lambda c: c.sweep(None, None, None, "logit_diff")
    ),
    "no axis": says("names no group", lambda c: c.sweep(axis=None)),
    "an axis misspelt": says("No axis", lambda c: c.sweep(axis="bogus")),
    "corners in place of a box": says(
        "truth values", lambda c: c.sweep(axis={"box": (0, 0, 10, 10)})
    ),
    "a box as an axis": right(lambda c: c.sweep(axis=Box(0, 0, 10, 10)).values.shape == (3, 1, 1)),
    "an empty box": says("is empty", lambda c: c.sweep(axis={"box": Box(9, 9, 0, 0)})),
    "truth values as layers": says("list of numbers", lambda c: c.sweep(layers=[True])),
    "no batch": says("batch_size=0", lambda c: c.sweep(batch_size=0)),
    "results that are none": says("stack takes", lambda c: patching.stack(5)),
    "TransformerLens's sweep unbound": says(
        "answer blind",
        lambda c: by_position.get_act_patch_resid_pre(
            c.model, c.y.input_ids, c.cache, lambda logits: logits[0, -1, 3]
        ),
    ),
    "query and key swapped": says(
        "no query sees a key", lambda c: c.cut(query="visual", key="last")
    ),
    "no query": says("name of a group, a Box", lambda c: c.cut(query=None, key="visual")),
    "two keys": says("Several groups", lambda c: c.cut(query="last", key=["visual", "text"])),
    "weights as a mask": says("truth values", lambda c: c.cut(query="last", key=torch.rand(*SIZE))),
    "half a head": says(
        "list of numbers", lambda c: c.cut(query="last", key="visual", heads=[1.5])
    ),
    "a head that is no list": says(
        "list of numbers", lambda c: c.cut(query="last", key="visual", heads=1)
    ),
    "source and target": names("source", lambda c: c.cut(source="visual", target="last")),
    "a native model": says(
        "model is what mm_lens.load",
        lambda c: knockout.knockout(
            c.model.original_model, c.x, query="last", key="visual"
        ).__enter__(),
    ),
    "tokens in place of inputs": says(
        "inputs is what", lambda c: c.cut(c.x.input_ids, query="last", key="visual")
    ),
    "one sample in place of a list": says("Samples are", lambda c: c.table(c.pairs[0])),
    "samples without a metric": says("Samples are", lambda c: c.table([c.x])),
    "an edge in place of a list": says(
        "Edges are pairs", lambda c: c.table(edges=("visual", "last"))
    ),
    "an edge by one name": says("edges are a list", lambda c: c.table(edges="visual")),
    "half a window": says("window is a whole", lambda c: c.table(window=1.5)),
    "confidence in per cent": says("confidence is a number", lambda c: c.table(confidence=95)),
    "no resamples": says("n_resamples=0", lambda c: c.table(n_resamples=0)),
    "a metric of NaN": warns(
        "no finite number",
        lambda c: c.table(
            [(x, lambda logits: logits[:, -1, 0] * float("nan")) for x, _ in c.pairs]
        ),
    ),
    "means without how": says(
        "would do nothing", lambda c: c.ablate(c.x, "visual", layers=[0], means={0: torch.ones(24)})
    ),
    "a list of means": says(
        "needs means=", lambda c: c.ablate(c.x, "visual", layers=[0], how="mean", means=[0])
    ),
    "inputs as donor": says(
        "needs donor=", lambda c: c.ablate(c.x, "visual", layers=[0], how="resample", donor=c.y)
    ),
    "groups by one name": says(
        "groups are a list", lambda c: ablation.ablation_table(c.model, c.pairs, "visual")
    ),
    "the mean of no hook": says(
        "No hook point",
        lambda c: ablation.mean_activation(c.model, [c.x], "visual", layers=[0], hook="bogus"),
    ),
    "answers and logits of other inputs": says(
        "These answers are of inputs", lambda c: c.answers.logit_diff(c.model(c.batch))
    ),
    "answers and the last logits": says(
        "These answers are of inputs", lambda c: c.answers.logit_diff(c.model(c.x)[:, -1])
    ),
    "an answer beyond the vocabulary": says(
        "no token 999",
        lambda c: mm_lens.Answers(c.model, c.x, ["a", "b"], "a", tokens=[5, 999]).logit_diff(
            c.model(c.x)
        ),
    ),
    "half a token": says(
        "whole number", lambda c: mm_lens.Answers(c.model, c.x, ["a", "b"], "a", tokens=[5.5, 6.5])
    ),
    "answers swapped": says(
        "model is what", lambda c: mm_lens.Answers(c.x, c.model, ["a", "b"], "a")
    ),
    # ---- looking, drawing, corruptions ----
    "a lens on a text": says("inputs is what", lambda c: visual_logit_lens(c.model, "What?")),
    "a lens swapped": says("model is what", lambda c: visual_logit_lens(c.x, c.model)),
    "one target": says("list of words", lambda c: visual_logit_lens(c.model, c.x, targets="red")),
    "no words": says("top_k=0", lambda c: visual_logit_lens(c.model, c.x, top_k=0)),
    "more words than there are": says(
        "top_k=999", lambda c: visual_logit_lens(c.model, c.x, top_k=999)
    ),
    "a quantity misspelt": says(
        "quantity is one", lambda c: visual_logit_lens(c.model, c.x, quantity="prob")
    ),
    "a lens on NaN": says("not defined", lambda c: visual_logit_lens(nan_model(), c.x)),
    "norms of numbers of positions": says("mask", lambda c: norms(c.model, c.x, [0, 1])),
    "words in a list": says("a word or a few", lambda c: find_words(c.model, c.x, ["What"])),
    "values of another shape": says(
        "do not fit", lambda c: draw_values(c.image, c.x.layout, torch.zeros(3, 5))
    ),
    "inputs as a layout": says(
        "inputs.layout", lambda c: draw_values(c.image, c.x, torch.zeros(78))
    ),
    "a row to draw that is not there": says("no row 5", lambda c: draw_layout(c.x, row=5)),
    "three corners": says("A box is", lambda c: corruptions.remove_box(c.image, (0, 0, 5))),
    "a box of NaN": says("A box is", lambda c: corruptions.remove_box(c.image, (0, 0, 5, np.nan))),
    "a Box": right(
        lambda c: (
            corruptions.remove_box(c.image, Box(0, 0, 9, 9))
            == corruptions.remove_box(c.image, (0, 0, 9, 9))
        )
    ),
    "a colour beyond white": says("colour is", lambda c: corruptions.blank(c.image, (300, 0, 0))),
    "a colour in floats": says("colour is", lambda c: corruptions.blank(c.image, (0.5, 0.5, 0.5))),
    "a negative radius": says(
        "radius is", lambda c: corruptions.blur_box(c.image, (0, 0, 9, 9), radius=-3)
    ),
    "much noise": says("strength is", lambda c: corruptions.noise(c.image, "much")),
    # ---- profiles, data, loading ----
    "a data set by a wrong name": says("neither a data set", lambda c: profile(c.model, "easy")),
    "pictures as data": says("has no id", lambda c: profile(c.model, [c.image])),
    "tuples as data": says("A tuple is", lambda c: profile(c.model, [("What?", c.image)])),
    "inputs as data": says("A data set is", lambda c: profile(c.model, c.x)),
    "an iterator as data": says("A data set is", lambda c: profile(c.model, iter(c.samples))),
    "a number as an id": says(
        "is no text", lambda c: profile(c.model, [Sample(0, "What?", c.image, None)])
    ),
    "model and data swapped": says("needs a model", lambda c: profile(c.samples, c.model)),
    "no metric": says("No metric", lambda c: profile(c.model, c.samples, metrics=[])),
    "a preset that is no list": says(
        "Unknown preset: 'honest'", lambda c: profile(c.model, c.samples, presets="honest")
    ),
    "many tokens": says("whole number", lambda c: profile(c.model, c.samples, tokens="many")),
    "half a batch": says("whole number", lambda c: profile(c.model, c.samples, batch_size=2.5)),
    "half a seed": says("whole number", lambda c: profile(c.model, c.samples, seed=1.5)),
    "a budget with its unit": says(
        "budget is", lambda c: profile(c.model, c.samples, budget="1GB")
    ),
    "memory without its unit": says(
        "memory says how much", lambda c: profile(c.model, c.samples, memory="24")
    ),
    "a hook that is a number": says(
        "names no hook", lambda c: profile(c.model, c.samples, hooks=[3])
    ),
    "one token": right(
        lambda c: bool(
            profile(c.cache_of_one_token()).table.query("n_tokens <= 1").value.isna().all()
        )
    ),
    "weights of NaN, profiled": right(
        lambda c: bool(
            (profile(nan_model(), c.samples).table.query("layer >= 2").warning != "").all()
        )
    ),
    "weights of NaN, loaded": says("not finite", lambda c: nan_weights()),
    "a table compared": says(
        "is read from a directory", lambda c: mm_lens.compare(c.profile.table, 1)
    ),
    "models compared": says(
        "is read from a directory", lambda c: mm_lens.compare(c.model, c.model)
    ),
    "one profile compared": says("1 profiles", lambda c: mm_lens.compare(c.profile)),
    "a metric that was not measured": says(
        "holds no metric .* mean 'anisotropy'", lambda c: c.profile.plot("anisotropi")
    ),
    "a number as a data set": says("is a name", lambda c: datasets.load(5)),
    "half a limit": says("whole number", lambda c: datasets.load("easy-vqa", limit=2.5)),
    "a table without columns": says(
        "has no column", lambda c: datasets.load(file(b"a,b\n1,2\n", "a.csv"))
    ),
    "a table in another encoding": says(
        "cannot be read",
        lambda c: datasets.load(file("image,text\n,é\n".encode("latin1"), "a.csv")),
    ),
    "no name to load": says("Pass either", lambda c: mm_lens.load()),
    "an empty name": says("name_or_path is", lambda c: mm_lens.load("")),
    "a model by number": says("name_or_path is", lambda c: mm_lens.load(5)),
    "no such directory": says("no directory", lambda c: mm_lens.load("/no/such")),
    "a file in place of a directory": says(
        "no directory", lambda c: mm_lens.load(file(b"text", "model.txt"))
    ),
    "no such demo": says("No demo model", lambda c: mm_lens.load("demo/llava")),
    "a class as a model": says("no model of transformers", lambda c: mm_lens.load(hf_model=Case)),
    "a bridge as a model": says(
        "no model of transformers",
        lambda c: mm_lens.load(hf_model=c.model, processor=c.model.processor),
    ),
    "a model loaded twice": says("inside of a bridge", loaded_twice),
    "a tokenizer as a processor": says(
        "The processor has",
        lambda c: mm_lens.load(hf_model=tiny_llava_next()[0], processor=c.model.tokenizer),
    ),
    "a picture behind a text": says(
        r"is return_type, .*model\.ask\(text, picture\)", lambda c: c.model("Why?", c.image)
    ),
    "image for visual, in a cache": names(
        r"Did you mean blocks\.0\.visual\.hook_resid_post\?",
        lambda c: c.cache["resid_post", 0, "image"],
    ),
    "image for visual, in a hook": says(
        r"Did you mean 'blocks\.0\.visual\.hook_resid_post'\?",
        lambda c: c.hooked(("blocks.0.image.hook_resid_post", zero)),
    ),
    "a directory misspelt": says(r"no directory .*Did you mean '.*mine-llava'", misspelt),
    "flash attention": says(
        "attention is", lambda c: mm_lens.load("demo/llava-next", attention="f")
    ),
    "a GPU that is not there": says(
        "no device", lambda c: mm_lens.load("demo/llava-next", device="cuda:7")
    ),
}


def saved_twice(c: Case) -> None:
    where = tempfile.mkdtemp()
    for _ in range(2):
        c.profile.save(where)


def hooked_copy(c: Case) -> Any:
    c.model.add_hook(VIEW, zero)
    try:
        return copy.deepcopy(c.model)
    finally:
        c.model.reset_hooks()


def cache_of_one_token(self: Case) -> Any:
    """A cache of the one text token before an image, and one after: none to speak of."""
    inputs = self.model.prepare("", None, chat_template=False)
    return self.model.run_with_cache(inputs, names_filter=mm_lens.names("resid_post"))[1]


Case.cache_of_one_token = cache_of_one_token  # type: ignore[attr-defined]


def main() -> None:
    """Run every use, and write what came of it."""
    torch.set_num_threads(1)
    case, found = Case(), {}
    for name, use in USES.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = use.do(case)
                came = ["right" if use.kind == "right" and bool(result) else "returned", ""]
            except mm_lens.MMLensError as error:
                came = ["says", str(error)]
            except Exception as error:
                came = ["names", f"{type(error).__name__}: {error}"]
                if use.kind != "names":
                    came[1] += "".join(traceback.format_tb(error.__traceback__)[-2:])
        said = [str(w.message) for w in caught if issubclass(w.category, mm_lens.MMLensWarning)]
        if use.kind == "warns" and came[0] == "returned":
            came = ["warns", " ".join(said)]
        left = [n for n, point in case.model.hook_dict.items() if point.fwd_hooks]
        case.model.reset_hooks(including_permanent=True)
        found[name] = [*came, left]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
