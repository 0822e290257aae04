"""From amplitudes to atoms: charge flipping, refinement, how far to trust them, SHELXT, and the files that are written.

    from xrd_helpers.phasing import solve
    solution = solve(reflections, {"C": 8, "H": 9, "N": 1, "O": 2})

What is named here is loaded when it is asked for: SHELXT and the writers need no engine, and the command line starts fast.
"""

from importlib import import_module

_ROOMS = {
    "building": ("build",),
    "charge_flipping": ("begin", "solve"),
    "flipping_grid": ("Settings",),
    "job": ("Solved", "in_group", "phase", "solve_measured", "solve_with_shelxt"),
    "origin": ("hands", "match_atoms", "match_solution", "phase_error", "solved"),
    "output": ("describe_data", "write_solution"),
    "shelxt": ("find_shelxt", "run_shelxt"),
    "solution": ("PhasingError", "Solution"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_ROOM_OF)


def __getattr__(name):
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
