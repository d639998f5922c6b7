"""The reference: a page for each package, with its public names as their docstrings tell them.

What is public is what `tests/public_surface.txt` lists, under the name by which users call it.
Sphinx's own autodoc reads docstrings as reStructuredText and names things by the module that holds
them; these are Markdown, and their modules are private.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import mm_lens

ROOT = Path(__file__).parents[2]
FIELDS = {"Args": ":param {}:", "Raises": ":raises {}:", "Attributes": "- **{}**:"}
EXAMPLE = re.compile(r"^ *```python.*?```", re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"^    (\S[^:]*):(?: (.*))?$")


class Thing:
    """A public name: where it is found, and what it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        found: Any = mm_lens
        for part in name.split(".")[1:]:
            found = getattr(found, part)
        self.value = found

    @cached_property
    def kind(self) -> str:
        """Of a Python object, as Sphinx calls it."""
        if isinstance(self.value, types.ModuleType):
            return "module"
        if inspect.isclass(self.value):
            return "exception" if issubclass(self.value, BaseException) else "class"
        return "function" if callable(self.value) else "data"


def public_things() -> list[Thing]:
    """All of the list but the command line, whose page is docs/command_line.md."""
    names = (ROOT / "tests" / "public_surface.txt").read_text("utf-8").split()
    return [Thing(name) for name in names if not name.startswith("mm_lens.cli.")]


def members(module: types.ModuleType, name: str) -> list[Thing]:
    """Functions, classes and constants that a module has of its own."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [
            each
            for each, value in vars(module).items()
            if not each.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
    found = [Thing(f"{name}.{each}") for each in listed]
    return [each for each in found if each.kind != "module" and is_told(each)]


def is_told(thing: Thing) -> bool:
    """Whether it has a docstring of its own."""
    doc = inspect.getdoc(thing.value)
    return bool(doc) and thing.kind != "data"


class Reference:
    """The pages, in Markdown.

    Each object is told once, on the page of its package; elsewhere is a link to it.
    """

    def __init__(self) -> None:
        self.things = public_things()
        top = [thing for thing in self.things if thing.name.count(".") == 1]
        self.packages = {thing.name.rpartition(".")[0] for thing in self.things}
        self.home: dict[int, str] = {}
        own = [thing for thing in self.things if thing.name.count(".") == 2]
        # Modules before what they hold, or that would be told at home, which is a table of links.
        for thing in [*own, *sorted(top, key=lambda thing: thing.kind != "module")]:
            self._settle(thing)
        self.pages = [thing for thing in top if thing.kind == "module" and self._is_own(thing)]

    def _is_own(self, thing: Thing) -> bool:
        """Whether it is told under this name."""
        return thing.name in self.packages or self.home[id(thing.value)] == thing.name

    def _settle(self, thing: Thing) -> None:
        if thing.name in self.packages:
            return
        self.home.setdefault(id(thing.value), thing.name)
        if thing.kind == "module" and self.home[id(thing.value)] == thing.name:
            for each in members(thing.value, thing.name):
                self.home.setdefault(id(each.value), each.name)

    def home_page(self) -> str:
        """What `import mm_lens` gives, with links to where it is told."""
        rows = []
        for thing in self.things:
            if thing.name.count(".") > 1 or thing.name in self.packages:
                continue
            home = self.home[id(thing.value)]
            role = "mod" if thing.kind == "module" else "obj"
            said = first_sentence(thing.value)
            rows.append(
                f"| {{py:{role}}}`{thing.name.removeprefix('mm_lens.')} <{home}>` | {said} |"
            )
        pages = "\n".join(thing.name for thing in self.pages)
        packages = "\n".join(
            f"| [`{thing.name}`]({thing.name}.md) | {first_sentence(thing.value)} |"
            for thing in self.pages
        )
        return (
            "# Reference\n\nEverything that is public, from the docstrings: `help` shows the same. "
            "What stands nowhere here is private and may change.\n\n"
            "## What `import mm_lens` gives\n\n| name | |\n|---|---|\n" + "\n".join(rows) + "\n\n"
            "## Packages\n\n| name | |\n|---|---|\n" + packages + "\n\n"
            f"```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
        )

    def page(self, package: Thing) -> str:
        """A package: its own docstring, then its names."""
        parts = [
            f"# `{package.name}`",
            f"```{{py:module}} {package.name}\n```",
            markdown(package.value),
        ]
        inside = [t for t in self.things if t.name.rpartition(".")[0] == package.name]
        inside = inside or members(package.value, package.name)
        modules = [t for t in inside if t.kind == "module" and t.name not in self.packages]
        others = [t for t in inside if t.kind != "module"]
        elsewhere = [t for t in others if self.home[id(t.value)] != t.name]
        parts += [self.entry(t) for t in others if self.home[id(t.value)] == t.name]
        for module in modules:
            if self.home[id(module.value)] != module.name:
                elsewhere.append(module)
                continue
            parts += [
                f"## `{module.name}`",
                f"```{{py:module}} {module.name}\n```",
                markdown(module.value),
            ]
            for each in members(module.value, module.name):
                if self.home[id(each.value)] == each.name:
                    parts.append(self.entry(each))
                else:
                    elsewhere.append(each)
        if elsewhere:
            links = ", ".join(f"{{py:obj}}`{t.name} <{self.home[id(t.value)]}>`" for t in elsewhere)
            parts.append(f"Told elsewhere: {links}.")
        return "\n\n".join(part for part in parts if part) + "\n"

    def entry(self, thing: Thing, depth: int = 6) -> str:
        """A directive of Sphinx's Python domain; the `py:module` above it says of which module."""
        fence = "`" * depth
        body = fields(markdown(thing.value, inherit=thing.kind != "data"))
        if thing.kind in ("class", "exception"):
            body += "".join(f"\n\n{self.method(m, f, depth - 1)}" for m, f in methods(thing.value))
        head = f"{thing.name.rpartition('.')[2]}{signature(thing.value)}"
        return f"{fence}{{py:{thing.kind}}} {head}\n\n{body}\n{fence}"

    def method(self, name: str, function: Any, depth: int) -> str:
        """A method or property of a class."""
        fence = "`" * depth
        if isinstance(function, property | cached_property):
            shown, value = (
                f"{{py:property}} {name}",
                function.fget if isinstance(function, property) else function.func,
            )
        else:
            static = isinstance(function, classmethod | staticmethod)
            value = function.__func__ if static else function
            kind = {classmethod: "classmethod", staticmethod: "staticmethod"}.get(
                type(function), "method"
            )
            shown = f"{{py:{'method'}}} {name}{signature(value, bound=kind != 'staticmethod')}"
            shown += f"\n:{kind}:" * static
        return f"{fence}{shown}\n\n{fields(markdown(value))}\n{fence}"


