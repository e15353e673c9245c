"""What `--help` shows on a terminal of 80 columns, of every command."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from chorus.cli import COMMANDS, app
from chorus.console.lazy import resolved

RUNNER = CliRunner()


def commands(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands of the tree, groups too, by what is typed."""
    yield words, resolved(command)
    for name, one in getattr(resolved(command), "commands", {}).items():
        yield from commands(one, *words, name)


ALL = dict(commands(typer.main.get_command(app)))
LEAVES = [words for words, command in ALL.items() if not getattr(command, "commands", None)]


def shown(*words: str) -> list[str]:
    result = RUNNER.invoke(app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def help_words(command: Any) -> set[str]:
    """The words of all help of a command, as they are without their markup."""
    texts = [inspect.cleandoc(command.help or "")]
    texts += [param.help or "" for param in command.params if not param.hidden]
    texts += [name for param in command.params for name in param.opts if name.startswith("-")]
    plain = " ".join(texts).replace("`", "").replace("**", "")
    return set(plain.split())


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_no_word_is_broken_or_cut_at_80_columns(words: tuple[str, ...]) -> None:
    lines = shown(*words)
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert "…" not in text
    assert {word for word in help_words(ALL[words]) if word not in text} == set()
    # Of lists of choices, each is shown whole.
    for opened in re.findall(r"<\w+(?:\|\w+)*\s", text):
        assert "|" not in opened, opened


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_has_an_example(words: tuple[str, ...]) -> None:
    text = "\n".join(shown(*words))
    assert re.search(r"^ Examples? *$", text, re.MULTILINE)
    assert f"chorus {words[0]}" in text


def test_commands_stand_in_groups() -> None:
    text = "\n".join(shown())
    places = [text.index(f"─ {panel} ─") for panel in COMMANDS]
    assert len(places) == 4
    assert places == sorted(places)
    for commands in COMMANDS.values():
        for command in commands:
            # A line each.
            assert re.search(rf"^│ {command.name} +{re.escape(command.summary)} *│$", text, re.MULTILINE)


def test_predict_shows_first_what_people_need_first() -> None:
    text = "\n".join(shown("predict"))
    first = text[text.index("─ Options ─") :]
    first = first[: first.index("╰")]
    named = set(re.findall(r"^│[ *]+(--[\w-]+)", first, re.MULTILINE)) - {"--json", "--help"}
    assert named == {
        "--ensemble", "--out", "--channel", "--diameter", "--objects", "--save", "--device", "--overwrite",
        "--dry-run", "--report",
    }  # fmt: skip
    assert text.index("─ Options ─") < text.index("─ Where and how it runs ─")


def test_completion_can_be_installed() -> None:
    assert "--install-completion" in "\n".join(shown())
    environment = {"_CHORUS_COMPLETE": "complete_bash", "COMP_WORDS": "chorus ensemble s", "COMP_CWORD": "2"}
    result = RUNNER.invoke(app, [], env=environment, prog_name="chorus")
    assert result.output.split() == ["show", "sentinel", "schema"]
