"""The search: a space, made concrete for a graph and a runtime; samplers; the study and its loop."""

from mixq.search.space import SearchSpace, load_space
from mixq.search.trial import Trial

__all__ = ["SearchSpace", "Trial", "load_space"]
