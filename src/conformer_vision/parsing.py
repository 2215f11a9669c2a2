"""The command-line parser, whose errors are one plain line each; it checks recipes too."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn, get_args

from jsonargparse import ArgumentParser, set_parsing_settings

from conformer_vision.errors import UserError, option
from conformer_vision.help import BriefHelp, HelpFormatter
from conformer_vision.hints import command_meant, option_meant

PROGRAM = "conformer-vision"
_LONGEST = 60
"""Characters of a wrong value that a message shows."""

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "names with values",
    "tuple[int, int]": "two whole numbers such as [224,160]",
    "tuple[float, float]": "two numbers such as [0.5,1]",
    "NoneType": "null",
}
_TRUTHS = ("true", "false", "yes", "no", "on", "off", "1", "0", "null")


class Parser(ArgumentParser):
    """Raises a one-line error instead of printing the usage and ending the process."""

    given: Sequence[str] = ()
    """The command line, for hints."""
    commands: Mapping[str, Parser] = {}
    """The parsers of the subcommands."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError."""
        line = " ".join(message.split())
        explained = next(filter(None, (explain(line, self) for explain in _EXPLANATIONS)), line)
        raise UserError(explained) from ex

    @property
    def command(self) -> str:
        """The program and its subcommand, as typed."""
        return self.prog.replace(" [options]", "")

    def flags(self) -> list[str]:
        """Return the options that are true or false."""
        actions = [action for action in self._actions if bool in _types(action)]
        return [option for action in actions for option in action.option_strings]

    def positionals(self) -> dict[str, str]:
        """Return the arguments without a name of their own, with what the help calls them."""
        actions = [action for action in self._actions if not action.option_strings]
        return {action.dest: str(action.metavar or action.dest.upper()) for action in actions}

    def complete(self, arguments: list[str]) -> list[str]:
        """Give the value true to options that are true or false and stand alone, as ``--pretrained``."""
        flags, complete = self.flags(), []
        for argument, after in zip(arguments, [*arguments[1:], "--"], strict=True):
            alone = after.startswith("-") or (self.positionals() and after.lower() not in _TRUTHS)
            complete.append(f"{argument}=true" if argument in flags and alone else argument)
        return complete


def _types(action: argparse.Action) -> tuple[object, ...]:
    hint = getattr(action, "_typehint", None)
    return get_args(hint) or (hint,)


def build_parser(
    description: str = "", *, prog: str | None = None, most_used: Collection[str] = ()
) -> Parser:
    """Make a parser without options.

    Args:
        description: what the command does.
        prog: name of the command.
        most_used: options that `--help` shows, while `--help all` shows every one. Empty: it shows every one.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,  # would take a mistyped option for another one
        formatter_class=HelpFormatter,
        add_help=not most_used,
    )
    if most_used:
        text = "Show this help, or with 'all' every option."
        parser.add_argument("-h", "--help", action=BriefHelp, most_used=("help", *most_used), help=text)
    return parser


def _unknown_command(line: str, parser: Parser) -> str | None:
    match = re.search(r"argument subcommand: invalid choice: '(.*)' \(choose from (.*)\)", line)
    if match is None:
        return None
    meant = command_meant(match[1], [name.strip(" '") for name in match[2].split(",")])
    hint = f"did you mean {meant}?" if meant else f"see {parser.command} --help"
    if os.path.exists(match[1]):
        hint = f"did you mean predict {shlex.quote(match[1])}?"
    return f"unknown command {match[1]!r}; {hint}"


def _unknown(line: str, parser: Parser) -> str | None:
    match = re.search(r"[Uu]nrecognized arguments: (.+)", line)
    if match is None:
        return None
    first = max(
        (text for text in parser.given if match[1].startswith(text)), key=len, default=match[1].split()[0]
    )
    given = first.partition("=")[0]
    look = f"; see {parser.command} --help"
    if not given.startswith("-"):
        return f"unexpected argument {first!r}{_option_for(first, parser) or look}"
    name, places = given.lstrip("-"), parser.positionals()
    options = [text[2:] for action in parser._actions for text in action.option_strings if text[:2] == "--"]
    if f"--{name.removeprefix('no_')}" in parser.flags():
        return f"unknown option {given}; did you mean --{name.removeprefix('no_')} false?"
    meant = option_meant(name, [*places, *options])
    if meant in places:
        return f"unknown option {given}; give its value alone: {parser.command} {places[meant]}"
    return f"unknown option {given}" + (f"; did you mean --{meant}?" if meant else look)


def _option_for(value: str, parser: Parser) -> str | None:
    """Return the hint with which option a value that stands alone may be meant."""
    for action in parser._actions:
        if value in (action.choices or ()) and action.option_strings:
            return f"; did you mean {action.option_strings[0]} {value}?"
    given = any(argument.partition("=")[0] == "--data" for argument in parser.given)
    has_data = any("--data" in action.option_strings for action in parser._actions)
    return f"; did you mean --data {shlex.quote(value)}?" if has_data and not given else None


def _wrong_choice(line: str, parser: Parser) -> str | None:
    match = re.search(r"argument (--\w+): invalid choice: (.+?) \(choose from (.*)\)", line)
    return None if match is None else f"{match[1]} {match[2]}: must be one of {match[3]}"


def _wrong_number(line: str, parser: Parser) -> str | None:
    match = re.search(r"argument (--\S+): (expected (?:one|at least one)|ignored explicit) argument", line)
    return match and f"{match[1]} {'needs a value' if match[2].startswith('expected') else 'takes no value'}"


def _wrong_type(line: str, parser: Parser) -> str | None:
    match = re.search(
        r'Parser key "(?P<key>[^"]+)"(?: element \d+)?: '
        r"(?:Expected an? (?P<type>.+?)\. Got value: |.*Subtypes: \[(?P<types>.+?)\] Errors: .*Given value: )"
        r"(?P<value>.*)$",
        line,
    )
    if match is None:
        return None
    value = match["value"] if len(match["value"]) <= _LONGEST else f"{match['value'][:_LONGEST]}…"
    kinds = re.findall(r"Literal\[(.+?)\]|(tuple\[.+?\]|(?<=<class ')\w+)", match["type"] or match["types"])
    named = [f"one of {choices}" if choices else _KINDS.get(kind, kind) for choices, kind in kinds]
    named = [name for name in named if name != "null"] or named
    return f"{option(match['key'])} {value}: must be {' or '.join(named)}"


def _missing(line: str, parser: Parser) -> str | None:
    match = re.search(r"arguments are required: (?:([\w-]+)\.)?(\w+)", line)
    if match is None:
        return None
    at = parser.commands.get(match[1], parser)
    name = at.positionals().get(match[2], f"--{match[2]}")
    name = match[2] if name == match[2].upper() else name
    return f"{name} is missing; see {at.command} --help"


_EXPLANATIONS = (_unknown_command, _unknown, _wrong_choice, _wrong_number, _wrong_type, _missing)
