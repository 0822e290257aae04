"""Known molecules placed in their cells: how many crystals are solved at 1.5 to 3.0 Å, and in what time.

Amplitudes are calculated from the published atoms, hydrogen and anisotropy included; what is known is the molecules (rows
*smiles*: the bonds of the published structure as a SMILES, conformers by RDKit alone; rows *geometry*, where RDKit reads no
molecule from it, metal complexes mostly: published distances and angles with every torsion at random), the cell and the space
group. How many molecules there are in the cell is found from its volume. Set *one*: a single molecule in a general
position; *several*: all others. Solved: 80 % of the non-H atoms within 0.5 Å, at the best allowed origin and hand.
*measured*: measured intensities cut at d_min.

A row is written as soon as it is there, and none is done twice: a run goes on where the last one stopped. With --table
nothing is run.

Usage: python benchmarks/known_molecule.py --crystals FOLDER [--measured FOLDER] [--part tune|report|all]
       [--set one|several|all] [--d 1.5 2.0 2.5 3.0] [--minutes 1] [--noise 0.1] [--n 0] [--out FOLDER] [--table]
It writes known_molecule.csv (a row a crystal and resolution) and known_molecule.json (the table) into --out.
"""

import argparse
import os
import time
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import lcm
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pandas as pd
from rdkit import Chem, RDLogger
from rdkit.Chem import rdDetermineBonds
from tqdm import tqdm

from xrd_helpers.bonds import SLACK, covalent_radii, whole_molecules
from xrd_helpers.cif import read_cif
from xrd_helpers.cif_folders import read_cif_folders
from xrd_helpers.config import UserError, run_folder, write_json
from xrd_helpers.known_molecule import from_geometry, read_molecules, scrambled
from xrd_helpers.phasing.origin import match_atoms
from xrd_helpers.phasing.placing import place
from xrd_helpers.reflection_files import read_measured
from xrd_helpers.reflections import Reflections, unique_hkl
from xrd_helpers.structure_factors import structure_factors
from xrd_helpers.summary import git_state, machine

RDLogger.DisableLog("rdApp.*")

IONS = {"O": "O", "N": "[NH4+]", "F": "[F-]", "Cl": "[Cl-]", "Br": "[Br-]", "I": "[I-]", "Li": "[Li+]", "Na": "[Na+]",
        "K": "[K+]", "Rb": "[Rb+]", "Cs": "[Cs+]"}
CONFORMERS = 24  # with random torsions, of a geometry


def perceive(crystal):
    """(kind, [(what, amount in the asymmetric unit)]): kind "smiles" or "geometry", what a SMILES or KnownMolecule."""
    molecules = [m for m in whole_molecules(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup)
                 if crystal.heavy[m.atom].any()]
    amounts = [Fraction(float(crystal.occ[m.atom[m.own]].sum()) / len(m.atom)).limit_denominator(12) for m in molecules]
    choices = [list(smiles_of([crystal.elements[i] for i in m.atom], m.xyz, m.bonds)) for m in molecules]
    if all(choices):
        picked = [c[0] for c in choices]
        for i, options in enumerate(choices):  # another charge of one molecule, where those of all do not add up
            if sum(q * a for (_, q), a in zip(picked, amounts)) == 0:
                break
            picked[i] = next((o for o in options if not sum(
                q * a for (_, q), a in zip(picked[:i] + [o] + picked[i + 1:], amounts))), picked[i])
        if sum(q * a for (_, q), a in zip(picked, amounts)) == 0:
            return "smiles", _counted([s for s, _ in picked], amounts)
    made = [from_geometry([crystal.elements[i] for i in m.atom], m.xyz, crystal.name) for m in molecules]
    keys = [f"{m.formula} {len(m.bonds)}" for m in made]
    by_key = dict(reversed(list(zip(keys, made))))
    return "geometry", [(scrambled(by_key[key], CONFORMERS), amount) for key, amount in _counted(keys, amounts)]


def _counted(names, amounts):
    return [(name, sum(a for other, a in zip(names, amounts) if other == name)) for name in dict.fromkeys(names)]


