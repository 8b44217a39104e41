"""Large arrays from memory that the process has already, instead of fresh pages of the system for each."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)
DEFAULT_MMAP_MAX, DEFAULT_TRIM = 65536, 128 * 1024
NEVER = 2**31 - 1


@contextmanager
def reused() -> Iterator[None]:
    """Inside, freed memory is kept for the next array; afterwards it is given back.

    torch takes every tensor from malloc, and glibc takes what is large from the system and gives it back each time. In
    training the system then spends about as long on clearing pages as torch on computing. Nothing where there is no
    glibc.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        library.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM)
        library.malloc_trim(0)
