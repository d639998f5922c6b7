"""Pickles are read without running them: a canary file tells if anything ran."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import random
import sys
import tarfile
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from mm_lens_adapters.omnifusion.projection import STAND_INS, read_projection
from torch import nn
from upstream import models_module, random_parts, write_projection

from mm_lens import MMLensError
from mm_lens.checkpoints import pickles


class Calls:
    """An object that is pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def touch(canary: Path) -> Calls:
    return Calls(os.system, f"touch {canary}")


def program(*instructions: bytes, protocol: int = 2) -> bytes:
    """A pickle by hand."""
    return b"".join([b"\x80", bytes([protocol]), *instructions, b"."])


def text(string: str) -> bytes:
    return b"X" + len(string).to_bytes(4, "little") + string.encode()


def archive(path: Path, data: bytes, **entries: bytes) -> Path:
    """A file like those of torch.save around a pickle; entries are storages by key."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")
        for key, content in entries.items():
            file.writestr(f"archive/data/{key[1:]}", content)
    return path


def reduce(path, canary):
    torch.save({"SOI": touch(canary)}, path)


def evaluate(path, canary):
    torch.save([Calls(eval, f"open({str(canary)!r}, 'w').close()")], path)


def execute(path, canary):
    torch.save({"a": torch.zeros(2), "b": Calls(exec, f"open({str(canary)!r}, 'w')")}, path)


def inside_a_module(path, canary):
    parts = random_parts()
    with models_module() as models:
        module = models.VisualToGPTMapping()
        module.transformer_layer, module.linear = parts.layer, parts.linear
        module.transformer_layer._modules["dropout"] = touch(canary)
        torch.save(module, path)


def legacy(path, canary):
    torch.save({"SOI": touch(canary)}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path, canary):
    path.write_bytes(pickle.dumps(touch(canary), protocol=2))


def stack_global(path, canary):
    torch.save({"SOI": touch(canary)}, path, pickle_protocol=4)


def attribute_chain(path, canary):
    # getattr(__import__("os"), "system")("touch …"), with what is left of Python 2's names
    run = b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(" + text("os") + b"tR"
    archive(path, program(run, text("system"), b"tR(", text(f"touch {canary}"), b"tR"))


def dotted_name(path, canary):
    run = b"ctorch.serialization\nos.system\n(" + text(f"touch {canary}") + b"tR"
    archive(path, program(run, protocol=4))


def instance(path, canary):
    archive(path, program(b"(" + text(f"touch {canary}") + b"ios\nsystem\n"))


def build(path, canary):
    torch.save({"SOI": loud().Loud()}, path)


def loud():
    return importlib.import_module("loud")


@pytest.fixture(autouse=True)
def loud_module(tmp_path, canary, monkeypatch):
    """An importable class that acts when it is given its state back."""
    (tmp_path / "loud.py").write_text(
        f"class Loud:\n    def __getstate__(self): return {{'a': 1}}\n"
        f"    def __setstate__(self, state): open({str(canary)!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("loud", None)


MALICIOUS = {
    reduce: "posix.system",
    evaluate: "builtins.eval",
    execute: "builtins.exec",
    inside_a_module: "posix.system",
    legacy: "posix.system",
    bare_pickle: "posix.system",
    stack_global: "posix.system",
    attribute_chain: "builtins.getattr",
    dotted_name: "torch.serialization.os.system",
    instance: "os.system",
    build: "loud.Loud",
}


@pytest.mark.parametrize("make", MALICIOUS, ids=lambda make: make.__name__)
def test_a_malicious_file_is_refused_and_nothing_runs(make, tmp_path, canary):
    path = tmp_path / "file.pt"
    make(path, canary)
    for stand_ins in (None, STAND_INS):
        with pytest.raises(MMLensError, match=r"refused.*Nothing was run") as caught:
            pickles.read(path, stand_ins)
        if stand_ins or make is not inside_a_module:  # whose class is refused before its content
            assert MALICIOUS[make] in str(caught.value)
        assert str(path) in str(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize("make", MALICIOUS, ids=lambda make: make.__name__)
def test_the_second_gate_holds_alone(make, tmp_path, canary, monkeypatch):
    path = tmp_path / "file.pt"
    make(path, canary)
    monkeypatch.setattr(pickles, "_globals", lambda *_: set())
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(MMLensError):
        pickles.read(path, STAND_INS)
    assert not canary.exists()


@pytest.mark.parametrize("make", MALICIOUS, ids=lambda make: make.__name__)
def test_the_canary_works(make, tmp_path, canary):
    """The files above do harm if they are loaded in the usual way."""
    path = tmp_path / "file.pt"
    make(path, canary)
    # The module with a number among its children comes apart after the number's call.
    with models_module(), suppress(AttributeError):
        if make is bare_pickle:
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.hub load",
        "torch load",
        "torch.jit load",
        "torch.storage _load_from_bytes",
        "torch.ops load_library",
        "torch._utils _rebuild_wrapper_subclass",
        "torch.nn.functional threshold",
        "torch.nn.modules os.system",
        "numpy load",
        "numpy.core.multiarray _reconstruct",
        "ctypes CDLL",
        "functools partial",
        "importlib import_module",
        "builtins bytearray",
        "copyreg _reconstructor",
        "models.evil VisualToGPTMapping",
        "models VisualToGPTMapping.__init__",
    ],
)
def test_other_names_are_refused(name, tmp_path):
    path = archive(tmp_path / "file.pt", program(b"c" + name.replace(" ", "\n").encode() + b"\n"))
    with pytest.raises(MMLensError, match="refused") as caught:
        pickles.read(path, STAND_INS)
    assert name.replace(" ", ".") in str(caught.value)


def test_what_somebody_allowed_elsewhere_is_not_allowed_here(tmp_path, canary, monkeypatch):
    path = tmp_path / "file.pt"
    build(path, canary)
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([loud().Loud]):
        monkeypatch.setattr(pickles, "_globals", lambda *_: set())
        with pytest.raises(MMLensError):
            pickles.read(path)
        assert loud().Loud in torch.serialization.get_safe_globals()
    assert set(torch.serialization.get_safe_globals()) == set(before)
    assert not canary.exists()


def test_a_class_of_an_allowed_name_is_not_imported(tmp_path, canary, monkeypatch):
    """`models` may be any file on the user's path: it is a name here, nothing more."""
    path = tmp_path / "projection.pt"
    write_projection(path, random_parts())
    harm = f"open({str(canary)!r}, 'w').close()\n"
    (tmp_path / "models.py").write_text(
        f"{harm}class VisualToGPTMapping:\n    def __setstate__(self, state):\n        {harm}"
    )
    read_projection(path)
    assert not canary.exists()
    assert "models" not in sys.modules