def smiles_of(elements, xyz, bonds):
    """(SMILES, charge) that the atoms may be, the least charged first."""
    elements = ["H" if e == "D" else e for e in elements]
    if len(elements) == 1:
        if elements[0] in IONS:
            charge = Chem.GetFormalCharge(Chem.MolFromSmiles(IONS[elements[0]]))
            yield (IONS[elements[0]], charge)
        return
    mol = Chem.RWMol(Chem.MolFromXYZBlock(f"{len(elements)}\n\n" + "\n".join(
        f"{e} {x:.4f} {y:.4f} {z:.4f}" for e, (x, y, z) in zip(elements, xyz))))
    for a, b in bonds.tolist():
        mol.AddBond(a, b, Chem.BondType.SINGLE)
    for charge in (0, 1, -1, 2, -2):
        try:
            made = Chem.Mol(mol.GetMol())
            rdDetermineBonds.DetermineBondOrders(made, charge=charge, maxIterations=2000)
            Chem.SanitizeMol(made)
            Chem.AssignStereochemistryFrom3D(made)
        except (ValueError, RuntimeError):
            continue
        if sensible(made):
            yield Chem.MolToSmiles(Chem.RemoveHs(made)), charge


def sensible(mol):
    """Whether a chemist would draw it: no radicals, and charges on N+, P+, O-, S-, N- and B- alone."""
    pattern = Chem.MolFromSmarts("[N,n;+](~[O-])~[O-]")
    usual = {("N", 1), ("P", 1), ("O", -1), ("S", -1), ("N", -1), ("B", -1), ("C", -1)}
    charged = [(a.GetSymbol(), a.GetFormalCharge()) for a in mol.GetAtoms() if a.GetFormalCharge()]
    carbanions = sum(symbol == "C" for symbol, _ in charged)
    nitro = mol.GetSubstructMatches(pattern)
    return (not any(a.GetNumRadicalElectrons() for a in mol.GetAtoms()) and set(charged) <= usual and carbanions < 2
            and not nitro and len(charged) <= 6)


def formula_unit(amounts):
    """Counts of each molecule from their amounts in the asymmetric unit."""
    least = min(amounts)
    ratio = [a / least for a in amounts]
    common = lcm(*(r.denominator for r in ratio))
    return [int(r * common) for r in ratio]


def known(crystal):
    kind, found = perceive(crystal)
    counts = formula_unit([amount for _, amount in found])
    if kind == "smiles":
        pairs = [(read_molecules(what)[0][0], n) for (what, _), n in zip(found, counts)]
    else:
        pairs = [(what, n) for (what, _), n in zip(found, counts) if len(what)]
    return kind, [m for m, _ in pairs], [n for _, n in pairs]


def calculated(crystal, d_min, noise=0.0):
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, d_min)
    F = np.abs(structure_factors(crystal, hkl))
    if not noise:
        return Reflections.of_good_data(hkl, F, crystal.cell, crystal.spacegroup)
    noisy = np.abs(F * (1 + noise * np.random.default_rng(len(hkl)).normal(size=len(hkl))))
    return Reflections(hkl, noisy, noise * noisy + 0.01 * F.mean(), crystal.cell, crystal.spacegroup)


def measured_sets(folder):
    """(crystal, Reflections) of the data sets in a folder with SOURCES.csv."""
    for row in pd.read_csv(Path(folder) / "SOURCES.csv").itertuples():
        model = Path(folder) / row.model
        about = model if row.model != row.file else None
        yield replace(read_cif(model), name=str(row.id)), read_measured(Path(folder) / row.file, about).merge()


def placed(crystal, reflections, minutes, seed):
    """A row of the table."""
    began, began_cpu = time.perf_counter(), time.process_time()
    row = {"crystal": crystal.name, "spacegroup": crystal.spacegroup.xhm(), "light": crystal.light, "n_hkl": len(reflections)}
    try:
        kind, molecules, counts = known(crystal)
        row |= {"known": kind, "molecules": ".".join(f"{n}*{m.formula}" for m, n in zip(molecules, counts)),
                "atoms": sum(n * len(m) for m, n in zip(molecules, counts)),
                "torsions": max(len(m.torsions) for m in molecules), "seconds_molecules": time.perf_counter() - began}
        solution = place(reflections, molecules, counts, minutes=minutes, seed=seed)
    except UserError as error:
        return row | {"solved": False, "seconds": time.perf_counter() - began, "error": str(error)}
    row |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    heavy = np.array(solution.elements) != "H"
    match = match_atoms(solution.fract[heavy], crystal.fract[crystal.heavy], crystal.cell, crystal.spacegroup)
    e = solution.evidence
    return row | {"solved": match.n_matched >= 0.8 * match.n_true, "matched": match.n_matched, "true": match.n_true,
                  "rms": match.rms, "r1": e.r1, "r_free": e.r_free, "found": e.found, "tried": e.tried, "next_r1": e.next_r1,
                  "strain": e.strain, "contact": e.contact, "verdict": solution.verdict, "error": ""}


