"""What the phasing room loads, and what it gives: each import in a process of its own."""

import subprocess
import sys

import pytest

from xrd_helpers import phasing

ENGINE = ("charge_flipping", "flipping_grid", "job")


def loaded_by(line):
    """Names of the modules of the package that a line of Python loads."""
    script = f"{line}\nimport sys\nprint(*(name for name in sys.modules if name.startswith('xrd_helpers')))"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_phasing_knows_no_network_and_no_generator():
    loaded = loaded_by("from xrd_helpers.phasing import *")
    rooms = {name.split(".")[1] for name in loaded if "." in name}
    assert "xrd_helpers.phasing.charge_flipping" in loaded
    assert not rooms & {"random_crystals", "models", "sources", "weights", "training", "inference", "evaluation", "plots"}


def test_importing_the_package_loads_none_of_its_rooms():
    assert loaded_by("import xrd_helpers.phasing") == {"xrd_helpers", "xrd_helpers.phasing"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["find_shelxt", "run_shelxt", "write_solution", "Solution", "PhasingError", "match_solution"])
def test_shelxt_and_the_writers_do_not_load_the_engine(name):
    loaded = loaded_by(f"from xrd_helpers.phasing import {name}")
    assert not loaded & {f"xrd_helpers.phasing.{room}" for room in ENGINE}


def test_every_name_of_the_room_can_be_imported():
    assert {"solve", "Settings", "Solution", "PhasingError", "solve_measured"} <= set(phasing.__all__) <= set(dir(phasing))
    for name in phasing.__all__:
        assert getattr(phasing, name).__module__.startswith("xrd_helpers.phasing.")
    with pytest.raises(AttributeError, match="no attribute 'solved_by_magic'"):
        phasing.solved_by_magic  # noqa: B018, the error is what it is for
