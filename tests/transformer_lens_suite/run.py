"""TransformerLens's own tests on our bridge: which pass on the plain one and fail here?

`make test-upstream`. Takes the tests of the installed version from its source distribution (kept in
a cache folder), runs them with a tiny LLaVA-NeXT in place of every loaded model, eager and sdpa,
and those that fail once more on the plain bridge. What passes there and is not in `KNOWN` is
printed, and makes the command fail.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mm_lens" / "upstream"

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
        r"hook_(pattern|attn_scores|rot_[qk])|_input\b|hook_attn_in|do not exist|set_use_": (
            "under sdpa there are no scores, patterns and forked inputs"
        )
    }
}
"""What tests that fail here may fail of, by bridge: pattern of the message, and the reason that
docs/guarantees.md tells."""


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


def run(folder: Path, bridge: str, tests: list[str]) -> dict[str, str]:
    """Outcome of each test on a kind of bridge (see `plugin`)."""
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
            "UPSTREAM_OUT": str(out),
        }
        options = ["-c", str(ini), "--rootdir", str(folder), "-p", "plugin", "-q", "--tb=short"]
        command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", f"@{chosen}"]
        with (CACHE / f"{bridge}.log").open("w") as log:
            subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log)
        if not out.exists():
            raise SystemExit(f"The tests did not run: see {CACHE / bridge}.log")
        found: dict[str, str] = json.loads(out.read_text())
        return found


def main() -> int:
    """Run and print; 1 if a test passes on the plain bridge, fails here and is not known."""
    folder = fetch()
    files = sys.argv[1:] or choose(folder)
    ours = {bridge: run(folder, bridge, files) for bridge in ("eager", "sdpa")}
    failed = {
        bridge: {test: why for test, why in found.items() if why.startswith("failed")}
        for bridge, found in ours.items()
    }
    suspects = sorted(set().union(*failed.values()))
    plain = run(folder, "plain", suspects) if suspects else {}
    unknown = 0
    for bridge, found in ours.items():
        lost = sorted(test for test in failed[bridge] if plain.get(test) == "passed")
        passed = sum(outcome == "passed" for outcome in found.values())
        print(f"{bridge}: {passed} pass; {len(lost)} fail here and pass on the plain bridge")
        for test in lost:
            message = failed[bridge][test]
            reasons = KNOWN.get(bridge, {}).items()
            reason = next((told for which, told in reasons if re.search(which, message)), None)
            unknown += reason is None
            print(f"  {test}: {reason or 'NOT KNOWN: ' + message[:200]}")
    return int(unknown > 0)


if __name__ == "__main__":
    raise SystemExit(main())
