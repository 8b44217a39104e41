"""The command line: arguments in, one function of `mixq.api` called, its result printed. Wiring only."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from mixq.errors import InputError, MixqError, shown
from mixq.urls import STORAGE

FOUND, FAILED, BAD_INPUT, NOTHING_FEASIBLE = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Errors that a user can mend are one message, without a traceback."""
    warnings.showwarning = _show_warning
    parsed = _parser().parse_args(arguments)
    try:
        code = _run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads what is printed has gone (head, less): nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        return FAILED
    except InputError as error:
        print(f"mixq: {shown(str(error))}", file=sys.stderr)
        return BAD_INPUT
    except MixqError as error:
        print(f"mixq: {shown(str(error))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("mixq: interrupted; what was finished is on disk", file=sys.stderr)
        return FAILED
    return code


def _run(parsed: Any) -> int:
    run: Callable[[Any], int] = parsed.run
    return _together(lambda: run(parsed), parsed.task, parsed.runtime) if hasattr(parsed, "runtime") else run(parsed)


def _together(run: Callable[[], int], task: str, runtime: str) -> int:
    """What `run` returns; where torchrun started several processes, in the first of them."""
    if "WORLD_SIZE" not in os.environ:
        return run()
    from mixq.together import run_together, started_by_torchrun

    return run_together(run, task, runtime) if started_by_torchrun() else run()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What speaks to the user is shown as one line; libraries' deprecations are not for them."""
    if issubclass(category, UserWarning):
        print(f"warning: {shown(str(message))}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, as every other error is said."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"mixq: {shown(message)}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mixq", description="Mixed-precision quantization by search on real kernels.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_analyze(commands)
    _add_search(commands)
    _add_run(commands)
    _add_worker(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add(commands, "verify", _verify, "check an exported folder").add_argument("folder", type=Path)
    _add(commands, "show", _show, "print a configuration, or the result in a folder").add_argument("path", type=Path)
    _add_diff(commands)
    devices = _add(commands, "devices", _devices, "what each precision runs as on this CPU, and how fast")
    devices.add_argument("--threads", type=int, default=1)
    return parser


def _add(commands: Any, name: str, run: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="path/to/task.py:Class or package.module:Class")
    parser.add_argument("--runtime", default="openvino", help="openvino (default) or onnxruntime")
    parser.add_argument("--threads", type=int, default=1, help="threads that latency is measured with (default 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")


def _add_analyze(commands: Any) -> None:
    parser = _add(commands, "analyze", _analyze, "rank the layers by how much quantizing each alone hurts")
    _add_task(parser)
    parser.add_argument("--schemes", default="int8,bf16", help="comma-separated, e.g. int8,bf16 (default)")
    parser.add_argument("--rows", type=int, help="rows of the search split (default: all)")
    parser.add_argument("--out", help="folder for sensitivity.csv and sensitivity.png")


def _add_search(commands: Any) -> None:
    parser = _add(commands, "search", _search, "find the fastest mixed-precision model within a drop")
    _add_task(parser)
    parser.add_argument("--space", required=True, type=Path, help="a YAML file, e.g. search_spaces/cpu.yaml")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--max-drop", type=float, help="in the metric's own units; replaces the space's")
    parser.add_argument("--confidence", type=float, help="accept a drop only where its upper bound passes, e.g. 0.9")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument(
        "--timeout", type=float, help="seconds after which nothing new is begun; holdout, robustness and report follow"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--study", help="name of the study (default: the task's class)")
    parser.add_argument("--storage", help=f"Optuna storage URL (default: {STORAGE}, else a SQLite file in --out)")
    parser.add_argument("--tracking", help="MLflow tracking URI, or none (default: a SQLite file in --out)")
    parser.add_argument("--workers", type=int, default=1, help="processes on this host that evaluate (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON line an event, and nothing else")
    parser.add_argument("--sampler", help="guided, tpe or gp; replaces the space's")


def _add_run(commands: Any) -> None:
    parser = _add(commands, "run", _run_job, "a search whose options stand in a YAML file")
    parser.add_argument("job", metavar="JOB.yaml", help="see experiments/jobs/digits.yaml")
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    parser.add_argument("--json", action="store_true", help="print one JSON line an event, and nothing else")


def _add_worker(commands: Any) -> None:
    parser = _add(commands, "worker", _worker, "join a search that runs, from this host or another")
    parser.add_argument("task", metavar="TASK", help="the search's: path/to/task.py:Class or package.module:Class")
    parser.add_argument("--study", required=True, help="name of the study that mixq search leads")
    parser.add_argument("--storage", help=f"the search's Optuna storage URL (default: that in {STORAGE})")
    parser.add_argument("--out", help="the search's folder, where it can be reached from another host")
    parser.add_argument("--wait", type=float, default=0, help="seconds, at most, until a search leads it (default 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")


def _add_evaluate(commands: Any) -> None:
    parser = _add(commands, "evaluate", _evaluate, "measure one configuration")
    _add_task(parser)
    parser.add_argument("config", type=Path, metavar="CONFIG.json")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _add_export(commands: Any) -> None:
    parser = _add(commands, "export", _export, "lower, measure and write one configuration")
    _add_task(parser)
    parser.add_argument("config", type=Path, metavar="CONFIG.json")
    parser.add_argument("--out", required=True)


def _add_diff(commands: Any) -> None:
    parser = _add(commands, "diff", _diff, "what two configurations have differently")
    parser.add_argument("left", type=Path)
    parser.add_argument("right", type=Path)


def _analyze(arguments: Any) -> int:
    from mixq import show
    from mixq.api import analyze
    from mixq.config import LayerScheme

    schemes = [LayerScheme.parse(name.strip()) for name in arguments.schemes.split(",")]
    found = analyze(
        arguments.task,
        runtime=arguments.runtime,
        threads=arguments.threads,
        schemes=schemes,
        rows=arguments.rows,
        out=arguments.out,
        quiet=arguments.quiet,
    )
    print(show.sensitivity(found))
    return FOUND


def _search(arguments: Any) -> int:
    names = (
        "max_drop",
        "confidence",
        "trials",
        "timeout",
        "runtime",
        "threads",
        "seed",
        "study",
        "storage",
        "tracking",
        "workers",
    )
    options = {name: getattr(arguments, name) for name in (*names, "sampler", "quiet")}
    return _searched(
        arguments.json, {"task": arguments.task, "space": arguments.space, "out": arguments.out, **options}
    )


def _run_job(arguments: Any) -> int:
    from mixq.job_file import load_job

    job = load_job(arguments.job)
    options = {**job.options(), "quiet": arguments.quiet}
    return _together(lambda: _searched(arguments.json, options), job.task, job.runtime)


def _searched(as_json: bool, options: dict[str, Any]) -> int:
    from mixq import show
    from mixq.api import search

    options = {**options, "storage": _storage(options["storage"])}
    if as_json:
        return _told(options)
    result = search(**options)
    print(show.result(result.summary, result.folder))
    return FOUND if result.feasible else NOTHING_FEASIBLE


def _storage(given: str | None) -> str | None:
    """That of the environment where none is given."""
    return os.environ.get(STORAGE) or None if given is None else given


def _told(options: dict[str, Any]) -> int:
    """A search that tells a program what happens: one JSON line an event, the last one its end."""
    from mixq.api import search
    from mixq.events import events_on_stdout

    end: dict[str, Any] = {"exit_code": FAILED, "summary": None}
    with events_on_stdout() as events:
        shown_before = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            shown_before(message, category, *where, **more)
            if issubclass(category, UserWarning):
                events("warning", {"message": str(message)})

        warnings.showwarning = tell
        try:
            result = search(**options, events=events)
            code = FOUND if result.feasible else NOTHING_FEASIBLE
            end = {"exit_code": code, "summary": str(result.folder / "summary.json"), "feasible": result.feasible}
        except MixqError as error:
            end |= {"exit_code": BAD_INPUT if isinstance(error, InputError) else FAILED, "error": shown(str(error))}
            raise
        finally:
            warnings.showwarning = shown_before
            events("finished", end)
    return code


def _worker(arguments: Any) -> int:
    from mixq.api import work

    storage = _storage(arguments.storage)
    if storage is None:
        raise InputError(f"give --storage, the URL of the search's Optuna storage, or set {STORAGE} to it")
    options = {"out": arguments.out, "wait": arguments.wait, "quiet": arguments.quiet}
    done = work(arguments.task, arguments.study, storage, **options)
    print(f"finished {done} trials of {arguments.study}")
    return FOUND


def _evaluate(arguments: Any) -> int:
    from mixq import show
    from mixq.api import evaluate

    found = evaluate(
        arguments.task, arguments.config, runtime=arguments.runtime, threads=arguments.threads, quiet=arguments.quiet
    )
    print(show.evaluation_json(found) if arguments.json else show.evaluation(found))
    return FOUND


def _export(arguments: Any) -> int:
    from mixq.api import export

    folder = export(
        arguments.task,
        arguments.config,
        arguments.out,
        runtime=arguments.runtime,
        threads=arguments.threads,
        quiet=arguments.quiet,
    )
    print(f"exported to {folder}")
    return FOUND


def _verify(arguments: Any) -> int:
    from mixq.verifier import verify

    found = verify(arguments.folder)
    for check in found.checks:
        print(f"{'ok    ' if check.ok else 'BROKEN'} {check.name}: {check.detail}")
    return FOUND if found.ok else FAILED


def _show(arguments: Any) -> int:
    from mixq import show

    print(show.path(arguments.path))
    return FOUND


def _diff(arguments: Any) -> int:
    from mixq import show
    from mixq.config import MixedPrecisionConfig

    print(show.difference(MixedPrecisionConfig.load(arguments.left), MixedPrecisionConfig.load(arguments.right)))
    return FOUND


def _devices(arguments: Any) -> int:
    from mixq import show
    from mixq.devices import measure_devices

    print(show.devices(measure_devices(arguments.threads)))
    return FOUND


def _version() -> str:
    from importlib.metadata import version

    return f"mixq {version('mixq')}"


if __name__ == "__main__":
    sys.exit(main())
