"""Repositories in local directories, in place of the hub's.

A plugin of conftest.py: the fixture is every test's.
"""

from __future__ import annotations

import shutil

import pytest


class Hub:
    """Repositories in local directories, behind the functions that ask the hub's."""

    def __init__(self, root, monkeypatch):
        import huggingface_hub

        self.root, self.downloads, self.repositories = root, [], {}
        self.offline = False
        monkeypatch.setattr(huggingface_hub, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: self.offline)
        monkeypatch.setenv("MM_LENS_CACHE", str(root / "cache"))

    def model_info(self, repository, revision=None, **_):
        from huggingface_hub.hf_api import ModelInfo

        directory, commit = self.repositories[repository]
        names = [p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()]
        return ModelInfo(id=repository, sha=commit, siblings=[{"rfilename": n} for n in names])

    def snapshot_download(self, repository, *, allow_patterns=None, revision=None, **options):
        from huggingface_hub.errors import LocalEntryNotFoundError

        if options.get("local_files_only"):
            raise LocalEntryNotFoundError("not in the cache")
        directory, commit = self.repositories[repository]
        assert revision == commit
        self.downloads.append(repository)
        target = self.root / "snapshots" / repository / commit
        for name in allow_patterns:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(directory / name, target / name)
        return str(target)


@pytest.fixture
def replica(source, tower, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub", monkeypatch)
    hub.repositories["AIRI-Institute/OmniFusion"] = source, "c0ffee"
    hub.repositories["openai/clip-vit-large-patch14-336"] = tower, "beef"
    return hub
