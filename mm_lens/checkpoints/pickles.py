"""Reading files of `torch.save` without running what is in them.

A pickle is a program: loading one calls whatever it names. Two gates stand before that:

1. The program is *listed*, not run: every global it names and every instruction it uses must be one
   of the few that tensors need. This gate names the offender in its message.
2. `torch.load(weights_only=True)` reads it, with no classes allowed but those gate 1 let through.

Classes of pickled modules are never imported. Where a caller expects some (`stand_ins`), each
becomes a `StandIn`, which takes the state that was saved and does nothing with it.

Containers are checked too, before a byte is unpacked: a zip archive that is compressed (torch never
compresses) or lists a name twice is refused, so an archive cannot be larger than it looks; the
checksums of its entries are looked at, which takes one pass over the file.
"""

from __future__ import annotations

import pickletools
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER, add_safe_globals, clear_safe_globals, get_safe_globals

from mm_lens.errors import MMLensError

_TENSORS = re.compile(
    r"collections\.OrderedDict|builtins\.set|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
)
# What weights_only understands of pickle protocol 2, which torch.save writes.
_INSTRUCTIONS = re.compile(
    r"PROTO|STOP|GLOBAL|NEWOBJ|REDUCE|BUILD|APPENDS?|SETITEMS?|MARK|TUPLE[123]?|NONE|NEWTRUE"
    r"|NEWFALSE|EMPTY_(TUPLE|LIST|DICT|SET)|BINPERSID|BININT[12]?|BINFLOAT|BINUNICODE"
    r"|SHORT_BINSTRING|LONG1|(LONG_)?BIN(GET|PUT)"
    # Of later protocols, harmless: passed so that the message names the global that comes after.
    r"|FRAME|MEMOIZE|SHORT_BINUNICODE|BINUNICODE8"
)
_MAX_PROGRAM = 2**26  # bytes; that of a 7-billion-parameter model has some 10^5
_MAX_MODULES = 1_000
_AT_ONCE = 2**22  # bytes whose checksum is looked at
_END, _POINTER, _RECORD = 22, 20, 56  # bytes at the end of a zip archive (APPNOTE 4.3.14 to 4.3.16)
_LOCK = threading.Lock()  # torch keeps its list of allowed globals for the whole process


class StandIn:
    """In the place of an object of a class that is not imported: its saved state, inert.

    One subclass is made for each class named in a file, with that class's `__module__` and
    `__qualname__`.
    """

    state: dict[str, Any]

    def __new__(cls, *_: Any) -> StandIn:  # noqa: D102
        new = super().__new__(cls)
        new.state = {}
        return new

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise TypeError(f"the state of {name_of(type(self))} is not a dict of names")
        self.state = state


def name_of(cls: type) -> str:
    """Full name of a class, e.g. that of a stand-in."""
    return f"{cls.__module__}.{cls.__qualname__}"


