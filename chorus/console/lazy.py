"""Commands that are imported when they are called, so that help and version appear without delay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

MARKUP: Literal["markdown"] = "markdown"
# What to do about a parameter that is missing, by its kind and name.
_MISSING = {
    ("argument", "sources"): "Name an image, a plate, or a folder of them",
    ("argument", "out"): "Name a folder of results, the --out of `chorus predict`",
    ("argument", "images"): "Name the folder of the images to train on",
    ("argument", "ensemble"): "Take one that `chorus ensemble list` names, such as nuclei-fluo, or one of your own",
    ("option", "ensemble"): "Take one that `chorus ensemble list` names, such as nuclei-fluo, or one of your own",
    ("option", "out"): "Name the folder that gets the results; it is made if it is not there",
}
# Characters of a list of choices, or of a default, that may not be broken.
_WIDEST = 19


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command, or a group of commands, as the tree of commands names it.

    Attributes
    ----------
    name : as typed
    home : ``module:name`` of its function, or of the `typer.Typer` of a group with options of its own; empty for a
        group without options
    summary : what it does, in a line of the list of commands
    commands : of a group
    options_first : everything after the first word that is no option belongs to that word
    """

    name: str
    home: str
    summary: str
    commands: tuple[CommandEntry, ...] = ()
    options_first: bool = False


class LazyCommand(TyperCommand):
    """A name and a line of help; the command itself is imported when its arguments are to be read."""

    def __init__(self, command: CommandEntry, panel: str | None = None) -> None:
        super().__init__(command.name, help=command.summary, rich_help_panel=panel, rich_markup_mode=MARKUP)
        self._home, self._options_first = command.home, command.options_first

    @cached_property
    def loaded(self) -> Any:
        """Import and return the command itself."""
        module, _, name = self._home.partition(":")
        home = getattr(import_module(module), name)
        if isinstance(home, typer.Typer):
            return _narrow(get_command(home))
        app = typer.Typer(rich_markup_mode=MARKUP, pretty_exceptions_enable=False, add_completion=False)
        app.command(self.name, context_settings={"allow_interspersed_args": not self._options_first})(home)
        return _narrow(get_command(app))

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments of the command itself; the message on a missing one says what to do."""
        try:
            return self.loaded.make_context(info_name, args, parent, **extra)
        except typer.BadParameter as error:
            if error.param is not None and not error.message:  # it is missing
                error.message = _MISSING.get((error.param.param_type_name, error.param.name or ""), "")
            raise


def _narrow(command: Any) -> Any:
    """Fit the help of a command into 80 columns: long lists may be broken between their words only."""
    for param in command.params:
        choices = _choices(param.type_descriptor.annotation)
        if len("|".join(choices)) > _WIDEST and not param.metavar:
            param.metavar = "CHOICE"
            param.help = f"{param.help} One of {', '.join(choices)}."
        if isinstance(param.default, str) and "," in param.default and len(param.default) > _WIDEST:
            param.show_default = param.default.replace(",", ", ")
    for one in getattr(command, "commands", {}).values():
        _narrow(one)
    return command


def _choices(annotation: Any) -> list[str]:
    """Return the choices of a parameter that takes one of several words; empty for others."""
    if get_origin(annotation) is Literal:
        return [str(one) for one in get_args(annotation)]
    parts = [part for part in get_args(annotation) if part is not NoneType]
    return _choices(parts[0]) if len(parts) == 1 and NoneType in get_args(annotation) else []


def commands_of(panels: Mapping[str | None, Sequence[CommandEntry]]) -> dict[str, TyperCommand | TyperGroup]:
    """Return the commands of a group by name, without importing any of them.

    Parameters
    ----------
    panels : commands by the panel of the help in which they stand
    """
    return {one.name: _made(one, panel) for panel, commands in panels.items() for one in commands}


def _made(command: CommandEntry, panel: str | None) -> TyperCommand | TyperGroup:
    if command.home:
        return LazyCommand(command, panel)
    return TyperGroup(
        name=command.name,
        commands=list(commands_of({None: command.commands}).values()),
        help=command.summary,
        no_args_is_help=True,
        rich_help_panel=panel,
        rich_markup_mode=MARKUP,
    )


def resolved(command: Any) -> Any:
    """Return a command with its options; import it if that has not happened yet."""
    return command.loaded if isinstance(command, LazyCommand) else command
