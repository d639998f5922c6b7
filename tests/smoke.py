"""The installed wheel, tried outside of the checkout: `make release` runs this with `python -I`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def check_files() -> None:
    """What must be in the wheel, and what must not."""
    files = {path.as_posix() for path in distribution("mm-lens").files or ()}
    for demo in ("llava-next", "omnifusion"):
        assert f"mm_lens/demo/{demo}/model.safetensors" in files, demo
    assert "mm_lens/demo/llava-next/dictionary/sae_weights.safetensors" in files
    for package in ("mm_lens", "mm_lens_adapters"):
        assert f"{package}/py.typed" in files, package
    assert "mm_lens/__init__.pyi" in files
    packages = {path for path in files if path.endswith("__init__.pyi")}
    assert len(packages) > 8, packages
    foreign = {path for path in files if "train" in path or "test" in path.lower()}
    assert not foreign, foreign
    folders = {path.split("/")[0] for path in files if not path.startswith("..")}
    extra = {f for f in folders if not f.startswith(("mm_lens", "mm_lens_adapters"))}
    assert not extra, extra
    assert importlib.util.find_spec("demo_training") is None


def check_commands() -> None:
    """The command line, from the environment's own script."""
    program = Path(sys.executable).parent / "mm-lens"
    for arguments in (["--help"], ["convert", "--help"], ["--version"]):
        run = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip()


def check_use() -> None:
    """Load, prepare, cache, edit and measure."""
    import mm_lens

    assert Path(mm_lens.__file__).parent != CHECKOUT / "mm_lens", "this is not the wheel"
    for name in mm_lens.demo.available():
        model = mm_lens.load(name)
        assert model.report.max_logit_difference == 0
        samples = mm_lens.datasets.load("easy-vqa", limit=4)
        inputs = model.prepare(samples[0].text, samples[0].image)
        names = mm_lens.names("resid_post", modality="visual")
        logits, cache = model.run_with_cache(inputs, names_filter=names)
        rows = cache["resid_post", 0, "visual"]
        assert rows.shape[:2] == (1, inputs.layout.counts("visual").item())
        blind = model.run_with_hooks(
            inputs, fwd_hooks=[("blocks.0.visual.hook_resid_post", lambda x, hook: x * 0)]
        )
        assert not blind.equal(logits)
        profile = mm_lens.profile(model, samples, presets=["paper"], progress=False)
        with tempfile.TemporaryDirectory() as folder:
            profile.save(Path(folder) / "run")
            again = mm_lens.Profile.load(Path(folder) / "run")
        assert again.table.equals(profile.table)
        assert set(profile.table.modality) == {"visual", "text", "all"}
        print(f"{name}: {len(profile.table)} values of {len(samples)} samples")


if __name__ == "__main__":
    check_files()
    check_commands()
    check_use()
    print("The wheel works.")