def test_a_stand_in_takes_calls_and_states_without_effect(tmp_path):
    call = b"cmodels\nAnything\n(" + text("argument") + b"tR}" + text("__class__") + b"K\x01sb"
    found = pickles.read(archive(tmp_path / "file.pt", program(call)), STAND_INS)
    assert isinstance(found, pickles.StandIn)
    assert pickles.name_of(type(found)) == "models.Anything"
    assert found.state == {"__class__": 1}
    for state in (b"K\x01", b"}K\x01K\x01s"):
        damaged = program(b"cmodels\nAnything\n)\x81" + state + b"b")
        with pytest.raises(MMLensError, match="not a dict of names"):
            pickles.read(archive(tmp_path / "file.pt", damaged), STAND_INS)


def test_a_pickle_hidden_in_a_storage_is_numbers(tmp_path, canary):
    good = tmp_path / "good.pt"
    hidden = pickle.dumps(touch(canary), protocol=2).ljust(160, b"\0")
    torch.save({"SOI": torch.zeros(40)}, good)
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            storage = entry.filename.endswith("/data/0")
            new.writestr(entry.filename, hidden if storage else old.read(entry))
    read = pickles.read_tensors(path)["SOI"]
    assert read.numpy().tobytes() == hidden
    assert not canary.exists()


