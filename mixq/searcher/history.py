"""History: the finished trials of a study, each read once, whoever evaluated it."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from mixq.searcher.study import FINISHED, Frozen, Study, counted, trial_of
from mixq.searcher.trial import Trial


class History:
    """`trials` as of the last `update`, in the order in which they were seen to be finished."""

    def __init__(self, study: Study, beside: History | None = None) -> None:
        """beside: another one of this study in the same process, which holds the same trials."""
        self._study = study
        self._read: dict[int, Trial] = {} if beside is None else beside._read
        self.trials: list[Trial] = []
        self._known: set[int] = set()

    def update(self, trials: Frozen | None = None) -> list[Trial]:
        """The trials that were finished since the last time. trials: all of the study, where they were just read."""
        known = self._study.get_trials(deepcopy=False, states=FINISHED) if trials is None else trials
        finished = (trial for trial in known if trial.state in FINISHED and trial.number not in self._known)
        new = [self._trial(trial) for trial in counted(finished)]
        self._known |= {trial.number for trial in new}
        self.trials += new
        return new

    def _trial(self, frozen: FrozenTrial) -> Trial:
        if frozen.number not in self._read:
            self._read[frozen.number] = trial_of(frozen)
        return self._read[frozen.number]
