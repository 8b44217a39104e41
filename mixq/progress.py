"""Progress on the terminal: phases with a line each, the search as one bar with the best so far and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 15


class Progress:
    """Writes to stderr; `quiet` writes nothing but warnings. `events`: whom events are told to, warnings too."""

    def __init__(self, quiet: bool = False, events: Callable[[str, dict[str, Any]], None] | None = None) -> None:
        self._quiet = quiet
        self._events = events

    def event(self, name: str, values: dict[str, Any]) -> None:
        """For a program that reads along; nothing is shown."""
        if self._events is not None:
            self._events(name, values)

    def say(self, text: str) -> None:
        """One line, above a bar where there is one."""
        if not self._quiet:
            tqdm.write(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        tqdm.write(f"warning: {text}", file=sys.stderr)
        self.event("warning", {"message": text})

    def bar(self, total: int, description: str, done: int = 0, deadline: float | None = None) -> Bar:
        return Bar(total, description, done, deadline, self._quiet)


class Bar:
    """A bar over `total` steps; with a deadline (time.monotonic()) it also shows the time until then."""

    def __init__(self, total: int, description: str, done: int, deadline: float | None, quiet: bool) -> None:
        self._deadline = deadline
        self._live = sys.stderr.isatty()
        self._bar: Any = tqdm(
            total=total,
            initial=done,
            desc=description,
            file=sys.stderr,
            disable=quiet,
            dynamic_ncols=True,
            mininterval=0.1 if self._live else LOG_SECONDS,  # a log file wants a line now and then, not a film
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, note: str) -> None:
        """One step is done; `note` says what was reached."""
        self._bar.set_postfix_str(self._with_time_left(note), refresh=False)
        self._bar.update(1)

    def note(self, text: str) -> None:
        """What is being done within a step; only a terminal shows it."""
        if self._live:
            self._bar.set_postfix_str(self._with_time_left(text))

    def _with_time_left(self, text: str) -> str:
        if self._deadline is None:
            return text
        return f"{text}, at most {max(0, round(self._deadline - time.monotonic()))} s left"
