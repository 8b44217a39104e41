"""Granularity of weights: one scale an output channel, or one a tensor, for hardware that has no other."""

from mixq.errors import InputError

CHANNEL, TENSOR = "channel", "tensor"


def check_granularity(name: str) -> None:
    """Raises InputError for one that is unknown."""
    if name not in (CHANNEL, TENSOR):
        raise InputError(f"granularity: {name!r} is unknown; known: {CHANNEL}, {TENSOR}")
