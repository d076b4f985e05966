"""The commands: each wires what the floors below it offer.

affect <command> [flags], or the script of the name that users know (train.py, tools/extract_features.py, …).
Nothing is imported before it is known which command is wanted.
"""

from __future__ import annotations

import os
import sys
from argparse import Action, ArgumentParser, Namespace
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

COMMANDS = {
    "extract": "raw clips to AU JSON, AU sentences and features",
    "verify": "check that AU JSON, sentences, features and their origin agree",
    "train": "train a model as a YAML file says",
    "answer": "answer for a data set, one clip, or pictures of faces",
    "evaluate": "scores of answers and of expression networks",
    "pack": "many small feature files into one, and back",
    "export": "an expression network as ONNX, or a checkpoint as the AffectGPT systems read it, and back",
    "doctor": "what is installed, found and missing on this machine, and what to do about it",
}
"""Command -> what it does; the module of the same name here has its `main(arguments) -> exit code`."""

INTERRUPTED = 130
"""What a command that left on Ctrl-C returns, as shells report it."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run `affect <command> …` and end the process with its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: affect <command> [flags]; affect <command> --help tells its flags\n")
        print("\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()))
        sys.exit(0)
    if arguments[0] not in COMMANDS:
        near = get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
        sys.exit(f"error: unknown command {arguments[0]!r}; {hint}")
    sys.argv[0] = f"affect {arguments[0]}"
    door(arguments[0], arguments[1:])


class _Offline(Action):
    """Takes effect as soon as it is read: before any library is imported that reads the variable."""

    def __call__(self, parser: ArgumentParser, args: Namespace, values: Any, option: str | None = None) -> None:
        from affect.core.weights import go_offline

        go_offline()


def add_offline(parser: ArgumentParser) -> None:
    """Declare --offline, which every command has that may ask a model hub."""
    what = "ask no model hub; weights come from folders and its cache, as with HF_HUB_OFFLINE=1"
    parser.add_argument("--offline", action=_Offline, nargs=0, help=what)


def told(error: Exception) -> str:
    """Return what a command says of an error; of a full disk it says what to do."""
    from affect.core.files import FULL

    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or "a file"
        return f"{where}: cannot be written ({error.strerror}); make room and give the same command again"
    return str(error)


def door(command: str, arguments: list[str] | None = None) -> NoReturn:
    """Run one command and end the process: what users can mend is one line, anything else a traceback."""
    if not sys.stderr.isatty():  # bars of loading weights fill log files
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        sys.exit(import_module(f"affect.cli.{command}").main(arguments))
    except (ValueError, OSError, RuntimeError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {told(error)}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
