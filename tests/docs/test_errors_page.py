"""Every error and warning of the packages has its section in docs/errors.md."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
SOURCES = [
    *sorted((ROOT / "mm_lens").rglob("*.py")),
    *sorted((ROOT / "adapters" / "mm_lens_adapters").rglob("*.py")),
]

ROOTS = {"MMLensError", "MMLensWarning", "BadParameter"}
FOREIGN = {"ValueError", "IndexError"}
"""What classes raise that stand in for those of transformers: these know no error of ours."""

# Texts of others, handed on: who says them, and so where they are found.
HANDED_ON = {
    ("report.py", "finding.message"): "Report.add, whose texts are looked for",
    ("hub.py", "f'{repository}: {str(error).strip().splitlines()[0]}'"): "the hub's own answer",
    (
        "estimates.py",
        "message",
    ): "UndefinedErrors, which are looked for, or the name of what failed",
    ("forward.py", "message"): "ForwardContext.tell, whose texts are looked for",
    ("inputs.py", "doubt"): "Rendered, whose texts are looked for",
    ("published.py", "f'{directory}: {error}'"): "ValueErrors of add_markers, which are looked for",
}


@dataclass(frozen=True)
class Message:
    """A text that a user may see: where it is made, and what of it is constant.

    Attributes:
        file: where it is made.
        line: where in the file.
        source: the expression that makes it.
        text: the text, with "…" for what varies.
    """

    file: str
    line: int
    source: str
    text: str

    @property
    def constant(self) -> bool:
        """Whether anything of it can be looked for."""
        return len(self.text.replace("…", "").strip(" .:;")) >= 5

    def is_shown(self, symptoms: list[str]) -> bool:
        """Whether one of them is this message shortened, or has one of its longer pieces.

        The latter, so that not every change of a word is one of the page.
        """
        text = " ".join(self.text.split())
        if any(_shortens(symptom, text) for symptom in symptoms):
            return True
        pieces = [piece.strip() for piece in re.split(r"[…()]|[.:;] ", text)]
        everything = "\n".join(symptoms)
        return any(piece[:30] in everything for piece in pieces if len(piece) >= 20)


def _shortens(symptom: str, text: str) -> bool:
    """Whether the constant parts of a symptom are in a text, in this order."""
    parts, end = [part.strip() for part in symptom.split("…")], 0
    for part in parts:
        start = text.find(part, end)
        if start < 0:
            return False
        end = start + len(part)
    return len("".join(parts)) >= 8


def spelled(node: ast.expr, names: dict[str, list[ast.expr]]) -> list[str]:
    """The texts that an expression can make, with "…" for what varies.

    Names have the values given for them, calls of functions those of ``name()``.
    """
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        texts = [""]
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            fixed = inner is part or (isinstance(inner, ast.Name) and inner.id.isupper())
            pieces = spelled(inner, names) if fixed else []
            texts = [text + piece for text in texts for piece in pieces or ["…"]]
        return texts
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        ends = spelled(node.right, names)
        return [start + end for start in spelled(node.left, names) for end in ends]
    if isinstance(node, ast.BinOp):  # [note] * condition
        return spelled(node.left, names)
    if isinstance(node, ast.IfExp):
        return spelled(node.body, names) + spelled(node.orelse, names)
    if isinstance(node, ast.List | ast.Tuple):
        return [text for entry in node.elts for text in spelled(entry, names)]
    known = node.id if isinstance(node, ast.Name) else ""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr == "strip":
            return spelled(node.func.value, names)
        known = f"{called(node)}()"
    if known in names:
        others = {name: values for name, values in names.items() if name != known}
        return [text for value in names[known] for text in spelled(value, others)]
    return ["…"]


def called(node: ast.Call) -> str:
    """Name of the function, class or method that is called."""
    return str(getattr(node.func, "id", getattr(node.func, "attr", "")))


def helpers(trees: list[ast.Module]) -> dict[str, list[ast.expr]]:
    """What functions return that make a text."""
    return {
        f"{function.name}()": [
            node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value
        ]
        for tree in trees
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and getattr(function.returns, "id", "") == "str"
    }


def exceptions(trees: list[ast.Module]) -> set[str]:
    """Names of our errors and warnings: the roots and all classes that derive from them."""
    classes = {
        node.name: {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = set(ROOTS)
    while more := {name for name, bases in classes.items() if bases & found} - found:
        found |= more
    return found


def shown_by(node: ast.AST, raised: set[str], file: str) -> list[ast.expr]:
    """The expressions in a node that make texts for the user."""
    if isinstance(node, ast.Return) and file.endswith("failures.py"):  # what the command line says
        return [node.value] if node.value else []
    if isinstance(node, ast.Assign) and "metrics/" in file:  # a note on an estimate
        return [node.value] if getattr(node.targets[0], "id", "") in {"note", "notes"} else []
    if not isinstance(node, ast.Call):
        return []
    name = called(node)
    owner = getattr(getattr(node.func, "value", None), "id", "")
    given = [value for value in node.args if not isinstance(value, ast.Starred)]
    named = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in raised:
        return given[:1]
    if name == "warn":  # of the module `warnings`, or of an estimate
        return given[:1] if owner == "warnings" else given
    if name == "add_note":
        return given
    if name == "append" and owner in {"notes", "warnings"}:
        return given
    if name == "add" and owner == "report":
        return given[1:]
    if name == "tell":  # once for a model
        return given
    if name == "Rendered":  # a doubt about a prompt
        return given[2:]
    if name == "Estimate":  # the reason of a NaN
        return [named["warning"]] if "warning" in named else given[6:]
    return []


def messages(sources: dict[str, str]) -> list[Message]:
    """Every message in Python sources, given by file name."""
    trees = {file: ast.parse(source) for file, source in sources.items()}
    known, made = exceptions([*trees.values()]), helpers([*trees.values()])
    found = []
    for file, tree in trees.items():
        names = dict(made)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names.setdefault(node.targets[0].id, []).append(node.value)
        raised = known | (FOREIGN if "adapters" in file else set())
        for node in ast.walk(tree):
            for expression in shown_by(node, raised, file):
                for text in spelled(expression, names) or ["…"]:
                    message = Message(file, expression.lineno, ast.unparse(expression), text)
                    if message.constant or isinstance(node, ast.Call):
                        found.append(message)
    return [message for message in found if message.text]


def sections(page: str) -> dict[str, str]:
    """Text of each section by its heading."""
    parts = re.split(r"^### (.*)\n", re.sub(r"^## .*\n", "### \n", page, flags=re.M), flags=re.M)
    return {head: text for head, text in zip(parts[1::2], parts[2::2], strict=True) if head}


def symptoms(page: str) -> list[str]:
    """Every message that a section shows."""
    return [
        " ".join(symptom.split())
        for text in sections(page).values()
        for symptom in re.findall("`([^`]+)`", text.split("- **Cause:**")[0])
    ]


def without_section(found: list[Message], page: str) -> list[Message]:
    """The messages that no symptom shows."""
    shown = symptoms(page)
    return [
        message
        for message in found
        if not message.is_shown(shown)
        and (message.constant or (Path(message.file).name, message.source) not in HANDED_ON)
    ]


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found() -> list[Message]:
    return messages(
        {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in SOURCES}
    )


def test_every_message_has_its_section(page, found):
    assert len(found) > 250
    missing = without_section(found, page)
    assert not missing, "\n".join(f"{m.file}:{m.line}: {m.text}" for m in missing)


def test_nothing_is_handed_on_that_is_no_longer_there(found):
    there = {(Path(message.file).name, message.source) for message in found}
    assert there >= HANDED_ON.keys()


NEW = """
class LayerError(InputError): ...

