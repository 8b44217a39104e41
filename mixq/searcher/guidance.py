"""Guidance: a study's sampler, made of what the study knows of the layers."""

from __future__ import annotations

from optuna.samplers import BaseSampler

from mixq.graph import Graph
from mixq.searcher.choices import Choices
from mixq.searcher.guided import Guide
from mixq.searcher.samplers import get_sampler
from mixq.searcher.space import SearchSpace
from mixq.searcher.study import Study, load_profiles, load_sensitivity


def sampler_of(study: Study, choices: Choices, graph: Graph, space: SearchSpace, seed: int) -> BaseSampler:
    """The space's. Raises ValueError where the layers were not analyzed yet."""
    sensitivity = load_sensitivity(study)
    if sensitivity is None:
        raise ValueError("the layers were not analyzed yet")
    guide = Guide(choices, graph, sensitivity, space.objectives[0], load_profiles(study))
    return get_sampler(space.sampler, choices, guide, seed)
