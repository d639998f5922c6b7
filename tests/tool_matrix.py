"""The matrix of TransformerLens's tools, and how it is printed into docs/tools.md.

``python tests/tool_matrix.py`` runs tests/model/test_binding.py and prints what came out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import FAMILIES
from transformer_lens import patching
from transformer_lens.tools import analysis
from transformer_lens.tools.analysis.jacobian_lens import JacobianLens

DOCS = Path(__file__).parents[1] / "docs" / "tools.md"

BY_POSITION = {
    "resid_pre": ("layer", "pos"),
    "resid_mid": ("layer", "pos"),
    "attn_out": ("layer", "pos"),
    "mlp_out": ("layer", "pos"),
    "attn_head_out_by_pos": ("layer", "pos", "head"),
    "attn_head_q_by_pos": ("layer", "pos", "head"),
    "attn_head_k_by_pos": ("layer", "pos", "head"),
    "attn_head_v_by_pos": ("layer", "pos", "head"),
    "attn_head_pattern_by_pos": ("layer", "head_index", "dest_pos"),
    "attn_head_pattern_dest_src_pos": ("layer", "head_index", "dest_pos", "src_pos"),
    "attn_head_out_all_pos": ("layer", "head"),
    "attn_head_q_all_pos": ("layer", "head"),
    "attn_head_k_all_pos": ("layer", "head"),
    "attn_head_v_all_pos": ("layer", "head"),
    "attn_head_pattern_all_pos": ("layer", "head_index"),
}

PAIR = "`bound(corrupted, clean)`"
ONE = "`bound(inputs)`"
NONE = "nothing"
EQUAL, REFUSED, BLIND = "equal", "refused", "no pass"
CELLS = "3 cells: of the image, of the last position, at random"
MATRIX = {  # tool, or several of a kind: (what to bind, result, what is compared, remark)
    "patching.generic_activation_patch": (PAIR, EQUAL, CELLS, "through every function below"),
    **{f"patching.get_act_patch_{name}": (PAIR, EQUAL, CELLS, "") for name in BY_POSITION},
    "patching.get_act_patch_resid_mid": (
        PAIR,
        EQUAL,
        CELLS,
        "under `torch.no_grad()`; with gradients only the MLP has the edit, not the skip",
    ),
    "patching.get_act_patch_attn_head_all_pos_every": (PAIR, EQUAL, "1 cell of each kind", ""),
    "patching.get_act_patch_attn_head_by_pos_every": (PAIR, EQUAL, "1 cell of each kind", ""),
    "patching.get_act_patch_block_every": (PAIR, EQUAL, "2 cells of each kind", ""),
    "patching.get_act_patch_direct_path, analysis.get_act_patch_direct_path": (
        PAIR,
        EQUAL,
        "every destination of a head",
        'component "q"; TransformerLens refuses "k" and "v" where heads share keys; eager',
    ),
    "patching.get_act_patch_direct_path_all_sources, "
    "analysis.get_act_patch_direct_path_all_sources": (
        PAIR,
        EQUAL,
        "every source and destination",
        "as above",
    ),
    "analysis.attribution_patch": (
        PAIR,
        EQUAL,
        "every node, every edge",
        "edges need eager and a key per head",
    ),
    "analysis.faithfulness": (
        PAIR,
        EQUAL,
        "all, half and none of the edges",
        'eager, a key per head; `ablation="mean"` takes no tokens equal to the pair\'s, so none '
        "that differ in the image only",
    ),
    "analysis.logit_lens": (ONE, EQUAL, "every layer and position", ""),
    "analysis.logit_readout": (NONE, EQUAL, "every position of a layer", "takes vectors"),
    "analysis.direct_logit_attribution": (
        ONE,
        EQUAL,
        "every component, and their sum",
        "in compatibility mode, as always",
    ),
    "analysis.JacobianLens.readout": (ONE, EQUAL, "every position of a layer", ""),
    **{
        f"analysis.JacobianLens.{name}": (
            ONE,
            EQUAL,
            "with TransformerLens's solver on the native activation",
            "",
        )
        for name in ("decompose", "coordinate_patch", "occupancy", "fraction_of_variance")
    },
    "analysis.JacobianLens.fit": (
        "–",
        REFUSED,
        "",
        "takes strings, which hold no image; fit it on text",
    ),
    "analysis.collect_activations": (ONE, EQUAL, "one position of each row", ""),
    "analysis.run_with_intervention": (ONE, EQUAL, "both rows", ""),
    "analysis.intervened_logits": (ONE, EQUAL, "both rows", ""),
    "analysis.fit_das": (
        NONE,
        EQUAL,
        "the first loss",
        "draws batches: give row numbers, and "
        "`lambda i: model(mm_lens.model.take_rows(inputs, i))`",
    ),
    "analysis.reinitialized": (
        "–",
        REFUSED,
        "",
        "by TransformerLens; load a model made from its configuration: "
        "`mm_lens.load(hf_model=…, processor=…)`",
    ),
    "analysis.random_init_bridge": (
        "–",
        BLIND,
        "",
        "takes a name and makes a bridge without modality; as above",
    ),
    ", ".join(
        f"patching.{name}"
        for name in (
            "PatchingResult",
            "make_df_from_ranges",
            "layer_pos_patch_setter",
            "layer_pos_head_vector_patch_setter",
            "layer_head_vector_patch_setter",
            "layer_head_pattern_patch_setter",
            "layer_head_pos_pattern_patch_setter",
            "layer_head_dest_src_pos_pattern_patch_setter",
        )
    ): (NONE, BLIND, "", "parts of the sweeps"),
    ", ".join(
        f"analysis.JacobianLens.{name}"
        for name in (
            "steering_hooks",
            "ablation_hooks",
            "swap_hooks",
            "swap_clamp_hooks",
            "coordinate_patch_hooks",
        )
    ): (NONE, BLIND, "", "make hooks, for `model.run_with_hooks(inputs, …)`"),
    ", ".join(
        f"analysis.JacobianLens.{name}"
        for name in (
            "source_layers",
            "save",
            "load",
            "from_pretrained",
            "merge",
            "validate_model",
            "clear_device_cache",
            "transport",
            "lens_vectors",
            "lens_vector_dictionary",
        )
    ): (NONE, BLIND, "", "files, weights and vectors"),
    ", ".join(
        f"analysis.{name}"
        for name in (
            "JacobianLens",
            "EdgeAttributionConfig",
            "FaithfulnessConfig",
            "JSpaceDecomposition",
            "LearnedSubspace",
            "Node",
            "NormMatchedPlacebo",
            "SparseProbeConvergenceError",
            "SubspaceBasis",
            "SubspaceInterchange",
        )
    ): (NONE, BLIND, "", "classes that the tools take, make or raise"),
    ", ".join(
        f"analysis.{name}"
        for name in (
            "arbitrary_targets",
            "attention_head_subspace_affinity",
            "fit_sparse_probe",
            "get_sparse_decomposition",
            "mean_difference_basis",
            "neuron_basis",
            "orthonormal_subspace",
            "probe_basis",
            "projection_kernel",
            "random_basis",
            "random_neuron_basis",
            "random_projection_kernel_moments",
            "solve_coordinate_patch",
            "sweep_sparse_probe",
        )
    ): (NONE, BLIND, "", "weights, labels or given activations only"),
}


def compares(*tools):
    """Note which rows of the matrix a test holds true; `{name}` is a parameter of the test."""

    def note(test):
        test.tools = tools
        return test

    return note


def compared(item):
    """(tool, family) of all that one item of pytest compares."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    tools = getattr(item.function, "tools", ())
    return [(tool.format(**params), params["case"]) for tool in tools]


