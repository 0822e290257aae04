"""One molecule placed by FOX (ObjCryst++), for ``known_molecule.py --fox``: run by a Python that has pyobjcryst.

FOX gets what ours gets: cell, space group, amplitudes, one conformer with hydrogen; its rigid parts are rigid groups, torsions
are free. Parallel tempering (Favre-Nicolin & Cerny, 2002, J. Appl. Cryst. 35, 734), one run after the other until its processor
time is used up; the placement with the lowest cost is returned.

Usage: PYTHON benchmarks/fox.py JOB.json, to which the atoms found are added.
"""

import json
import sys
import time

import numpy as np
from pyobjcryst.crystal import Crystal
from pyobjcryst.diffractiondatasinglecrystal import DiffractionDataSingleCrystal
from pyobjcryst.globaloptim import MonteCarlo
from pyobjcryst.molecule import Molecule, RigidGroup
from pyobjcryst.scatteringpower import ScatteringPowerAtom

STEPS = 20_000  # of one run of parallel tempering


def main(path):
    with open(path) as file:
        job = json.load(file)
    a, b, c, *angles = job["cell"]
    crystal = Crystal(a, b, c, *np.radians(angles), job["spacegroup"])
    powers = {}
    for element in sorted(set(job["elements"])):
        powers[element] = ScatteringPowerAtom(element, element, job["b_iso"])
        crystal.AddScatteringPower(powers[element])
    molecule = Molecule(crystal, "molecule")
    for i, (element, xyz) in enumerate(zip(job["elements"], job["xyz"])):
        molecule.AddAtom(*xyz, powers[element], f"{element}{i}")
    atoms = [molecule.GetAtom(i) for i in range(len(job["elements"]))]
    xyz = np.array(job["xyz"])
    for i, j in job["bonds"]:
        molecule.AddBond(atoms[i], atoms[j], float(np.linalg.norm(xyz[i] - xyz[j])), 0.01, 0.02)
    for i, j, k in job["angles"]:
        u, v = xyz[i] - xyz[j], xyz[k] - xyz[j]
        angle = float(np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1)))
        molecule.AddBondAngle(atoms[i], atoms[j], atoms[k], angle, 0.01, 0.02)
    for rows in job["rigid"]:
        group = RigidGroup()
        for i in rows:
            group.add(atoms[i])
        molecule.AddRigidGroup(group)
    crystal.AddScatterer(molecule)
    data = DiffractionDataSingleCrystal(crystal)
    data.SetWavelength(0.71073)
    data.ImportHklIobsSigma(job["hkl"], job["n_hkl"])
    data.SetMaxSinThetaOvLambda(10)
    search = MonteCarlo()
    search.AddRefinableObj(data)
    search.AddRefinableObj(crystal)
    began, best, runs = time.process_time(), (np.inf, None, None), 0
    while (left := began + job["seconds"] - time.process_time()) > 0:
        search.RandomizeStartingConfig()
        search.RunParallelTempering(STEPS, 0.0, 3 * left)  # this limit is of the clock, and the machine may be shared
        runs += 1
        if search.GetLogLikelihood() < best[0]:
            found = crystal.GetScatteringComponentList()
            best = search.GetLogLikelihood(), [[one.X, one.Y, one.Z] for one in found], data.GetRw()
    job |= {"cost": best[0], "fract": best[1], "rw": best[2], "runs": runs, "cpu": time.process_time() - began}
    with open(path, "w") as file:
        json.dump(job, file)


if __name__ == "__main__":
    main(sys.argv[1])
