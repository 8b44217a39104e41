"""The errors that mixq raises on purpose; each says what is wrong, by which rule, and what to do."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_NOT_THE_USERS = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), str(Path(__file__).parent))


MOST_LINES, LONGEST_LINE = 3, 1000  # of a message; characters


class MixqError(Exception):
    """Something that mixq cannot carry out; exit code 1 on the command line."""


class InputError(MixqError):
    """What the user brought (task, model, data, space, configuration, folder) cannot be used; exit code 2."""


def first_line(error: BaseException) -> str:
    """What it says, cut to one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(message: str) -> str:
    """The message as a terminal may get it: a few lines of bounded length, without what would control the terminal."""
    lines = [
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
        for line in message.split("\n")[:MOST_LINES]
    ]
    half = LONGEST_LINE // 2  # the start says what is wrong, the end what to do
    return "\n".join(line if len(line) <= LONGEST_LINE else f"{line[:half]} … {line[-half:]}" for line in lines)


def raised(what: str, error: BaseException) -> InputError:
    """The error that code of the user's, `what`, raised, and the line of theirs that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith(("<", *_NOT_THE_USERS))]
    where = f" ({Path(theirs[-1].filename).name} line {theirs[-1].lineno})" if theirs else ""
    return InputError(f"{what} raised {type(error).__name__}: {first_line(error)}{where}")