class Results:
    """A plugin of pytest: what came out of each test, by tool and family."""

    def __init__(self):
        self.passed = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        for key in compared(item) if call.when == "call" else ():
            self.passed[key] = self.passed.get(key, True) and report.passed
        return report

    def result(self, tools, family, claimed):
        """What is printed of a row."""
        if claimed == BLIND:
            return claimed
        run = [self.passed.get((tool, family)) for tool in tools.split(", ")]
        return claimed if all(run) else "FAILED" if False in run else "not run"


def table(result=lambda tools, family, claimed: claimed):
    """The matrix in Markdown."""
    head = ["| Tool | Bind | " + " | ".join(FAMILIES) + " | Compared | Remark |"]
    head.append("|---" * (4 + len(FAMILIES)) + "|")
    lines = []
    for tools, (bind, claimed, what, remark) in MATRIX.items():
        names = ", ".join(f"`{name}`" for name in tools.split(", "))
        results = [result(tools, family, claimed) for family in FAMILIES]
        lines.append(f"| {names} | {bind} | {' | '.join(results)} | {what} | {remark} |")
    return "\n".join([*head, *lines])


def public(module):
    """Functions and classes that a module defines for others, partial functions too."""
    for name, value in vars(module).items():
        origin = getattr(getattr(value, "func", value), "__module__", None)
        if not name.startswith("_") and origin == module.__name__:
            yield name


def tools():
    """All there are, by the names of the matrix."""
    return {
        *(f"patching.{name}" for name in public(patching)),
        *(f"analysis.{name}" for name in analysis.__all__),
        *(f"analysis.JacobianLens.{n}" for n in vars(JacobianLens) if not n.startswith("_")),
    }


def main():
    """Run all tests of the tools, and print their results into the docs."""
    results = Results()
    tests = Path(__file__).parent / "model" / "test_binding.py"
    # Without checks of types, which want to be the first to import mm_lens.
    options = ["-q", "-o", "addopts=--import-mode=importlib"]
    pytest.main([str(tests), *options], plugins=[results])
    printed = table(results.result) + "\n"
    text = DOCS.read_text("utf-8")
    DOCS.write_text(text[: text.index("| Tool |")] + printed, "utf-8")  # it is the end of the page
    sys.stdout.write(printed)


if __name__ == "__main__":
    main()