class InputError(MMLensError, ValueError): ...

MOST = 8
REASON = f"the flux {x} is not aligned with the matrix"

def f(notes):
    raise LayerError(f"The {x} was turned inside out by {y}. Turn it back.")
    raise InputError(f"{x}, {MOST}: {REASON}.")
    return errors.InputError("A " "split text " f"of {x} pieces nobody wrote")
    warnings.warn(f"{x} was left as it is, upside down", MMLensWarning, stacklevel=2)
    notes.append(f"{x:.1f} of the tokens smell of roses")
    warnings.warn(told(x), MMLensWarning)
    raise InputError(str(error))
    raise KeyError("none of ours, and so not looked for")

def told(x) -> str:
    return f"helpers make texts of {x}, too"
"""


def test_a_new_message_without_section_is_found(page):
    found = messages({"new.py": NEW})
    assert [message.line for message in found] == [10, 11, 12, 13, 14, 15, 16]
    assert without_section(found, page) == found
    # A piece of each is enough, in a symptom; the last one says nothing that can be looked for.
    shown = (
        "### One\n\n- **Symptom:** `… was turned inside out by …`; `… is not aligned with the\n"
        "  matrix`; `… pieces nobody wrote`; `… was left as it is, upside down`\n- **Cause:** "
        "`of the tokens smell of roses`\n"
    )
    assert [message.line for message in without_section(found, shown)] == [14, 15, 16]


def test_every_section_has_symptom_cause_and_fix(page):
    found = sections(page)
    assert len(found) == len(re.findall(r"^### ", page, re.MULTILINE)) >= 40, "a heading twice"
    for head, text in found.items():
        parts = re.findall(r"^- \*\*(\w+):\*\* \S", text, re.MULTILINE)
        assert parts == ["Symptom", "Cause", "Fix"], head
        assert "`" in text.split("- **Cause:**")[0], head


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_of_the_page_and_to_it_exist(page):
    for link in re.findall(r"\]\(([^)]+)\)", " ".join(page.split())):
        file, _, anchor = link.partition("#")
        target = PAGE.parent / file if file else PAGE
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
    for other in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for anchor in re.findall(r"errors\.md#([\w-]+)", other.read_text(encoding="utf-8")):
            assert anchor in anchors(page), (other.name, anchor)
