"""Tests stand where their module stands: `mm_lens/a/b.py` is tested in `tests/a/test_b.py`.

What departs from it is a row of one of two tables, with its reason.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
MIRRORED = {
    ROOT / "mm_lens": TESTS,
    ROOT / "adapters" / "mm_lens_adapters": TESTS / "adapters",
    ROOT / "demo_training": TESTS / "demo_training",
}

MODULES_WITHOUT_TESTS = {
    "mm_lens/check/attention.py": "as what is compared: tests/check/test_suite.py",
    "mm_lens/check/checks.py": "as what they find: tests/check/test_suite.py",
    "mm_lens/check/interventions.py": "as what they find: tests/check/test_suite.py",
    "mm_lens/check/native.py": "as what is compared: tests/check/test_suite.py",
    "mm_lens/check/painting.py": "by wrong places: tests/check/test_suite.py",
    "mm_lens/check/runs.py": "as what they find: tests/check/test_suite.py",
    "mm_lens/check/subject.py": "what every check is given: tests/check/test_suite.py",
    "mm_lens/check/traces.py": "by a check that leaves some: tests/check/test_suite.py",
    "mm_lens/check/views.py": "as what they find: tests/check/test_suite.py",
    "mm_lens/check/writing.py": "as what they find: tests/check/test_suite.py",
    "mm_lens/arguments.py": "by wrong uses of every function: tests/test_wrong_uses.py",
    "mm_lens/model/parts/freezing.py": "by all that differentiates: tests/attribution",
    "mm_lens/heads/patterns.py": "by its edits: tests/heads/test_reweighting.py",
    "mm_lens/looking/sampling.py": "by what samples states: tests/looking/lenses/test_curves.py",
    "mm_lens/looking/translating.py": "by its lenses: tests/looking/lenses/test_tuned.py",
    "mm_lens/model/parts/copying.py": "by copies and pickles: tests/test_wrong_uses.py",
    "mm_lens/cli/runs/comparing.py": "the command compare: tests/comparing/test_comparison.py",
    "mm_lens/cli/options.py": "by what every command refuses: tests/cli/samples/test_opened.py",
    "mm_lens/drawing/sample_page.py": "what commands write: tests/cli/samples/test_asking.py",
    "mm_lens/cli/models.py": "what commands say of models: tests/cli/test_commands.py",
    "mm_lens/cli/hook_options.py": "options of the command: tests/cli/test_commands.py",
    "mm_lens/cli/data/options.py": "options of commands: tests/cli/data/test_show.py and "
    "tests/cli/test_evaluating.py",
    "mm_lens/evaluating/asking.py": "what is asked and answered: tests/evaluating/test_run.py",
    "mm_lens/data/pixels.py": "with the pictures that hold them: tests/data/test_pictures.py",
    "mm_lens/data/prompts.py": "rendered by real processors: tests/model/test_inputs.py",
    "mm_lens/metrics/numerics/estimates.py": "what metrics return: tests/metrics/test_core.py",
    "mm_lens/metrics/__init__.py": "loads what packages add: tests/docs/test_metrics_pages.py",
    "mm_lens/layout/geometry.py": "a record, filled by tests/layout/test_tiles.py",
    "mm_lens/model/families/components.py": "in every bridge: tests/model/test_traps.py",
    "mm_lens/model/families/undeclared.py": "as others: tests/model/families/test_declaration.py",
    "mm_lens/attribution/running.py": "by all that differentiates: tests/attribution",
    "mm_lens/attribution/result.py": "with values: tests/attribution/test_gradients.py",
    "mm_lens/model/running/frames.py": "what every pass is: tests/model/test_forward.py",
    "mm_lens/model/report.py": "with the check that fills it: tests/model/test_check.py",
    "mm_lens/model/parts/guards.py": "by edits without effect: tests/model/test_traps.py",
    "mm_lens/model/naming.py": "spellings and filters: tests/model/test_hooks.py",
    "mm_lens/model/families/placeholders.py": "in each pass: tests/model/test_forward.py; of "
    "pixels: tests/model/families/test_declaration.py",
    "mm_lens/model/native.py": "whatever load is given: tests/model/test_loading.py",
    "mm_lens/model/running/attention_calls.py": "by what reads and changes them: "
    "tests/model/running/test_masks.py and tests/model/running/test_attention_hooks.py",
    "mm_lens/profiling/evaluation.py": "its numbers are the table's: tests/profiling/test_run.py",
    "mm_lens/profiling/points/lines.py": "what pictures show: tests/drawing/test_components.py",
    "mm_lens/profiling/points/probe.py": "refused names: tests/profiling/points/test_selection.py",
    "adapters/mm_lens_adapters/claims.py": "a table, read by tests/comparing/test_statements.py",
    "adapters/mm_lens_adapters/cohere2_vision.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/deepseek_vl.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/fitting.py": "by wrong processors: tests/model/test_loading.py",
    "adapters/mm_lens_adapters/gemma3.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/glm4v.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/grid_style.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/idefics3.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/internvl.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/llava.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/llava_onevision.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/minimax_m3.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/paligemma.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/pixtral_style.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/qwen_vl.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/square_style.py": "its declaration: tests/families",
    "adapters/mm_lens_adapters/llava_next.py": "joins layout and hooks: tests/model/test_traps.py",
    "adapters/mm_lens_adapters/llava_style.py": "of every family: tests/model/test_traps.py",
    "demo_training/fusion.py": "with its classes: tests/demo_training/test_fusions.py",
    "demo_training/llava_next.py": "with the other one: tests/demo_training/test_fusions.py",
    "demo_training/omnifusion.py": "with the other one: tests/demo_training/test_fusions.py",
    "demo_training/scenes/evaluate.py": "after training: tests/demo_training/scenes/test_train.py",
    "demo_training/scenes/joining.py": "a stage of tests/demo_training/scenes/test_train.py",
    "demo_training/scenes/reading.py": "a stage of tests/demo_training/scenes/test_train.py",
    "demo_training/scenes/seeing.py": "a stage of tests/demo_training/scenes/test_train.py",
}
"""Modules without a test file of their name: where they are tested, and why there."""

TESTS_WITHOUT_MODULE = {
    "tests/test_on_a_gpu.py": "every part of the package where a GPU is",
    "tests/test_wrong_uses.py": "what comes of wrong uses, over all packages",
    "tests/causal/test_patching_location.py": "where trained models look, over many pictures",
    "tests/cli/test_convert_command.py": "the command `mm-lens convert`, from files to files",
    "tests/cli/test_wrong_commands.py": "what comes of wrong command lines, over all commands",
    "tests/cli/test_startup.py": "what is imported when, over all modules",
    "tests/demo_training/test_shipped.py": "the weights that ship, which are no module",
    "tests/families/test_conformance.py": "every family, by mm_lens/check/suite.py",
    "tests/outside/test_methods.py": "every method against numbers of others, in docs/tools.md",
    "tests/outside/test_vlmprobe.py": "every method against vlmprobe's numbers, in docs/tools.md",
    "tests/docs/test_method_pages.py": "the code of the pages on methods, as docs/lenses.md",
    "tests/docs/test_errors_page.py": "the page docs/errors.md",
    "tests/docs/test_guarantees_page.py": "the page docs/guarantees.md, against the upstream suite",
    "tests/docs/test_metrics_pages.py": "the pages below docs/metrics and docs/adding_a_metric.md",
    "tests/docs/test_security_page.py": "the limits in docs/security.md, against the code",
    "tests/docs/test_data_pages.py": "the pages docs/data.md and docs/evaluating.md",
    "tests/docs/test_descriptive_page.py": "verdicts of docs/descriptive_or_prescriptive.md",
    "tests/docs/test_docstrings.py": "docstrings of what users call, over all packages",
    "tests/docs/test_readme.py": "the code of README.md",
    "tests/docs/test_site.py": "what the site holds, against docs/",
    "tests/drawing/test_in_browser.py": "pages of several modules, in a real browser",
    "tests/docs/test_code.py": "the code of the pages below docs/",
    "tests/docs/test_minimax_page.py": "the page docs/minimax_m3.md",
    "tests/test_typecheck.py": "the check of signatures that runs with the tests",
    "tests/test_quick_boot.py": "how tests look for hook points, against TransformerLens",
    "tests/docs/test_tutorials.py": "the notebooks below tutorials/",
    "tests/fuzz/test_fuzz.py": "a few cases of the fuzzer, over all that is read from files",
    "tests/metrics/numerics/test_held_out_error.py": "errors of held-out scores, where models are "
    "compared",
    "tests/metrics/test_image_coverage.py": "docs/metrics/coverage.md, over all metrics",
    "tests/metrics/test_coverage.py": "how often intervals hold the truth, over all metrics",
    "tests/model/test_many_families.py": "reruns, hybrid blocks and refusals, over several modules",
    "tests/model/test_traps.py": "one regression test for each trap of TransformerLens",
    "tests/profiling/test_prompts.py": "what a profile says of prompts, from reading to provenance",
    "tests/test_mirror.py": "this file and the tables in it",
    "tests/test_versions.py": "the bounds of pyproject.toml, and oldest.txt",
    "tests/test_public_surface.py": "public names of all packages, tests/public_surface.txt",
    "tests/causal/test_masks.py": "masks that are not causal, in mm_lens/causal/knockout.py and "
    "mm_lens/model/running/masks.py together",
}
"""Test files that no module answers to: what they test."""


def defines_something(package: Path) -> bool:
    """Whether an `__init__` does more than export names."""
    body = ast.parse(package.read_text()).body
    return any(
        isinstance(part, ast.ClassDef)
        or (isinstance(part, ast.FunctionDef) and part.name not in ("__dir__", "__getattr__"))
        for part in body
    )


def expected_tests() -> dict[str, str]:
    """Path of each module → path of the test file of its name, both below the root."""
    found = {}
    for source, tests in MIRRORED.items():
        for module in sorted(source.rglob("*.py")):
            place = module.relative_to(source)
            if module.stem.startswith("__"):
                if module.stem != "__init__" or not defines_something(module):
                    continue
                # A package that defines something is tested beside its folder.
                place = place.parent.with_suffix(".py")
            test = tests / place.parent / f"test_{place.name.lstrip(chr(95))}"
            found[module.relative_to(ROOT).as_posix()] = test.relative_to(ROOT).as_posix()
    return found


def present_tests() -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in TESTS.rglob("test_*.py")}


def test_every_module_has_a_test_file_of_its_name_or_a_reason():
    tests = present_tests()
    missing = {module for module, test in expected_tests().items() if test not in tests}
    assert missing - set(MODULES_WITHOUT_TESTS) == set()
    assert set(MODULES_WITHOUT_TESTS) - missing == set(), "no longer exceptions"


def test_every_test_file_has_its_module_or_a_reason():
    loose = present_tests() - set(expected_tests().values())
    assert loose - set(TESTS_WITHOUT_MODULE) == set()
    assert set(TESTS_WITHOUT_MODULE) - loose == set(), "no longer exceptions"


def test_reasons_name_files_that_exist():
    for reason in [*MODULES_WITHOUT_TESTS.values(), *TESTS_WITHOUT_MODULE.values()]:
        assert len(reason.split()) > 2
        for word in reason.replace(",", " ").replace(";", " ").split():
            if "/" in word or word.endswith((".py", ".md")):
                assert (ROOT / word).exists(), reason


def test_files_named_in_pages_exist():
    """Pages send readers to modules and tests, which move."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = re.compile(
        r"(?<![\w/])(?:mm_lens|adapters|demo_training|tests|docs|benchmarks)/[\w./-]*\.(?:py|md)\b"
    )
    lost = {
        f"{page.name}: {path}"
        for page in pages
        for path in named.findall(page.read_text())
        if not (ROOT / path).exists() and not (ROOT / "adapters" / path).exists()
    }
    assert lost == set()
