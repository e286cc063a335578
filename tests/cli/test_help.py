"""What the command line says of itself."""

import argparse
from collections.abc import Iterator

import pytest

from stem_torchrec.cli import _parser, main
from stem_torchrec.cli.options import config_keys
from stem_torchrec.config.keys import all_keys


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every command's parser, those of ``prepare`` and ``analyze`` too."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from commands(part)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    words = capsys.readouterr().out.split()
    assert words[0] == "stem-torchrec"
    assert words[1][0].isdigit()
    assert {"(torch", "torchrec"} <= set(words)


def test_every_option_says_what_it_is_and_what_holds_without_it() -> None:
    seen = 0
    for parser in commands(_parser()):
        text = " ".join(parser.format_help().split())
        for action in parser._actions:
            if not action.option_strings or action.default is argparse.SUPPRESS:
                continue
            seen += 1
            assert action.help, (parser.prog, action.option_strings)
            words = " ".join(parser._get_formatter()._expand_help(action).split())
            assert "(required)" in words or "(default" in words, (parser.prog, words)
            assert words in text, (parser.prog, words)
    assert seen > 40


def test_every_key_has_its_default() -> None:
    lines = config_keys().splitlines()
    for key in all_keys():
        (line,) = (line for line in lines if line.startswith(f"  --{key.name} "))
        assert line.endswith("(required)") or "(default: " in line
