"""Parsing commands as the program does, without running them."""

from __future__ import annotations

import click
import typer

from chorus.cli import app

CHORUS: click.Group = typer.main.get_command(app)  # type: ignore[assignment]
# What the calls stand for.
STANDS_FOR = {"$@": ["images/", "--ensemble", "nuclei-fluo", "--out", "out/"]}


def parse(group: click.Group, words: list[str]) -> click.Context:
    """The words as the program parses them, down to the last command of groups in groups; nothing is run."""
    words = [word for given in words for word in STANDS_FOR.get(given, [given])]
    name, command, rest = group.resolve_command(click.Context(group), words)
    assert command is not None
    assert name is not None
    if isinstance(command, click.Group) and rest and rest[0] in command.commands:
        return parse(command, rest)
    return command.make_context(name, rest)
