"""Loops compiled by numba, kept on disk where that is possible."""

from functools import partial

import numba


def compiled(function=None, *, fastmath=True, **options):
    """``numba.njit`` with fast arithmetic, or with other options. What it compiles is kept beside the module or in the user's
    cache folder; where neither can be written to, it is compiled anew in each process."""
    if function is None:
        return partial(compiled, fastmath=fastmath, **options)
    options |= {"fastmath": fastmath, "nogil": True}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba finds no folder for its cache
        return numba.njit(**options)(function)
