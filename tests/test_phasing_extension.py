"""What is handed to the engine where no formula is known."""

import numpy as np

from test_phasing_charge_flipping import random_crystal
from xrd_helpers.phasing import extension
from xrd_helpers.reflections import Reflections, unique_hkl


def test_a_list_of_kinds_is_filled_up_with_carbon(monkeypatch):
    asked = []
    monkeypatch.setattr(extension.charge_flipping, "solve", lambda reflections, elements, **_: asked.append(elements))
    crystal = random_crystal("P 1 21/c 1")  # 521 Å³ in four parts: 7 atoms of 18 Å³
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, 1.5)
    measured = Reflections.of_good_data(hkl, np.ones(len(hkl)), crystal.cell, crystal.spacegroup)
    for elements in (["C", "H", "O"], {}, ["S", *"OONCCC", "H"]):
        extension.phase(measured, elements)
    assert asked == [{"O": 1, "C": 6}, {"C": 7}, {"S": 1, "O": 2, "N": 1, "C": 3, "H": 1}]
