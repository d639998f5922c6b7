"""`mm-lens run`: a command in a file does what it does on the command line."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
import typer
import yaml

from mm_lens.cli import commands
from mm_lens.cli.runs import configs


def run(tmp_path, text, *extra):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return commands.run(["run", str(path), *extra])


def test_a_command_with_arguments_and_switches(tmp_path, capsys):
    assert run(tmp_path, "command: list\nwhat: models\nas_json: true\n") == 1
    assert "names the option 'as_json'" in capsys.readouterr().err
    assert run(tmp_path, "command: list\nwhat: models\njson: true\n") == 0
    assert json.loads(capsys.readouterr().out)[0]["name"].startswith("demo/")
    assert run(tmp_path, "command: list\nwhat: models\njson: false\n") == 0
    assert "Besides" in capsys.readouterr().out


def test_what_stands_behind_overrules(tmp_path, capsys):
    text = "command: profile\nmodel: demo/llava-next\ndata: easy-vqa\nout: o\nstreams: [middle]\n"
    assert run(tmp_path, text) == 2
    assert "'middle' is not a comma-separated list" in capsys.readouterr().err
    assert run(tmp_path, text, "--streams", "mian") == 2
    assert "'mian' is not" in (err := capsys.readouterr().err)
    assert "Did you mean 'main'?" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: demo/llava-next", "names no command"),
        ("- 1", "names no command"),
        ("command: [", "is no YAML"),
        ("command: prfile", "Did you mean 'profile'?"),
        ("command: run", "which there is not"),
        ("command: profile\nmodle: x", "Did you mean 'model'?"),
        ("command: profile\nstreams: [[main]]", "and nothing deeper"),
        ("command: profile\nstreams: &a [*a]", "and nothing deeper"),
        (f"command: {'[' * 5000}", "is no YAML"),
        ("command: profile\nquiet: 3", "quiet is true or false, not 3"),
    ],
)
def test_files_that_say_nothing_that_can_be_run(tmp_path, text, message, capsys):
    assert run(tmp_path, text) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_command_of_a_group(tmp_path, capsys):
    (tmp_path / "set.csv").write_text("image,text\n,Why?\n")
    text = f"command: data show\ndata: {tmp_path / 'set.csv'}\nsamples: 1\n"
    assert run(tmp_path, text) == 0
    assert "text    Why?" in capsys.readouterr().out
    assert run(tmp_path, "command: recipe\nlimit: 3\n") == 1
    assert "recipe run" in capsys.readouterr().err


def test_no_file(capsys):
    assert commands.run(["run", "no-such.yaml"]) == 1
    assert "There is no file no-such.yaml" in capsys.readouterr().err


def test_what_a_run_writes_can_be_run(tmp_path):
    """Options as they were given, through the file and back."""
    app = typer.Typer()
    seen = []

    @app.command(name="one")
    def one(
        name: str,
        size: int = 3,
        chat: Annotated[bool | None, typer.Option("--chat/--no-chat")] = None,
        loud: Annotated[bool, typer.Option("--loud")] = False,
        left: str | None = None,
    ) -> None:
        given = dict(locals())
        seen.append((name, size, chat, loud, left))
        configs.write_config(command.commands["one"], given, tmp_path)

    @app.command(name="other")
    def other() -> None: ...

    command = typer.main.get_command(app)
    for given in (
        ["one", "a b", "--size", "5", "--no-chat"],
        ["one", "-", "--loud", "--left", "x"],
    ):
        command.main(given, standalone_mode=False)
        entries = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert entries["command"] == "one"
        again = configs.read_config(tmp_path / "config.yaml", command.commands)
        command.main(again, standalone_mode=False)
        assert seen[-1] == seen[-2]


def test_the_exit_code_of_the_command_is_that_of_the_run(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise typer.Exit(1)

    monkeypatch.setattr("mm_lens.cli.listing._models", fail)
    assert run(tmp_path, "command: list\nwhat: models\n") == 1
