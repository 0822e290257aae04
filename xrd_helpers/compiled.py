"""Loops compiled by numba, kept on disk where that is possible."""

import numba


def compiled(function):
    """``numba.njit`` with fast arithmetic. Its result is kept beside the module or in the user's cache folder; where neither
    can be written to, it is compiled anew in each process."""
    try:
        return numba.njit(cache=True, fastmath=True, nogil=True)(function)
    except RuntimeError:  # numba finds no folder for its cache
        return numba.njit(fastmath=True, nogil=True)(function)
