"""What all sub-commands share: exit codes, how they are added, their common options, and what they say."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OK, FAILED, INTERRUPTED = 0, 1, 130


def add(commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """A sub-command of `commands`, argparse's object of that kind: its parser. `command` returns its exit code."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def group(commands: Any, name: str, text: str, metavar: str = "COMMAND") -> Any:
    """A sub-command that has sub-commands: argparse's object to which they are added."""
    return commands.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar=metavar)


def config_options(parser: argparse.ArgumentParser) -> None:
    """`config` and `--set`."""
    parser.add_argument("config", type=Path, help="TOML file, see deploy/configs/")
    set_option(parser, "override one setting")


def set_option(parser: argparse.ArgumentParser, text: str, metavar: str = "A.B=VALUE") -> None:
    """`--set`, as often as one likes."""
    parser.add_argument("--set", action="append", default=[], metavar=metavar, help=text)


def address_option(parser: argparse.ArgumentParser) -> None:
    """`--address`, None if left out."""
    parser.add_argument("--address", help="the cluster's dashboard, http://HOST:8265; else RAY_ADDRESS")


def backend_option(parser: argparse.ArgumentParser) -> None:
    """`--backend`."""
    text = "which sandboxes; auto: docker's, else bubblewrap's"
    parser.add_argument("--backend", choices=("auto", "bubblewrap", "docker", "gvisor"), default="auto", help=text)


def json_option(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print the result for programs, and all else to stderr")


def count(text: str) -> int:
    """Of an option: one at least."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def amount(text: str) -> float:
    """Of an option: a finite number, and not a negative one."""
    if not 0 <= (number := float(text)) < math.inf:
        raise ValueError
    return number


count.__name__, amount.__name__ = "positive whole number", "number from 0 on"  # argparse says "invalid ... value"


def say(text: str) -> None:
    """A line on standard output, now; if nobody can hear it any more, no other will be said."""
    try:
        print(text, flush=True)
    except OSError:  # who listened has gone, or the disk of the log is full: no run ends for that
        unheard()


def say_aside(text: str) -> None:
    """A line on standard error, now."""
    print(text, file=sys.stderr, flush=True)


def unheard() -> None:
    """What is still said on standard output goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
