"""Who imports whom: learning and phasing are neighbours that do not know each other."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("room, strangers", [
    ("training", "xrd_helpers.phasing"), ("phasing.charge_flipping", "xrd_helpers.random_crystals"),
    ("phasing.charge_flipping", "xrd_helpers.models"), ("wilson", "xrd_helpers.random_crystals"),
    ("metrics", "xrd_helpers.random_crystals")])
def test_a_room_does_not_import_its_neighbour(room, strangers):
    code = f"import sys, xrd_helpers.{room}; print([m for m in sys.modules if m.startswith({strangers!r})])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
