"""`help` of what users call explains it there, with a short example that can be read as Python."""

from __future__ import annotations

import inspect
import re

import pytest

import mm_lens
from mm_lens import VisionLanguageBridge, causal, checkpoints, data, drawing, layout, looking
from mm_lens.causal import patching

CALLED = {
    **{f"mm_lens.{name}": getattr(mm_lens, name) for name in ("load", "names", "profile")},
    **{f"mm_lens.{name}": getattr(mm_lens, name) for name in ("measuring", "compare")},
    "mm_lens.datasets.load": data.datasets.load,
    "mm_lens.data.open_picture": data.open_picture,
    "mm_lens.convert": checkpoints.convert,
    "mm_lens.knockout.knockout": causal.knockout.knockout,
    **{
        f"causal.{name}": getattr(causal, name)
        for name in ("knockout_table", "ablation_hooks", "ablation_table", "mean_activation")
    },
    **{
        f"patching.{name}": getattr(patching, name)
        for name in patching.__all__
        if name.startswith("get_act_patch") or name in ("stack", "generic_activation_patch")
    },
    **{
        f"looking.{name}": getattr(looking, name)
        for name in ("attention_map", "cosine_to_mean", "find_words", "linearity_error", "norms")
    },
    "looking.visual_logit_lens": looking.visual_logit_lens,
    **{
        f"drawing.{name}": getattr(drawing, name)
        for name in ("draw_layout", "draw_values", "explore")
    },
    "layout.find_regions": layout.find_regions,
    "layout.group_mask": layout.group_mask,
    **{
        f"model.{name}": getattr(VisionLanguageBridge, name)
        for name in ("ask", "prepare", "bound", "run_with_hooks", "run_with_cache", "generate")
    },
}


@pytest.mark.parametrize("name", CALLED)
def test_it_is_explained_where_it_is_called(name):
    function = CALLED[name]
    text = inspect.getdoc(function) or ""
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples, "no example"
    for example in examples:
        compile(example.replace("…", "..."), name, "exec")
    assert not re.match(r"[^\n]*\bsee `[^`]*`\.?$", text, re.IGNORECASE), "a pointer"


@pytest.mark.parametrize("name", [name for name in CALLED if name.startswith("patching.get_act")])
def test_sweeps_have_arguments_of_their_own(name):
    function = CALLED[name]
    assert f"patching.{function.__name__}" == name
    named = inspect.signature(function).parameters
    assert [*named][:4] == ["model", "corrupted", "clean_cache", "patching_metric"]
    assert not {"activation_name", "heads"} & named.keys()
    arguments = (inspect.getdoc(function) or "").split("Args:")[1].split("Returns:")[0]
    told = re.findall(r"^    (\w+):", arguments, re.MULTILINE)
    assert told == [*named]