def methods(owner: type) -> Iterator[tuple[str, Any]]:
    """What a class itself adds for its users: with a docstring, without an underscore."""
    for name, value in vars(owner).items():
        told = getattr(value, "__func__", value)
        told = getattr(told, "func", told)
        public = not name.startswith("_") and inspect.getdoc(told)
        if public and (inspect.isfunction(told) or isinstance(value, property | cached_property)):
            yield name, value


def signature(value: Any, bound: bool = False) -> str:
    """As it stands in the code; empty where there is none."""
    if not callable(value) or (inspect.isclass(value) and issubclass(value, BaseException)):
        return ""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    named = list(found.parameters.values())
    named = named[1:] if bound else named
    plain = [p.replace(annotation=readable(p.annotation), default=shown(p.default)) for p in named]
    returns = readable(found.return_annotation)
    if inspect.isclass(value) or returns == "None":
        returns = found.empty
    return str(found.replace(parameters=plain, return_annotation=returns)).replace("\n", " ")


class Written(str):
    """Shows itself without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def readable(annotation: Any) -> Any:
    """An annotation as it is written."""
    if annotation is inspect.Parameter.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return Written(re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text))


def shown(default: Any) -> Any:
    """A default that reads as Python: of an object, its name."""
    if default is inspect.Parameter.empty:
        return default
    text = repr(default)
    return Written("…" if "<" in text else text)


def markdown(value: Any, inherit: bool = True) -> str:
    """The docstring, as Markdown."""
    doc = (inspect.getdoc(value) if inherit else None) or ""
    # What is left out in an example; the highlighter reads Python.
    return EXAMPLE.sub(lambda block: block[0].replace("…", "..."), doc).strip()


def first_sentence(value: Any) -> str:
    """Of the docstring, for a table."""
    doc = " ".join(markdown(value).split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", doc)[0].replace("|", "\\|")


def fields(doc: str) -> str:
    """Sections such as `Args:` as field lists, which Sphinx lays out."""
    lines, out, field = doc.splitlines(), [], ""
    for line in lines:
        head = re.match(r"^(Args|Raises|Attributes|Returns|Yields|Example|Examples):\s*$", line)
        if head:
            field = head[1]
            if field in ("Returns", "Yields"):
                out += ["", ":returns:"]
            elif field not in FIELDS:
                out += ["", f"**{field}**", ""]
                field = ""
            else:
                out += ["", "**Attributes**", ""] if field == "Attributes" else [""]
            continue
        if field and line and not line.startswith(" "):
            field = ""
            out.append("")
        if field in FIELDS:
            item = ITEM.match(line)
            if item:
                out.append(f"{FIELDS[field].format(item[1])} {item[2] or ''}")
                continue
        out.append(line)
    return "\n".join(out).strip()


def write(folder: Path) -> None:
    """Write all pages below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    reference = Reference()
    (folder / "index.md").write_text(reference.home_page(), encoding="utf-8")
    for package in reference.pages:
        (folder / f"{package.name}.md").write_text(reference.page(package), encoding="utf-8")
