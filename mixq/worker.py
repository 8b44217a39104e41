"""Worker: evaluates configurations of a study that a search leads, in a process of its own, on any host.

It joins and leaves at any time. Whatever it found lies in the study when its next trial begins; killed, it costs the
trial in flight, which is tried again.

How results reach the search's folder: the search exports the best. It takes the very bytes that were measured, where
the worker shares a folder with it; else it makes them again from the configuration. Where they come out as others, as
those of a training elsewhere do, it measures these anew, and they are the best only if that says so.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mixq.array_store import ArrayStore
from mixq.contenders import CONTENDERS, Contenders
from mixq.crew import LEADER
from mixq.errors import MixqError
from mixq.evaluation import Candidate
from mixq.evaluator import Evaluator
from mixq.identity import CPU, check_cpu, identity_of, prepared_for
from mixq.launch import PREPARED, open_evaluator
from mixq.progress import Progress
from mixq.searcher.choices import Choices, make_choices
from mixq.searcher.guidance import sampler_of
from mixq.searcher.orders import Followed, Settings, await_study, load_budget, load_orders, load_settings
from mixq.searcher.run import is_queued, run
from mixq.searcher.space import SearchSpace, check_space
from mixq.searcher.stop import Ending, stop_on_signals
from mixq.searcher.storage import Turn, turn_at
from mixq.searcher.study import IDENTITY, Study, check_identity
from mixq.searcher.trial import Trial
from mixq.searcher.warmstart import ANALYZED
from mixq.task import Task

POLL = 0.2  # seconds


@dataclass
class Worker:
    """A study as its worker sees it. contenders: shared with the search, if any are; done: its finished trials."""

    study: Study
    evaluator: Evaluator
    choices: Choices
    space: SearchSpace
    turn: Turn
    contenders: Contenders | None
    progress: Progress
    done: list[Trial] = field(default_factory=list)

    def work(self, stop: Ending) -> None:
        """Until the study has all its trials, or its search ends, or a stop is requested.

        Raises MixqError where what only the search can do is missing, and nobody leads it.
        """
        followed = Followed(self.study, stop)
        while not followed.requested and not is_queued(self.study, ANALYZED):
            if not followed.is_led:
                raise MixqError(
                    f"the search that leads the study {self.study.study_name!r} is gone, and its layers are not "
                    "analyzed yet; give the same mixq search again, then join it"
                )
            self._run(followed, queued_only=True)
            time.sleep(POLL)
        if not followed.requested:
            graph, seed = self.evaluator.graph, load_settings(self.study).seed + len(self.study.trials) + os.getpid()
            self.study.sampler = sampler_of(self.study, self.choices, graph, self.space, seed)
            self._run(followed, queued_only=False)

    def _run(self, stop: Ending, *, queued_only: bool) -> None:
        run(
            *(self.study, self.evaluator, self.choices, self.space, load_budget(self.study)),
            stop,
            self._say,
            queued_only=queued_only,
            turn=self.turn,
            keep=None if self.contenders is None else partial(_keep, self.contenders),
        )

    def _say(self, trial: Trial) -> None:
        self.done.append(trial)
        self.progress.say(f"trial {trial.number}: {trial.state}{f' ({trial.reason})' if trial.reason else ''}")


def join(task: str | Task, study: Study, storage: str, folder: Path | None, progress: Progress) -> Worker:
    """A worker on a study, all of which is checked: what it is of, and this host.

    folder: by default that of the search, where this is its host. Raises InputError for what does not fit.
    """
    settings, study_name = load_settings(study), study.study_name
    check_cpu(study_name, study.user_attrs.get(IDENTITY, {}).get(CPU))
    turn = turn_at(storage, study_name)
    space = check_space(dict(settings.space), f"the space of the study {study_name!r}")
    confidence = space.constraints.confidence
    evaluator = open_evaluator(task, settings.runtime, settings.threads, progress, confidence)
    check_identity(study, identity_of(evaluator, space))
    choices = make_choices(space, evaluator.graph, evaluator.runtime, evaluator.fingerprint)
    shared = folder or _folder_here(study, settings)
    if shared is not None:
        evaluator.keep_in(ArrayStore(shared / PREPARED, prepared_for(evaluator)))
    contenders = None if shared is None else Contenders(shared / CONTENDERS)
    return Worker(study, evaluator, choices, space, turn, contenders, progress)


def _keep(contenders: Contenders, candidate: Candidate) -> str:
    return contenders.keep(candidate.config.id, candidate.model)


def _folder_here(study: Study, settings: Settings) -> Path | None:
    """The search's folder, where this is its host."""
    return Path(settings.folder) if load_orders(study).leader.is_local else None


@dataclass(frozen=True)
class LedBy:
    """What ends a worker that a search has started: what ends any, and the end of the search's process."""

    stop: Ending
    leader: int | None

    @property
    def requested(self) -> bool:
        return self.stop.requested or (self.leader is not None and os.getppid() != self.leader)


def work(
    task: str | Task, study_name: str, storage: str, folder: Path | None, progress: Progress, wait_s: float = 0.0
) -> int:
    """Join the study and work on it until it is done, or a signal comes; the number of trials that it finished.

    wait_s: seconds, at most, until a search leads the study.
    """
    leader = os.environ.get(LEADER)
    with stop_on_signals() as stop:
        study = await_study(storage, study_name, stop, wait_s)
        worker = join(task, study, storage, folder, progress)
        if leader:
            print("ready", flush=True)  # to Crew.is_ready
        worker.work(LedBy(stop, int(leader) if leader else None))
    return len(worker.done)
