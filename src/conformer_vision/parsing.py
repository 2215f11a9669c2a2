"""The command-line parser, whose errors are one plain line each; it checks recipes too."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NoReturn

from jsonargparse import ArgumentParser, set_parsing_settings

from conformer_vision.errors import UserError, nearest
from conformer_vision.help import BriefHelp, HelpFormatter

PROGRAM = "conformer-vision"
_LONGEST = 60
"""Characters of a wrong value that a message shows."""

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "names with values",
    "tuple[int, int]": "two whole numbers",
    "tuple[float, float]": "two numbers",
    "NoneType": "null",
}


class Parser(ArgumentParser):
    """Raises a one-line error instead of printing the usage and ending the process."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError."""
        line = " ".join(message.split())
        raise UserError(_unknown(line, self) or _wrong_type(line) or _missing(line) or line) from ex


def build_parser(
    description: str, *, prog: str | None = None, most_used: Collection[str] = ()
) -> ArgumentParser:
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


def _unknown(line: str, parser: ArgumentParser) -> str | None:
    match = re.search(r"[Uu]nrecognized arguments: (\S+)", line)
    if match is None:
        return None
    given = match[1].partition("=")[0]
    if not given.startswith("-"):
        return f"unexpected argument {given!r}; see {PROGRAM} --help"
    known = [option for action in parser._actions for option in action.option_strings]
    return f"unknown option {given}{nearest(given, known) or f'; see {PROGRAM} --help'}"


def _wrong_type(line: str) -> str | None:
    match = re.search(
        r'Parser key "(?P<key>[^"]+)": '
        r"(?:Expected an? (?P<type>.+?)\. Got value: |.*Subtypes: \[(?P<types>.+?)\] Errors: .*Given value: )"
        r"(?P<value>.*)$",
        line,
    )
    if match is None:
        return None
    value = match["value"] if len(match["value"]) <= _LONGEST else f"{match['value'][:_LONGEST]}…"
    kinds = re.findall(r"Literal\[(.+?)\]|(tuple\[.+?\]|(?<=<class ')\w+)", match["type"] or match["types"])
    named = [f"one of {choices}" if choices else _KINDS.get(kind, kind) for choices, kind in kinds]
    return f"{match['key']} {value}: must be {' or '.join(named)}"


def _missing(line: str) -> str | None:
    match = re.search(r"arguments are required: (?:\w+\.)?(\w+)", line)
    return None if match is None else f"{match[1]} is missing; see {PROGRAM} --help"
