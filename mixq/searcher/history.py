"""History: the finished trials of a study, each read once, whoever evaluated it."""

from __future__ import annotations

from mixq.searcher.study import FINISHED, Frozen, Study, counted, trial_of
from mixq.searcher.trial import Trial


class History:
    """`trials` as of the last `update`, in the order in which they were seen to be finished."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self.trials: list[Trial] = []
        self._known: set[int] = set()

    def update(self, trials: Frozen | None = None) -> list[Trial]:
        """The trials that were finished since the last time. trials: all of the study, where they were just read."""
        known = self._study.get_trials(deepcopy=False, states=FINISHED) if trials is None else trials
        finished = (trial for trial in known if trial.state in FINISHED and trial.number not in self._known)
        new = [trial_of(trial) for trial in counted(finished)]
        self._known |= {trial.number for trial in new}
        self.trials += new
        return new