def read(path: str | Path, stand_ins: str | None = None) -> Any:
    """What a file of `torch.save` holds, with tensors on the CPU and mapped from the file.

    Files of torch before 1.6, which are no zip archives, cannot be mapped: they are read whole, and
    pickled modules in this form are refused (`weights_only` cannot read them).

    Args:
        path: the file.
        stand_ins: regular expression of the full names of classes and functions that are replaced
            by stand-ins; None allows tensors in plain containers only.

    Raises:
        MMLensError: no such file; it is damaged; or it names anything else. Nothing has run.
    """
    path = Path(path)
    allowed = re.compile(stand_ins) if stand_ins else None
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # torch.load decides by the same four bytes
        named = _check_zip(path, allowed) if zipped else _check_legacy(path, allowed)
        classes = [_stand_in(name) for name in sorted(named) if not _TENSORS.fullmatch(name)]
        with _allow_only(classes), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except MMLensError:
        raise
    except FileNotFoundError as error:
        raise MMLensError(f"{path} is missing.") from error
    except Exception as error:  # a damaged file fails in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "weights" in reason.lower():  # torch's advice is to run it
            reason = "it holds more than tensors"
        raise MMLensError(
            f"{path} is truncated or damaged, or torch.save did not write it ({reason}). Nothing "
            "in it was run. Fetch it again and compare its size."
        ) from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """A file that holds a dict of tensors, e.g. a state dict.

    Raises:
        MMLensError: as `read`; or it holds something else.
    """
    tensors = read(path)
    if not isinstance(tensors, dict) or not all(
        type(name) is str and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise MMLensError(f"{path} does not hold a dict of tensors.")
    for name, tensor in tensors.items():
        check_dense(path, name, tensor)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def check_dense(path: str | Path, name: str, tensor: Tensor) -> None:
    """Raise if a tensor claims more elements than its file holds, to be filled in from few.

    Raises:
        MMLensError: it does.
    """
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise MMLensError(
            f"{path}: {name} claims {tuple(tensor.shape)} elements, more than the file holds. "
            "The file is damaged or made up to fill the memory: fetch it again."
        )


def module_tensors(module: StandIn) -> dict[str, Tensor]:
    """What `state_dict()` of a pickled module would be.

    Raises:
        MMLensError: it is no `torch.nn.Module` of a sensible depth and size.
    """
    return _module_tensors(module, 0, count(1))


def _module_tensors(module: StandIn, depth: int, number: Iterator[int]) -> dict[str, Tensor]:
    # A child may be shared: few bytes can stand for any number of modules.
    if next(number) > _MAX_MODULES:
        raise _not_a_module(module, f"more than {_MAX_MODULES:,} modules")
    found: dict[str, Tensor] = {}
    for group in ("_parameters", "_buffers"):
        for name, tensor in _entries(module, group).items():
            if isinstance(tensor, Tensor):
                found[name] = tensor.detach()
            elif tensor is not None:
                raise _not_a_module(module, f"{group}[{name!r}] is no tensor")
    if depth == 8:
        raise _not_a_module(module, "more than 8 levels")
    for name, child in _entries(module, "_modules").items():
        if child is None:
            continue
        if not isinstance(child, StandIn):
            raise _not_a_module(module, f"_modules[{name!r}] is no module")
        inner = _module_tensors(child, depth + 1, number)
        found |= {f"{name}.{key}": tensor for key, tensor in inner.items()}
        if len(found) > 10_000:
            raise _not_a_module(module, "more than 10,000 tensors")
    return found


def _entries(module: StandIn, group: str) -> dict[str, Any]:
    entries = module.state.get(group)
    if not isinstance(entries, dict) or not all(type(key) is str for key in entries):
        raise _not_a_module(module, f"it has no {group}")
    return entries


def _not_a_module(module: StandIn, why: str) -> MMLensError:
    return MMLensError(f"{name_of(type(module))} is not a pickled torch.nn.Module: {why}.")


def _check_end(path: Path) -> None:
    """See that there is one list of contents: the one that Python reads is the one torch reads.

    The end of a large archive (ZIP64) holds a pointer to its list. Python's reader takes the record
    in front of the pointer, torch's the one that it points to: they must be the same.
    """
    end = path.stat().st_size - _END
    with path.open("rb") as file:
        file.seek(max(end - _POINTER, 0))
        pointer = file.read(_POINTER)
        if pointer[:4] != b"PK\x06\x07":
            return
        record = int.from_bytes(pointer[8:16], "little")
        file.seek(max(end - _POINTER - _RECORD, 0))
        before = file.read(4)
    if record != end - _POINTER - _RECORD or before != b"PK\x06\x06":
        raise ValueError("it points to another list of contents than its own")


def _check_zip(path: Path, allowed: re.Pattern[str] | None) -> set[str]:
    """The globals of an archive, all of them allowed."""
    _check_end(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.lower() for entry in entries]  # torch's reader ignores case
        programs = [
            e for e in entries if e.filename.count("/") == 1 and e.filename.endswith(".pkl")
        ]
        if len(set(names)) < len(names) or len({name.split("/")[0] for name in names}) > 1:
            raise ValueError("its list of contents is inconsistent")
        commented = archive.comment or any(entry.comment for entry in entries)
        if min(entry.header_offset for entry in entries) > 0 or commented:
            raise ValueError("there is something beside the archive in it")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it claims to hold more than its own size")
        if [entry.filename.split("/")[1] for entry in programs] != ["data.pkl"]:
            raise ValueError("it holds no data.pkl, or other pickles beside it")
        if programs[0].file_size > _MAX_PROGRAM:
            raise ValueError("its data.pkl is far larger than tensors need")
        for entry in entries:  # torch's reader passes over the checksums
            with archive.open(entry) as content:
                while content.read(_AT_ONCE):
                    pass
        with archive.open(programs[0]) as program:
            return _globals(path, program, allowed)


def _check_legacy(path: Path, allowed: re.Pattern[str] | None) -> set[str]:
    """The globals of the five pickles at the front of a file before torch 1.6."""
    named: set[str] = set()
    with path.open("rb") as file:
        for part in ("magic", "protocol", "system", "object", "keys"):
            start = file.tell()
            named |= _globals(path, file, allowed)
            if part == "magic":
                end = file.tell()
                file.seek(start)
                if MAGIC_NUMBER not in [arg for _, arg, _ in pickletools.genops(file)]:
                    raise ValueError("it does not begin like one")
                file.seek(end)
    if any(not _TENSORS.fullmatch(name) for name in named):
        raise MMLensError(
            f"{path}: refused. It is a module pickled in the form of torch before 1.6, which "
            "cannot be read without running it. Nothing was run. If you trust the file, load it "
            "yourself and torch.save it again: today's form can be read safely."
        )
    return named


def _globals(path: Path, program: Any, allowed: re.Pattern[str] | None) -> set[str]:
    """Names of all globals in the pickle at which a binary file stands; it is left behind it.

    Raises:
        MMLensError: one of them, or an instruction, is not allowed.
    """
    named: set[str] = set()
    strings: list[str] = ["?", "?"]
    for instruction, argument, _ in pickletools.genops(program):
        name = instruction.name
        if isinstance(argument, str) and name not in ("GLOBAL", "INST"):
            strings.append(argument)
        if name in ("GLOBAL", "INST"):
            module, _, attribute = str(argument).partition(" ")
            offender = f"{'builtins' if module == '__builtin__' else module}.{attribute}"
            known = _TENSORS.fullmatch(offender) or (allowed and allowed.fullmatch(offender))
            if name == "GLOBAL" and attribute.isidentifier() and known:
                named.add(offender)
                continue
        elif name == "STACK_GLOBAL":
            offender = f"the instruction STACK_GLOBAL (for {strings[-2]}.{strings[-1]})"
        elif _INSTRUCTIONS.fullmatch(name):
            continue
        else:
            offender = f"the instruction {name}"
        raise MMLensError(
            f"{path}: refused. Its pickle asks for {offender}, which tensors do not need; "
            "loading it in the usual way could run its author's code. Nothing was run. Take the "
            "file from where it was published first; if it is yours, save a plain state dict."
        )
    return named


def _stand_in(name: str) -> type[StandIn]:
    module, _, attribute = name.rpartition(".")
    return cast(type[StandIn], type(attribute, (StandIn,), {"__module__": module}))


@contextmanager
def _allow_only(classes: list[type[StandIn]]) -> Iterator[None]:
    """Allow these in `weights_only` loading, and nothing that somebody allowed before."""
    with _LOCK:
        others = get_safe_globals()
        clear_safe_globals()
        add_safe_globals(cast(Any, classes))
        try:
            yield
        finally:
            clear_safe_globals()
            add_safe_globals(others)
