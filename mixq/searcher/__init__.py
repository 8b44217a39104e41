"""The search: a space, made concrete for a graph and a runtime; samplers; the study and its loop."""

from mixq.searcher.space import SearchSpace, load_space
from mixq.searcher.trial import Trial

__all__ = ["SearchSpace", "Trial", "load_space"]
