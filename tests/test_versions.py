"""The bounds of pyproject.toml: tried from below, and there where internals are used."""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SOURCES = [
    *sorted((ROOT / "mm_lens").rglob("*.py")),
    *sorted((ROOT / "adapters" / "mm_lens_adapters").rglob("*.py")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DEPENDENCIES = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(Requirement, PROJECT["dependencies"])
}

# Modules that their package does not document for others, or documents as private.
INTERNAL = {
    "torch": {"torch.multiprocessing.reductions", "torch.utils.weak", "torch.serialization"},
    "transformers": {"transformers.models", "transformers.image_utils"},
    "transformer-lens": {"transformer_lens.model_bridge", "transformer_lens.hook_points"},
}


def pins(name: str) -> dict[str, Version]:
    """The versions in a file of pins."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(found) for package, found in pairs}


def lowest(requirement: Requirement) -> Version | None:
    found = [Version(s.version) for s in requirement.specifier if s.operator in (">=", "==")]
    return max(found, default=None)


def has_upper_bound(requirement: Requirement) -> bool:
    return any(s.operator in ("<", "<=", "==", "~=") for s in requirement.specifier)


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = pins("oldest.txt")
    assert oldest.pop("torch") == pins("constraints.txt")["torch"]  # the one build there is
    bounds = {name: lowest(requirement) for name, requirement in DEPENDENCIES.items()}
    del bounds["torch"]
    assert oldest == bounds


@pytest.mark.parametrize("name", DEPENDENCIES)
def test_pinned_and_installed_versions_are_within_the_bounds(name):
    allowed = DEPENDENCIES[name].specifier
    assert pins("constraints.txt")[name] in allowed
    assert Version(version(name)) in allowed


def imports(source: str) -> set[str]:
    """Every module and name that a source imports, with dots."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def internal(name: str, package: str) -> bool:
    """Whether what is imported is nobody's business: underscores, or a module known as such."""
    modules = INTERNAL.get(package, set())
    return any(part.startswith("_") and part != "__future__" for part in name.split(".")) or any(
        f"{name}.".startswith(f"{module}.") for module in modules
    )


def test_what_internals_are_used_of_has_an_upper_bound():
    owners = packages_distributions()
    used: dict[str, set[str]] = {}
    for path in SOURCES:
        for name in imports(path.read_text("utf-8")):
            for owner in owners.get(name.split(".")[0], ()):
                package = canonicalize_name(owner)
                if package in DEPENDENCIES and internal(name, package):
                    used.setdefault(package, set()).add(name)
    assert {"torch", "transformers", "transformer-lens"} <= used.keys()
    without = {name: used[name] for name in used if not has_upper_bound(DEPENDENCIES[name])}
    assert not without


def test_an_import_of_internals_is_seen():
    assert imports("from a._b import c\nimport d.e\nfrom . import f") == {"a._b.c", "d.e"}
    assert internal("pandas._libs.lib", "pandas")
    assert internal("torch.utils.weak.WeakTensorKeyDictionary", "torch")
    assert not internal("torch.utils.data", "torch")


def test_the_bound_of_transformers_keeps_out_what_hides_the_cache():
    """5.24 hands attention its cache under another name: tests/model/test_traps.py."""
    assert Version("5.23.7") in DEPENDENCIES["transformers"].specifier
    assert Version("5.24.0") not in DEPENDENCIES["transformers"].specifier
