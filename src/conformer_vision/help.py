"""The layout of `--help`: few options, no Python types, no broken words."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable
from typing import Any, NoReturn, get_args, get_origin

from jsonargparse import DefaultHelpFormatter

from conformer_vision.errors import UserError

_KINDS: dict[Any, str] = {
    int: "N",
    float: "X",
    tuple[int, int]: "[H,W]",
    tuple[float, float]: "[X,X]",
}
"""The placeholder for a value of each type."""
_NESTED_FILE = "Path to a configuration file."
_PARENT_OPTIONS = " [options]"
"""argparse puts it between the program and its subcommand."""


class HelpFormatter(DefaultHelpFormatter):
    """Shows a short placeholder for an option's value, and its default if that says something."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30} | options)  # type: ignore[no-untyped-call]

    def _format_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: str | None
    ) -> str:
        words = [self._prog.replace(_PARENT_OPTIONS, "")]
        for action in actions:
            if isinstance(action, argparse._SubParsersAction):
                words.append("COMMAND")
            elif action.required or not action.option_strings:
                name = action.metavar or action.dest.upper()
                words.append(
                    " ".join([*action.option_strings[:1], str(name), *["..."] * (action.nargs == "+")])
                )
        if prefix is None:
            return f"usage: {' '.join(words)} [options]\n\n"
        return " ".join(words)  # the name of a subcommand

    def _get_help_string(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._HelpAction):
            return "Show this help."
        if isinstance(action, argparse._VersionAction):
            return "Show the version."
        text = (action.help or "").replace("`", "").replace("%", "%%")
        if not action.option_strings:
            return text
        if action.required:
            return f"{text} (required)"
        if action.default is None or action.default is False or action.default in (argparse.SUPPRESS, [], {}):
            return text
        default = str(action.default).lower() if isinstance(action.default, bool) else action.default
        return f"{text} (default: {default})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        hint = getattr(action, "_typehint", None) or action.type
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
        kinds = [kind for kind in kinds if get_origin(kind) is not list]  # its items are there alone too
        words = [_KINDS.get(kind) or "|".join(map(str, get_args(kind))) for kind in kinds]
        return "|".join(words) if all(words) else str(super()._get_default_metavar_for_optional(action))

    def _format_action(self, action: argparse.Action) -> str:
        if action.help == _NESTED_FILE:
            return ""  # jsonargparse would read a group of options from a file; recipes do that
        if action.metavar in ("{true,false}", "{true,false,null}"):
            action.metavar = "[true|false]"  # which may stand alone
        if action.dest == "print_config":
            action.help = "Print the configuration and exit."
        return str(super()._format_action(action))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)


class BriefHelp(argparse.Action):
    """``--help`` shows the most used options, ``--help all`` every one."""

    def __init__(self, *, most_used: Iterable[str], **options: Any) -> None:
        super().__init__(**options, nargs="?", const="", default=argparse.SUPPRESS, metavar="all")
        self.most_used = frozenset(most_used)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> NoReturn:
        """Print the help and exit."""
        if values not in ("", "all"):
            raise UserError(f"--help {values}: give --help, or --help all")
        if values == "":
            hidden = [a for a in parser._actions if a.option_strings and a.dest not in self.most_used]
            for action in hidden:
                action.help = argparse.SUPPRESS
            program = parser.prog.replace(_PARENT_OPTIONS, "")
            parser.epilog = f"'{program} --help all' shows all options."
        parser.print_help()
        parser.exit()
