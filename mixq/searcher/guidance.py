"""Guidance: a study's sampler, made of what the study knows of the layers."""

from __future__ import annotations

import numpy as np
from optuna.samplers import BaseSampler

from mixq.graph import Graph
from mixq.searcher.choices import Choices
from mixq.searcher.guided import Guide
from mixq.searcher.samplers import TOLD, get_sampler
from mixq.searcher.space import SearchSpace
from mixq.searcher.study import Study, load_profiles, load_sensitivity, seen_configs
from mixq.searcher.warmstart import Start

PLANNED = "planned"  # the origin of starts that are the planner's


def guide_of(study: Study, choices: Choices, graph: Graph, space: SearchSpace) -> Guide:
    """Raises ValueError where the layers were not analyzed yet."""
    sensitivity = load_sensitivity(study)
    if sensitivity is None:
        raise ValueError("the layers were not analyzed yet")
    return Guide(choices, graph, sensitivity, space.objectives[0], load_profiles(study))


def sampler_of(study: Study, choices: Choices, graph: Graph, space: SearchSpace, seed: int) -> BaseSampler:
    """The space's. Raises ValueError where the layers were not analyzed yet."""
    return get_sampler(space.sampler, choices, guide_of(study, choices, graph, space), seed)


def planned_starts(study: Study, choices: Choices, guide: Guide, seed: int) -> list[Start]:
    """The planner's first proposals, by the trials of the study; none that was tried."""
    trials = study.get_trials(deepcopy=False)
    seen = seen_configs(trials)
    found = guide.planner.first([trial for trial in trials if trial.state in TOLD], np.random.default_rng(seed))
    return [(PLANNED, params) for params in found if choices.config(params).id not in seen]