def rebuilt(numel: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of one tensor that claims a storage of `numel` and any shape."""

    def constant(value: object) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1].replace(b"q\x00", b"")

    storage = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + constant(numel) + b"tQK\x00"
    tensor += constant(shape) + constant(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return program(b"}" + text("a") + tensor + b"s")


@pytest.mark.parametrize(
    ("numel", "shape", "stride"),
    [
        (2**40, (2**40,), (1,)),
        (2**20, (2**20,), (1,)),
        (4, (2**30,), (1,)),
        (4, (2**40,), (0,)),
        (4, (2**20, 2**20), (0, 1)),
        (-4, (4,), (1,)),
        (2**62, (2**62,), (1,)),
    ],
)
def test_a_tensor_that_claims_more_than_the_file_is_refused(numel, shape, stride, tmp_path):
    path = archive(tmp_path / "file.pt", rebuilt(numel, shape, stride), _0=bytes(16))
    tracemalloc.start()
    with pytest.raises(MMLensError, match=r"damaged"):
        pickles.read_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    sound = archive(tmp_path / "sound.pt", rebuilt(4, (4,), (1,)), _0=bytes(16))
    assert torch.equal(pickles.read_tensors(sound)["a"], torch.zeros(4))


def test_an_archive_larger_than_it_looks_is_refused(tmp_path):
    path, good = tmp_path / "file.pt", tmp_path / "good.pt"
    torch.save({"a": torch.zeros(1000)}, good)
    with zipfile.ZipFile(good) as old:
        contents = {entry.filename: old.read(entry) for entry in old.infolist()}

    def written(extra=(), compression=zipfile.ZIP_STORED, front=b"", comment=b""):
        with path.open("wb") as raw:
            raw.write(front)
            with zipfile.ZipFile(raw, "w", compression) as file:
                for name, content in [*contents.items(), *extra]:
                    file.writestr(name, content)
                file.comment = comment
        return path

    assert pickles.read_tensors(written())["a"].shape == (1000,)
    evil = program(b"cos\nsystem\n")
    with pytest.raises(MMLensError, match="compressed"):
        pickles.read(written(compression=zipfile.ZIP_DEFLATED))
    with pytest.warns(UserWarning, match="Duplicate"):
        written([("good/data.pkl", evil)])
    for _ in range(2):
        with pytest.raises(MMLensError, match="inconsistent"):
            pickles.read(path)
        written([("good/DATA.PKL", evil)])
    with pytest.raises(MMLensError, match="inconsistent"):
        pickles.read(written([("other/data.pkl", evil)]))
    with pytest.raises(MMLensError, match="other pickles"):
        pickles.read(written([("good/constants.pkl", evil)]))
    with pytest.raises(MMLensError, match="beside the archive"):
        pickles.read(written(front=good.read_bytes()))
    with pytest.raises(MMLensError, match="beside the archive"):
        pickles.read(written(comment=b"text"))


def test_an_archive_with_two_lists_of_contents_is_refused(tmp_path, canary):
    """Python's reader lists a decoy; torch's follows a pointer in a comment to the other list."""
    decoy = archive(tmp_path / "decoy", pickle.dumps({}, 2)).read_bytes()
    evil = archive(tmp_path / "evil", pickle.dumps(touch(canary), 2)).read_bytes()
    front, end = decoy[:-22], decoy[-22:]
    size, offset = (int.from_bytes(end[i : i + 4], "little") for i in (12, 16))
    entries, listed = front[:offset], front[offset:]
    e_size, e_offset = (int.from_bytes(evil[-22:][i : i + 4], "little") for i in (12, 16))
    # The other archive between the entries and the list of the decoy, its offsets moved along.
    moved = len(entries)
    e_list = bytearray(evil[e_offset : e_offset + e_size])
    start = 0
    while start < len(e_list):
        at = int.from_bytes(e_list[start + 42 : start + 46], "little") + moved
        e_list[start + 42 : start + 46] = at.to_bytes(4, "little")
        start += 46 + sum(
            int.from_bytes(e_list[start + k : start + k + 2], "little") for k in (28, 30, 32)
        )
    n = int.from_bytes(evil[-22:][10:12], "little")
    body = entries + evil[:e_offset] + bytes(e_list)
    record = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes([45, 0, 45, 0]) + bytes(8)
    record += n.to_bytes(8, "little") * 2 + e_size.to_bytes(8, "little")
    record += (moved + e_offset).to_bytes(8, "little")
    place = len(body)
    body += record + b"...."
    pointer = b"PK\x06\x07" + bytes(4) + place.to_bytes(8, "little") + (1).to_bytes(4, "little")
    last = listed.rindex(b"PK\x01\x02")
    listed = listed[: last + 32] + (20).to_bytes(2, "little") + listed[last + 34 :] + pointer
    end = end[:12] + (size + 20).to_bytes(4, "little") + len(body).to_bytes(4, "little") + end[20:]
    path = tmp_path / "both.pt"
    path.write_bytes(body + listed + end)
    with zipfile.ZipFile(path) as seen:  # the attack is one: the readers differ
        assert seen.read("archive/data.pkl") == pickle.dumps({}, 2)
    assert b"system" in torch.PyTorchFileReader(str(path)).get_record("data.pkl")
    with pytest.raises(MMLensError, match="truncated or damaged"):
        pickles.read(path)
    assert not canary.exists()


def test_a_large_archive_as_torch_writes_it_is_read(tmp_path, monkeypatch):
    """With the records that archives beyond 4 GB have."""
    path = tmp_path / "large.pt"
    torch.save({"a": torch.arange(5)}, path)
    content = path.read_bytes()
    front, end = content[:-22], content[-22:]
    number, size, offset = (
        int.from_bytes(end[i:j], "little") for i, j in ((10, 12), (12, 16), (16, 20))
    )
    if front[-20:-16] != b"PK\x06\x07":
        record = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes([45, 0, 45, 0]) + bytes(8)
        record += number.to_bytes(8, "little") * 2
        record += size.to_bytes(8, "little") + offset.to_bytes(8, "little")
        place = len(front)
        pointer = bytes(4) + place.to_bytes(8, "little") + (1).to_bytes(4, "little")
        path.write_bytes(front + record + b"PK\x06\x07" + pointer + end)
    assert torch.equal(pickles.read_tensors(path)["a"], torch.arange(5))


def test_nobody_is_told_to_run_the_file(tmp_path, canary, monkeypatch):
    path = tmp_path / "file.pt"
    torch.save({"a": touch(canary)}, path)
    monkeypatch.setattr(pickles, "_check_zip", lambda path, allowed: set())
    with pytest.raises(MMLensError) as caught:
        pickles.read(path)
    assert "weights_only" not in str(caught.value)
    assert not canary.exists()


def test_names_of_files_do_not_steer_the_terminal(tmp_path):
    path = tmp_path / "file.pt"
    archive(path, program(b"cos\nsys\x1b[2J\x07\n"))
    with pytest.raises(MMLensError) as caught:
        pickles.read(path)
    assert "\x1b" not in str(caught.value)
    assert "\\x1b[2J" in str(caught.value)


def test_shared_children_do_not_multiply():
    """Eight levels of modules that each hold the next one fifty times: 50^8 modules."""
    module = type("Module", (pickles.StandIn,), {"__module__": "m"})

    def make(children):
        made = module()
        made.state = {"_parameters": {}, "_buffers": {}, "_modules": children}
        return made

    inner = make({})
    for _ in range(7):
        inner = make({str(i): inner for i in range(50)})
    with pytest.raises(MMLensError, match="more than 1,000 modules"):
        pickles.module_tensors(inner)


def test_torchscript_and_tar_files_are_refused(tmp_path):
    with pytest.warns(DeprecationWarning, match="script"):
        torch.jit.script(nn.Linear(2, 3)).save(tmp_path / "script.pt")
    with pytest.raises(MMLensError, match=r"torch\.save did not write it"):
        pickles.read(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "old.pt", "w") as file:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            file.addfile(entry, io.BytesIO())
    with pytest.raises(MMLensError, match="Nothing was run"):
        pickles.read(tmp_path / "old.pt")


def test_a_module_before_torch_1_6_is_refused_with_a_remedy(tmp_path):
    path = tmp_path / "projection.pt"
    with pytest.warns(UserWarning, match="source code"):
        write_projection(path, random_parts(), legacy=True)
    with pytest.raises(MMLensError, match=r"before 1\.6.*torch\.save it again"):
        read_projection(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_read_as_saved(zipped, dtype, tmp_path):
    saved = {
        "plain": torch.randn(5, dtype=dtype),
        "trained": torch.randn(5, dtype=dtype).requires_grad_(),
        "parameter": nn.Parameter(torch.randn(2, 3, dtype=dtype)),
        "view": torch.randn(7, 4, dtype=dtype)[1:3].T,
    }
    torch.save(saved, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    read = pickles.read_tensors(tmp_path / "file.pt")
    assert set(read) == set(saved)
    for name, tensor in saved.items():
        assert torch.equal(read[name], tensor)
        assert read[name].dtype == dtype
        assert not read[name].requires_grad


def test_a_state_dict_with_metadata_is_read(tmp_path):
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "file.pt")  # an OrderedDict with _metadata
    assert set(pickles.read_tensors(tmp_path / "file.pt")) == {"weight", "bias"}


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"a": [1]}, {"a": None}, {1: torch.zeros(2)}]
)
def test_anything_but_a_dict_of_tensors_is_named(content, tmp_path):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(MMLensError, match="does not hold a dict of tensors"):
        pickles.read_tensors(tmp_path / "file.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_give_one_error(zipped, tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"a": torch.zeros(50)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in [0, 1, 4, 30, len(whole) // 2, len(whole) - 200, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(MMLensError, match="truncated or damaged"):
            pickles.read_tensors(path)
    generator = random.Random(0)
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            pickles.read_tensors(path)
        except MMLensError:
            continue
    with pytest.raises(MMLensError, match="is missing"):
        pickles.read_tensors(tmp_path / "none.pt")


def test_a_wrong_bit_in_a_tensor_is_found(tmp_path):
    """torch reads the archive without looking at its checksums."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.full((64,), 1.5)}, path)
    whole = path.read_bytes()
    at = whole.index(torch.full((64,), 1.5).numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert not torch.load(path)["a"].eq(1.5).all()
    with pytest.raises(MMLensError, match=r"a\.pt is truncated or damaged.*CRC"):
        pickles.read(path)