def all_end(crystal):
    """Whether all is molecules: False for a chain, layer or framework, where an atom is bonded to an image in another cell."""
    orth = np.array(crystal.cell.orth.mat.tolist())
    for molecule in whole_molecules(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup):
        elements = [crystal.elements[i] for i in molecule.atom]
        radius, hydrogen = covalent_radii(elements), np.isin(elements, ["H", "D"])
        longest = np.where(np.outer(hydrogen, hydrogen), 0, radius[:, None] + radius + SLACK)
        step = (molecule.xyz[:, None] - molecule.xyz) @ np.linalg.inv(orth).T
        if any((np.linalg.norm((step + shift) @ orth.T, axis=-1) < longest).any()
               for shift in product((-1, 0, 1), repeat=3) if any(shift)):
            return False
    return True


def kind_of(crystal):
    """"one" for a single molecule in a general position, "several" for everything else."""
    molecules = whole_molecules(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup)
    return "one" if len(molecules) == 1 and molecules[0].own.all() and (crystal.occ > 0.99).all() else "several"


def jobs(args):
    """(set, part, name, d_min, crystal, function that gives its Reflections) in an order drawn with a fixed seed."""
    if args.crystals:
        part = dict(pd.read_csv(Path(args.crystals) / "SPLIT.csv").values)
        crystals, _ = read_cif_folders([args.crystals])
        crystals = [c for c in crystals if all_end(c) and args.part in ("all", part.get(c.name + ".cif"))
                    and args.set in ("all", kind_of(c))]
        order = np.random.default_rng(0).permutation(len(crystals))[:args.n or None]
        for d_min in args.d:
            for i in order:
                c = crystals[i]
                yield kind_of(c), part[c.name + ".cif"], d_min, c, lambda c=c, d=d_min: calculated(c, d, args.noise)
    if args.measured:
        for crystal, reflections in measured_sets(args.measured):
            for d_min in args.d:
                yield ("measured", "report", d_min, crystal,
                       lambda r=reflections, d=d_min: r.select(r.d >= d))


def table(rows):
    """Solved and median seconds by part, set, known, light and d_min."""
    groups = rows.groupby(["part", "set", "known", "light", "d_min", "noise"])
    made = groups.agg(crystals=("solved", "size"), solved=("solved", "sum"), seconds=("seconds", "median"),
                      cpu_seconds=("cpu_seconds", "median"), slowest=("seconds", "max"), rms=("rms", "median")).reset_index()
    made["share"] = made.solved / made.crystals
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystals", default="")
    parser.add_argument("--measured", default="")
    parser.add_argument("--part", default="tune", choices=["tune", "report", "all"])
    parser.add_argument("--set", default="all", choices=["one", "several", "all"])
    parser.add_argument("--d", type=float, nargs="+", default=[1.5, 2.0, 2.5, 3.0])
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of F, as a share of it")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--n", type=int, default=0, help="crystals at most; 0 for all")
    parser.add_argument("--most-atoms", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    out = Path(args.out) if args.out else run_folder("benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    path = out / "known_molecule.csv"
    rows = pd.read_csv(path, dtype={"crystal": str}) if path.exists() else pd.DataFrame()
    rows = rows.assign(noise=rows.get("noise", pd.Series(0.0, rows.index)).fillna(0.0)).to_dict("records") if len(rows) else []
    done = {(str(r["crystal"]), r["d_min"], r["set"], r["seed"], r.get("noise", 0.0)) for r in rows}
    about = {"seed": args.seed, "minutes": args.minutes, "commit": str(git_state()), "machine": str(machine())}
    todo = [] if args.table else [job for job in jobs(args) if (job[3].name, job[2], job[0], args.seed, args.noise) not in done]
    for kind, part, d_min, crystal, data in tqdm(todo, mininterval=30):
        if crystal.heavy.sum() > args.most_atoms:
            continue
        row = {"set": kind, "part": part, "d_min": d_min, "noise": args.noise,
               **placed(crystal, data(), args.minutes, args.seed), **about}
        rows.append(row)
        pd.DataFrame(rows).to_csv(path, index=False)
    made = table(pd.DataFrame(rows))
    print(made.to_string(index=False, float_format=lambda x: f"{x:.3g}"))
    write_json(out / "known_molecule.json", {"rows": made.to_dict("records"), **about, "data": "shared crystals, SPLIT.csv"})


if __name__ == "__main__":
    main()
