"""TransformerLens's own tests on our bridge: which pass on the plain one and fail here?

`make test-upstream`. Takes the tests of the installed version from its source distribution (kept in
a cache folder), runs them with a tiny LLaVA-NeXT in place of every loaded model, eager and sdpa,
text only and with a picture in every prompt that can take one, and the files of those that fail
once more on the plain bridge, in the same way. What passes there and is not in `KNOWN` is printed,
and makes the command fail.

Options: files of tests, as `tests/unit/test_patching.py`; `--only eager`, `sdpa`, `eager-images` or
`sdpa-images`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mm_lens" / "upstream"

MODES = ("eager", "sdpa", "eager-images", "sdpa-images")

ABOUT = (
    "alias|attribution|backward_hooks|bridge_generat|bridge_hook|bridge_manual|bridge_run_with|"
    "bridge_st|cach|cross_run|duplication|completeness|gated|generate|generation_comp|left_padding|"
    "hook_shape|loss_attention|model_protocol|patching|analysis_methods|reset_hooks|run_with|"
    "residual|sentinel|split_qkv|attn_in_fork|use_attn_result|unit/tools/test_logit_lens"
)
"""Files on bridge, hooks, caches, patching, generation and analysis."""

OTHERS = (
    "supported_architectures|/mps/|gpu|vllm|benchmarks/|/scripts/|_adapter|_tiny|bert|granite|"
    "no_tokenizer|expert|moe|encdec|seq2seq|diffusion|fallback_flags|generation_capability|"
    "generalized_components|hf_generate|mechanics|batch_decode|audio|jacobian|interchange"
)
"""Files on other architectures, backends and tools."""

KNOWN = {
    "sdpa": {
        r"none of this model's attention bridges support"
        r"|test_every_gated_hook_fires failed: AssertionError: {}|KeyError: 'fired_counts'": (
            "tests that turn on forked inputs or results of single heads, or count hooks that fire "
            "then: these do not exist there"
        ),
        r"assert 'sdpa' == 'eager'|isinstance\(NativeAttentionBridge": (
            "tests that assert that attention is eager, or of TransformerLens's own class"
        ),
    }
}
"""What tests that fail here may fail of, by bridge: pattern of name and message, and the reason, in
the words of docs/guarantees.md."""


def fetch() -> Path:
    """The folder that holds `tests/` of the installed version."""
    wanted = version("transformer-lens")
    folder = CACHE / wanted
    if (folder / "tests").is_dir():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary"]
    subprocess.run(
        [*pip, "transformer-lens", "-d", str(folder), f"transformer-lens=={wanted}"], check=True
    )
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=folder) as inside:
        # The tests alone: the package beside them would be imported instead of the installed one.
        tests = [m for m in tar.getmembers() if m.name.split("/")[1:2] == ["tests"]]
        tar.extractall(inside, members=tests, filter="data")
        next(Path(inside).glob("*/tests")).rename(folder / "tests")
    return folder


def choose(folder: Path) -> list[str]:
    """Test files that load a model and are about what we change."""
    loads = re.compile("boot_transformers|boot_native|gpt2_bridge")
    names = (str(path.relative_to(folder)) for path in (folder / "tests").rglob("test_*.py"))
    return sorted(
        name
        for name in names
        if re.search(ABOUT, name)
        and not re.search(OTHERS, name)
        and loads.search((folder / name).read_text())
    )


@dataclass
class Found:
    """Outcomes of the tests on a kind of bridge (see `plugin`), and those that showed a picture."""

    outcomes: dict[str, str]
    shown: list[str]

    def failed(self) -> dict[str, str]:
        """The tests that failed, and why."""
        return {test: why for test, why in self.outcomes.items() if why.startswith("failed")}

    def passed(self) -> set[str]:
        """The tests that passed."""
        return {test for test, outcome in self.outcomes.items() if outcome == "passed"}


def run(folder: Path, bridge: str, images: bool, tests: list[str]) -> Found:
    """Run tests on a kind of bridge."""
    with tempfile.TemporaryDirectory() as scratch:
        out, chosen, ini = (Path(scratch) / name for name in ("out.json", "tests", "pytest.ini"))
        chosen.write_text("\n".join(tests))
        ini.write_text("[pytest]\nmarkers = slow: takes long\n")
        paths = [str(x) for x in (folder, ROOT, ROOT / "adapters", ROOT / "tests", HERE)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "UPSTREAM_BRIDGE": bridge,
            "UPSTREAM_IMAGES": "1" if images else "",
            "UPSTREAM_OUT": str(out),
        }
        options = ["-c", str(ini), "--rootdir", str(folder), "-p", "plugin", "-q", "--tb=short"]
        command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", f"@{chosen}"]
        written = CACHE / f"{bridge}{'-images' * images}.log"
        with written.open("w") as log:
            subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log)
        if not out.exists():
            raise SystemExit(f"The tests did not run: see {written}")
        return Found(**json.loads(out.read_text()))


def report(folder: Path, mode: str, files: list[str]) -> int:
    """Run and print one mode; the number of tests lost here that nothing explains."""
    bridge, _, pictures = mode.partition("-")
    images = bool(pictures)
    ours = run(folder, bridge, images, files)
    failed = ours.failed()
    suspects = sorted(failed)
    # Whole files, as here: what one test leaves behind, the next may fail of.
    again = sorted({test.split("::")[0] for test in suspects})
    plain = run(folder, "plain", images, again).passed() if again else set()
    lost = sorted(test for test in suspects if test in plain)
    about = f", of {len(ours.shown)} tests with a picture" if images else ""
    passed = f"{mode}: {len(ours.passed())} pass{about}"
    print(f"{passed}; {len(lost)} fail here and pass on the plain bridge", flush=True)
    unknown = 0
    for test in lost:
        reasons = KNOWN.get(bridge, {}).items()
        said = f"{test} {failed[test]}"
        reason = next((told for which, told in reasons if re.search(which, said)), None)
        unknown += reason is None
        print(f"  {test}: {reason or 'NOT KNOWN: ' + repr(failed[test][:300])}", flush=True)
    return unknown


def main() -> int:
    """Run and print; 1 if a test passes on the plain bridge, fails here and is not known."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=MODES, action="append")
    parser.add_argument("files", nargs="*")
    asked = parser.parse_args()
    folder = fetch()
    files = asked.files or choose(folder)
    unknown = sum(report(folder, mode, files) for mode in asked.only or MODES)
    return int(unknown > 0)


if __name__ == "__main__":
    raise SystemExit(main())
