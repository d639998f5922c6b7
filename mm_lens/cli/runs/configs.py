"""`mm-lens run CONFIG.yaml`: a command with its options in a file.

```yaml
command: profile
model: demo/llava-next
data: easy-vqa
out: runs/llava-next
samples: 500
```

Every command and every option of it, under its own name; `mm-lens profile` writes such a file
beside its tables. What stands behind the file on the command line overrules it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_lens.arguments import suggest
from mm_lens.errors import DataError

CONFIG_FILE = "config.yaml"
COMMAND = "command"
NOT_KEPT = ("overwrite", "restart", "quiet", "as_json")
"""What is of one call, and not of what is run."""


def read_config(path: Path, commands: Mapping[str, Any]) -> list[str]:
    """The command line that a file stands for.

    Raises:
        DataError: it cannot be read, or names a command or an option that there is not.
    """
    import yaml

    if not path.is_file():
        which = f"{path} is a directory" if path.is_dir() else f"There is no file {path}"
        raise DataError(f"{which}. Give one with a command and its options (YAML).")
    try:
        entries = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"{path} is no YAML: {told}. Correct the file.") from error
    if not isinstance(entries, dict) or COMMAND not in entries:
        raise DataError(f"{path} names no command. Write 'command: profile' into it.")
    name = " ".join(str(entries.pop(COMMAND)).split())
    found = _flatten(commands)
    if name not in found:
        known = [*found]
        raise DataError(
            f"{path} names the command {name!r}, which there is not. Use one of: "
            f"{', '.join(known)}.{suggest(name, known)}"
        )
    return [*name.split(), *_spell(path, entries, found[name].params)]


def _flatten(commands: Mapping[str, Any]) -> dict[str, Any]:
    """All but `run` itself, those of groups as `recipe run`."""
    found: dict[str, Any] = {}
    for name, command in commands.items():
        inner = getattr(command, "commands", None)
        if inner is not None:
            found |= {f"{name} {each}": inner[each] for each in inner}
        elif name != "run":
            found[name] = command
    return found


def _spell(path: Path, entries: Mapping[Any, Any], parameters: Sequence[Any]) -> list[str]:
    """Options and arguments as a command line has them."""
    known = {_name(parameter): parameter for parameter in parameters}
    options: list[str] = []
    arguments: dict[str, list[str]] = {}
    for key, value in entries.items():
        name = str(key).replace("_", "-")
        if name not in known:
            raise DataError(
                f"{path} names the option {key!r}, which the command does not have. It has: "
                f"{', '.join(known)}.{suggest(name, known)}"
            )
        parameter = known[name]
        if value is None:
            continue
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, (list, dict)) for part in parts):  # aliases may make them endless
            raise DataError(f"{path}: {name} is one value or a list of values, and nothing deeper.")
        if parameter.param_type_name == "argument":
            arguments[name] = [str(part) for part in parts]
        elif getattr(parameter, "is_flag", False):
            options += _flag(path, name, parameter, value)
        else:
            options += [f"{parameter.opts[0]}={','.join(map(str, parts))}"]
    order = [_name(p) for p in parameters if p.param_type_name == "argument"]
    return [*options, *(value for name in order for value in arguments.get(name, []))]


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return str(parameter.opts[0]).removeprefix("--")


def _flag(path: Path, name: str, parameter: Any, value: Any) -> list[str]:
    if not isinstance(value, bool):
        raise DataError(f"{path}: {name} is true or false, not {value!r}.")
    if value:
        return [parameter.opts[0]]
    return [parameter.secondary_opts[0]] if parameter.secondary_opts else []


def write_config(command: Any, values: Mapping[str, Any], directory: Path) -> str:
    """Write the options of a command as a file that `run` takes; returns its name.

    Args:
        command: which one.
        values: of its parameters.
        directory: where to.
    """
    import yaml

    entries: dict[str, Any] = {COMMAND: command.name}
    for parameter in command.params:
        value = values.get(parameter.name)
        if value is None or parameter.name in NOT_KEPT:
            continue
        if isinstance(value, (list, tuple)):
            value = [str(x) if isinstance(x, Path) else x for x in value]
        entries[_name(parameter)] = str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    about = f"# Run it again: mm-lens run {CONFIG_FILE} --out ANOTHER\n"
    (directory / CONFIG_FILE).write_text(about + text, "utf-8", errors="backslashreplace")
    return CONFIG_FILE
