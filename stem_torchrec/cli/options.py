"""What the commands' options have in common: parsers, their help on keys, kinds of values."""

import argparse
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeVar

from pydantic import BaseModel

from stem_torchrec.config import Config
from stem_torchrec.config.days import parse_day
from stem_torchrec.config.keys import all_keys
from stem_torchrec.errors import UserError, without_passwords
from stem_torchrec.storage.place import Place, local_path, place_of

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"
T = TypeVar("T")


class CommandParser(argparse.ArgumentParser):
    """A parser whose epilog is made when the help is printed, and that repeats no password.

    The keys of models and balancing rules stand beside their code, and to import that takes
    seconds, which no other command should wait for.
    """

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        if self.more is not None:
            self.epilog = self.more()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """As argparse does, which echoes what it does not understand."""
        super().error(without_passwords(message))


def add_command(
    commands: Commands, name: str, text: str, more: str | Callable[[], str]
) -> argparse.ArgumentParser:
    """A command; ``text`` says what it does, ``more`` stands below its options as it is."""
    command = commands.add_parser(
        name,
        help=text,
        description=text,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    command.more = more if callable(more) else lambda: more
    command.set_defaults(parser=command)
    return command


def add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML file with keys of a run"
    )


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Says of every option what holds where it is not given; texts stand as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if not action.option_strings or action.default is argparse.SUPPRESS or "(default" in text:
            return text
        if action.required:
            return f"{text} (required)"
        if action.nargs == 0:
            return f"{text} (default: off)"
        default = "none" if action.default in (None, []) else action.default
        return f"{text} (default: {default})"


def own_options(options: argparse.Namespace) -> list[str]:
    """The command's own options, ``--nproc`` and the like; a mistyped key may have meant one."""
    parser: argparse.ArgumentParser = options.parser
    return [name for name in parser._option_string_actions if name.startswith("--")]


def config_keys() -> str:
    """Help on every key of a run."""
    note = "; of a key or option that is given twice the last value counts"
    return _help("config keys", f"--section.key value{note}", Config)


def option_keys(model: type[BaseModel]) -> str:
    """Help on the options of a command that have a pydantic model."""
    return _help("options", "--key value", model)


def _help(title: str, form: str, model: type[BaseModel]) -> str:
    lines = [f"{title} ({form}):"]
    for key in all_keys(model):
        required = key.default == "required"
        default = "required" if required else f"default: {key.default_text}"
        lines.append(f"  --{key.name} ({default})")
        lines.append(f"      {key.description}; {key.allowed}")
    return "\n".join(lines)


def place(text: str) -> Place:
    return _of(text, place_of)


def local_place(text: str) -> Path:
    return _of(text, local_path)


def _of(text: str, read: Callable[[str], T]) -> T:
    try:
        return read(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_run(command: argparse.ArgumentParser) -> None:
    """``--run`` and ``--checkpoint``: which weights are read."""
    command.add_argument(
        "--run",
        type=place,
        required=True,
        metavar="DIR",
        dest="run_dir",
        help="run folder or its URL",
    )
    command.add_argument(
        "--checkpoint",
        type=checkpoint_choice,
        default="last",
        metavar="last|best|STEP",
        help="which of the run's checkpoints",
    )


def checkpoint_choice(text: str) -> str | int:
    """``last``, ``best`` or a step."""
    if text in ("last", "best"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not last, best or a step")
    return int(text)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None


def day(text: str) -> date:
    found = parse_day(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day such as 2022-04-08")
    return found


def positive(text: str) -> int:
    value = _integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def at_least_zero(text: str) -> int:
    value = _integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value
