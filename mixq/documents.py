"""Text and JSON that a user brings; what no honest file holds is refused before anything reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mixq.errors import InputError, first_line

DEEPEST = 50  # levels of lists and mappings in each other
LARGEST = 2**63  # of whole numbers: none that is meant is larger, and text of a much larger one cannot be made


def parse_json(text: str, source: str) -> Any:
    """The value. Raises InputError, naming `source`, for what is not valid JSON, and as `check_values` does."""
    try:
        found = json.loads(text, object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{source} is not valid JSON (line {error.lineno}: {error.msg}); it may be truncated: write it again"
        ) from None
    except RecursionError:
        raise too_deep(source) from None
    except ValueError as error:
        raise InputError(f"{source} is not valid JSON ({first_line(error)}); write it again") from None
    check_values(found, source)
    return found


def check_values(value: Any, source: str) -> None:
    """Raises InputError for nesting too deep, whole numbers too large and text that no file can hold."""
    left = [(value, 0)]
    while left:
        part, depth = left.pop()
        if depth > DEEPEST:
            raise too_deep(source)
        if isinstance(part, dict):
            left += [(item, depth + 1) for pair in part.items() for item in pair]
        elif isinstance(part, list):
            left += [(item, depth + 1) for item in part]
        elif isinstance(part, int) and abs(part) > LARGEST:
            raise InputError(f"{source} holds a whole number of {part.bit_length()} bits; give one of at most 64")
        elif isinstance(part, str) and any("\ud800" <= character <= "\udfff" for character in part):
            raise InputError(f"{source} holds half a character (a lone surrogate) in {part[:40]!r}; write it anew")


def read_text(path: str | Path, what: str, example: str) -> str:
    """The text of a file of the user's. Raises InputError, with `example` as the remedy, where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{what} {path} is no text (UTF-8); {example}") from None
    except (OSError, ValueError) as error:  # ValueError: a path with NUL in it
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise InputError(f"cannot read {what} {path}: {reason}; {example}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON itself lets the last of two equal keys win, which no one means."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:40]!r} is given twice")
    return found


def too_deep(source: str) -> InputError:
    return InputError(f"{source} is nested more than {DEEPEST} levels deep; no file of mixq's is: write it again")
