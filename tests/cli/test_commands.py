"""The command line: what it writes, and one clear line for whatever goes wrong."""

from __future__ import annotations

import errno
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tiny import random_image, tiny_llava_next

import mm_lens
from mm_lens.cli import commands as cli
from mm_lens.model.streams import STREAMS
from mm_lens.profiling.result import Profile


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model and its processor on disk."""
    path = tmp_path_factory.mktemp("model")
    for part in tiny_llava_next():
        part.save_pretrained(path)
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        random_image(20 + i, 30, i).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def profile(model, images, tmp_path, capsys):
    """Run `mm-lens profile` on the tiny model; returns exit code, stdout and stderr."""

    def run(*extra: str, **changed: object) -> tuple[int, str, str]:
        given = {"model": model, "data": images, "out": tmp_path / "runs" / "one", **changed}
        options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        code = cli.run(["profile", *options, "--no-check", "--presets", "paper", *extra])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def no_pictures(monkeypatch):
    """For runs whose pictures nobody looks at: they take most of the time."""
    monkeypatch.setattr("mm_lens.drawing.report.write", lambda profile, directory: iter(()))
    monkeypatch.setattr(cli, "_draw_sample", lambda model, data, directory: [])


def is_one_line(err: str) -> bool:
    """One message; progress shown before it does not count."""
    lines = [line for line in err.splitlines() if line.startswith("mm-lens: ")]
    return len(lines) == 1 and err.endswith(lines[0] + "\n") and "Traceback" not in err


def test_profile_writes_what_it_promises(profile, tmp_path, images):
    out = tmp_path / "runs" / "one"
    code, stdout, stderr = profile("--tokens", "30", "--batch-size", "3", "--seed", "5")
    assert code == 0
    assert "4/4" in stderr
    saved = Profile.load(out)
    pictures = [f"{metric}.png" for metric in set(saved.table.metric)]
    tables = {"profile.parquet", "profile.csv", "replicates.parquet", "provenance.json"}
    tables |= {"config.yaml"}
    files = {*tables, "SHA256SUMS", "report.html", "overview.png", "sample.png", *pictures}
    assert {path.name for path in out.iterdir()} == files
    assert [path.name for path in out.parent.iterdir()] == ["one"]
    assert "One of the samples" in (out / "report.html").read_text("utf-8")
    assert set(saved.table.stream) == {"residual", "main"}
    assert saved.provenance["options"]["seed"] == 5
    assert saved.provenance["options"]["tokens"] == 30
    assert saved.provenance["data"]["name"] == str(images)
    pd.testing.assert_frame_equal(
        pd.read_csv(out / "profile.csv", keep_default_na=False, na_values={"value": ""})[
            ["layer", "metric"]
        ],
        saved.table[["layer", "metric"]],
    )
    again = yaml.safe_load((out / "config.yaml").read_text())
    assert (again["command"], again["tokens"], again["batch-size"]) == ("profile", 30, 3)
    for word in ("residual", "main", "visual", "text", "all", "report.html", "warnings"):
        assert word in stdout
    lines = [line for line in stdout.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 100
    row = saved.table.query(
        "stream == 'main' and modality == 'visual' and layer == 3 and metric == 'linearity_paper'"
    )
    assert f"{row.value.item():.2f}" in stdout


def test_equals_the_python_surface(no_pictures, profile, model, images, tmp_path):
    assert profile("--quiet", "--streams", "main", device="cpu")[0] == 0
    table = mm_lens.profile(
        mm_lens.load(str(model), device="cpu", check=False),
        mm_lens.datasets.load(images),
        streams=["main"],
        presets=["paper"],
        progress=False,
    ).table
    pd.testing.assert_frame_equal(
        Profile.load(tmp_path / "runs" / "one").table, table, check_exact=True
    )


def test_quiet_says_nothing(no_pictures, profile):
    assert profile("--quiet") == (0, "", "")


def test_existing_directory_is_replaced_only_when_asked(no_pictures, profile, tmp_path):
    out = tmp_path / "runs" / "one"
    assert profile("--quiet")[0] == 0
    before = (out / "provenance.json").read_text()
    code, _, err = profile("--quiet")
    assert (code, is_one_line(err)) == (1, True)
    assert "exists already" in err
    assert (out / "provenance.json").read_text() == before
    assert profile("--quiet", "--overwrite", "--seed", "3")[0] == 0
    assert json.loads((out / "provenance.json").read_text())["options"]["seed"] == 3


@pytest.mark.parametrize(
    ("changed", "extra", "code", "message"),
    [
        ({"model": "no/such/folder"}, (), 1, "no/such/folder"),
        ({"model": "demo/no-such"}, (), 1, "demo/no-such"),
        ({"data": "no-such-data"}, (), 1, "no-such-data"),
        ({}, ("--device", "warp"), 2, "warp"),
        ({}, ("--samples", "0"), 2, "--samples"),
        ({}, ("--tokens", "some"), 2, "--tokens"),
        ({}, ("--streams", "residual,stray"), 2, "residual, main"),
        ({}, ("--split", "dev"), 1, "--split"),
        ({}, ("--prompt", "{nope}"), 1, "names the column 'nope'"),
        ({}, ("--image-column", "pic"), 1, "holds no table"),
        ({}, ("--metrics", "anisotropy,stray"), 2, "stray"),
        ({}, ("--sampels", "3"), 2, "--samples"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(profile, tmp_path, changed, extra, code, message):
    before = sorted(tmp_path.rglob("*"))
    found, out, err = profile(*extra, **changed)
    assert found == code
    assert is_one_line(err)
    assert message in err
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_metrics_by_name(profile, tmp_path, no_pictures):
    assert profile("--metrics", "mean_cosine, anisotropy", "--quiet")[0] == 0
    table = pd.read_parquet(tmp_path / "runs" / "one" / "profile.parquet")
    assert {*table.metric} == {"anisotropy", "mean_cosine"}


def test_json(no_pictures, profile, tmp_path):
    code, stdout, _ = profile("--json", "--metrics", "anisotropy", "--streams", "residual")
    found, saved = json.loads(stdout), Profile.load(tmp_path / "runs" / "one")
    assert (code, found["samples"], found["values"]) == (0, 4, len(saved.table))
    assert {"profile.csv", "config.yaml"} <= {*found["files"]}
    want = saved.table[saved.table.metric == "anisotropy"]
    assert [row["value"] for row in found["headline"]] == pytest.approx(want.value.tolist())


@pytest.mark.parametrize("kind", ["truncated", "not an image", "empty folder", "broken weights"])
def test_unusable_files(profile, model, images, tmp_path, kind):
    changed = {}
    if kind == "empty folder":
        changed["data"] = tmp_path / "empty"
        (tmp_path / "empty").mkdir()
    elif kind == "broken weights":
        changed["model"] = tmp_path / "model"
        (tmp_path / "model").mkdir()
        for path in model.iterdir():
            content = path.read_bytes()
            cut = len(content) // 2 if path.suffix == ".safetensors" else None
            (tmp_path / "model" / path.name).write_bytes(content[:cut])
    else:
        whole = (images / "2.png").read_bytes()
        (images / "2.png").write_bytes(whole[: len(whole) // 2] if kind == "truncated" else b"GIF")
    code, out, err = profile(**changed)
    assert (code, out) == (1, "")
    assert is_one_line(err)
    assert ("2.png" if not changed else str(next(iter(changed.values())))) in err
    assert not (tmp_path / "runs").exists()


def test_unreadable_samples_can_be_left_out(no_pictures, profile, images, tmp_path):
    (images / "2.png").write_bytes(b"GIF")
    code, out, _ = profile("--on-error", "skip")
    assert code == 0
    assert "1 sample" in out
    provenance = Profile.load(tmp_path / "runs" / "one").provenance
    assert "2.png" in provenance["data"]["skipped"][0]["reason"]


@pytest.mark.parametrize("earlier", [False, True])
def test_full_disk_leaves_nothing_half_written(profile, tmp_path, monkeypatch, earlier):
    if earlier:
        with monkeypatch.context() as patch:
            patch.setattr("mm_lens.drawing.report.write", lambda profile, directory: iter(()))
            assert profile("--quiet")[0] == 0
    before = sorted(tmp_path.rglob("*"))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        "mm_lens.drawing.curves.InlineFigure.savefig", full
    )  # the table is written by then
    code, out, err = profile("--overwrite", "--states", "ram")
    assert (code, out) == (1, "")
    assert is_one_line(err)
    assert "disk is full" in err
    assert "nothing was written" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_done_is_kept_and_gone_on_from(profile, tmp_path, monkeypatch):
    partial = tmp_path / "runs" / "one.partial"
    with monkeypatch.context() as patch:
        patch.setattr("mm_lens.drawing.report.write", _interrupt)
        code, _, err = profile()
    assert (code, is_one_line(err)) == (130, True)
    assert f"Interrupted. What was done is in {partial}: run the same again to resume." in err
    assert [path.name for path in partial.parent.iterdir()] == ["one.partial"]
    with monkeypatch.context() as patch:
        patch.setattr("mm_lens.drawing.report.write", lambda profile, directory: iter(()))
        code, _, err = profile("--seed", "1")
        assert (code, is_one_line(err)) == (1, True)
        assert "options.seed is 0 there and 1 here" in err
        patch.setattr("mm_lens.profiling.states._take", None)  # nothing is left to run
        code, _, err = profile()
    assert code == 0
    assert "4 of 4 samples are done" in err
    assert [path.name for path in partial.parent.iterdir()] == ["one"]


def test_states_may_lie_elsewhere_and_be_discarded(no_pictures, profile, tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    with monkeypatch.context() as patch:
        patch.setattr("mm_lens.drawing.report.write", _interrupt)
        assert profile("--quiet", "--states", str(scratch))[0] == 130
    assert [*scratch.glob("part-0/visual.main.*")]
    assert profile("--quiet", "--states", str(scratch), "--seed", "1", "--restart")[0] == 0
    assert not scratch.exists()
    assert Profile.load(tmp_path / "runs" / "one").provenance["options"]["seed"] == 1


def test_interrupting_leaves_nothing_of_a_run_that_has_nothing(profile, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("mm_lens.profiling.states._take", _interrupt)
    code, out, err = profile()
    assert (code, out) == (130, "")
    assert "Interrupted: nothing was written" in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_libraries_do_not_chatter(model, images, tmp_path):
    """In a process of its own, nothing but our own lines and progress bars reaches the terminal."""
    command = [sys.executable, "-m", "mm_lens", "profile", "--model", model, "--data", images]
    done = subprocess.run(
        [*command, "--out", tmp_path / "run", "--presets", "paper", "--streams", "main"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stderr.replace("\r", "\n").splitlines()
    known = ("Loading ", "Holds at most", "samples:", "metrics:", "pictures:")
    assert [line for line in shown if line.strip() and not line.startswith(known)] == []


def test_help_imports_nothing_slow_and_explains_every_option():
    code = (
        "import sys, mm_lens.cli as cli; assert 'torch' not in sys.modules; cli.main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "profile", "--help"]
    wide = {**os.environ, "COLUMNS": "120"}  # names of options are cut in a narrow terminal
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=wide)
    options = ["model", "data", "out", "samples", "split", "seed", "streams", "presets", "tokens"]
    options += ["batch-size", "attention", "device", "dtype", "on-error", "overwrite", "no-check"]
    options += ["states", "restart", "device-map", "metrics"]
    for option in [*options, "quiet"]:
        assert f"--{option}" in done.stdout


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mm-lens ")
    assert cli.run([]) == 2
    assert "Missing command" in capsys.readouterr().err


def test_options_have_the_defaults_of_the_function():
    """The command cannot take them from there: that would import torch for `--help`."""
    ours = inspect.signature(cli.profile_command).parameters
    theirs = inspect.signature(mm_lens.profile).parameters
    shared = set(ours) & set(theirs)
    assert shared == {
        *("streams", "presets", "metrics", "tokens", "batch_size", "samples", "seed"),
        *("on_error", "restart", "hooks", "pairs", "heads", "budget"),
        *("chat_template", "per_sample", "memory"),
    }
    assert ours["hooks"].default == "states"  # what None stands for
    for name in shared - {
        "streams",
        "presets",
        "samples",
        "hooks",
        "heads",
    }:  # the command draws its samples
        assert ours[name].default == theirs[name].default, name
    assert tuple(ours["streams"].default.split(",")) == STREAMS  # what None stands for
    assert tuple(ours["presets"].default.split(",")) == theirs["presets"].default


def test_hooks_pairs_and_heads(no_pictures, profile, model, images, tmp_path):
    code, _, stderr = profile(
        *("--hooks", "states, z,tower,projector_out", "--pairs", "projector,resid_pre:z"),
        *("--heads", "1,3", "--streams", "residual", "--metrics", "anisotropy,linearity_paper"),
        device="cpu",
    )
    assert code == 0
    assert "Holds at most" in stderr
    found = Profile.load(tmp_path / "runs" / "one")
    with torch.no_grad():
        expected = mm_lens.profile(
            mm_lens.load(str(model), device="cpu", check=False),
            mm_lens.datasets.load(str(images), limit=500, seed=0),
            hooks=["states", "z", "tower", "projector_out"],
            pairs=["projector", ("resid_pre", "z")],
            heads=[1, 3],
            streams=["residual"],
            metrics=["anisotropy", "linearity_paper"],
            progress=False,
        )
    pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)
    assert set(found.table["head"]) == {-1, 1, 3}
    assert found.provenance["options"]["pairs"] == ["projector", "resid_pre:z"]


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (("--heads", "two"), 2, "neither all nor numbers"),
        (("--hooks", "nope"), 1, "No hook point is called 'nope'"),
        (("--pairs", "nope"), 1, "No pairs are called 'nope'"),
    ],
)
def test_wrong_hooks_are_named_in_one_line(profile, extra, code, message):
    found, _, stderr = profile(*extra)
    assert found == code
    assert message in stderr
    assert is_one_line(stderr)


def test_names_that_are_no_utf_8(profile, images, tmp_path, no_pictures):
    (images / "0.png").rename(images / os.fsdecode(b"\xff.png"))
    data, out = tmp_path / os.fsdecode(b"data\xff"), tmp_path / os.fsdecode(b"out\xff")
    images.rename(data)
    code, _, err = profile(data=data, out=out)
    assert code == 0, err
    assert Profile.load(out).provenance["data"]["name"].endswith("data\\udcff")
