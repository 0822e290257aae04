"""From measured reflections to files: read back by gemmi, ShelXFile and cctbx, and held against crystals known beforehand."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import gemmi
import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from makers import REAL, direct_sum, random_crystal
from xrd_helpers import ROOT, __version__, cli, reflections
from xrd_helpers.cif import read_cif
from xrd_helpers.config import UserError
from xrd_helpers.phasing import PhasingError, Solution, in_group, job, match_solution, output, solve_measured, solved
from xrd_helpers.phasing.charge_flipping import Found, Progress, _distinct, _worth_building
from xrd_helpers.phasing.spacegroups import candidates
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.reflection_files import read_measured
from xrd_helpers.reflections import Measured, Reflections, unique_hkl
from xrd_helpers.shelx import read_instructions, write_shelx_files
from xrd_helpers.structure_factors import structure_factors

MEASURED = REAL / "measured"
NAMES = ["P -1", "P 1 21/c 1", "C 1 2 1", "P 1 21 1"]


def data_of(crystal, d_min=0.85, noise=0.02, seed=0):
    """The whole sphere of intensities by gemmi, absent ones too, in units of its own, with errors."""
    hkl = gemmi.make_miller_array(crystal.cell, gemmi.SpaceGroup("P 1"), d_min)
    I = 0.3 * np.abs(direct_sum(crystal, hkl)) ** 2
    sigma = noise * I + 0.01 * I.mean()
    I = I + sigma * np.random.default_rng(seed).standard_normal(len(I))
    return Measured(hkl.astype(int), I, sigma, crystal.cell, crystal.spacegroup, crystal.contents, 0.71073,
                    (Path("made.hkl"),), "made up")


@pytest.fixture(scope="module", params=NAMES)
def done(request, tmp_path_factory):
    """(crystal, data, Solution, {suffix: path})."""
    crystal = random_crystal(request.param)
    data = data_of(crystal)
    solution, tried = solve_measured(data, trials=16, seed=1)
    assert tried == [(crystal.spacegroup, solution.figure_of_merit)] and solution.accepted and solved(solution, crystal)
    paths = output.write_solution(tmp_path_factory.mktemp("out") / "made", solution, data)
    return crystal, data, solution, {path.suffix: path for path in paths}


def check_sites(done, cell, elements, fract, occ):
    """Every atom of the solution at one of its images (tests/test_bonds.py checks at which)."""
    crystal, data, solution, _ = done
    assert cell == pytest.approx(crystal.cell.parameters, abs=2e-3)
    left = list(range(len(solution.elements)))
    for element, xyz, share in zip(elements, fract, occ):
        images = [np.array(op.apply_to_xyz(list(xyz))) for op in solution.spacegroup.operations()]
        away = [min(np.abs((x - solution.fract[i] + 0.5) % 1 - 0.5).max() for x in images) for i in left]
        i = left.pop(int(np.argmin(away)))
        assert min(away) < 2e-5 and element == solution.elements[i] and share == pytest.approx(solution.occ[i])
    assert not left


def test_gemmi_reads_the_cif(done):
    small = gemmi.read_small_structure(str(done[3][".cif"]))
    assert small.spacegroup.number == done[0].spacegroup.number
    assert {op.triplet() for op in gemmi.GroupOps([gemmi.Op(x) for x in small.symops])} == {
        op.triplet() for op in done[0].spacegroup.operations()}
    check_sites(done, small.cell.parameters, [site.element.name for site in small.sites],
                [site.fract.tolist() for site in small.sites], [1] * len(small.sites))
    crystal = read_cif(done[3][".cif"])
    assert match_solution(done[2], crystal).rms < 1e-3
    assert sorted(crystal.u_iso) == pytest.approx(sorted(done[2].u_iso), abs=1e-5)


def test_what_is_known_of_it_stands_in_the_files(done):
    crystal, data, solution, paths = done
    merged = data.merge()
    F = np.abs(direct_sum(solution.as_crystal(), merged.hkl))
    off = np.abs(merged.F - F * (merged.F @ F) / (F @ F))
    strong = merged.F**2 > 2 * merged.intensities()[1]
    r1, r1_strong = off.sum() / merged.F.sum(), off[strong].sum() / merged.F[strong].sum()
    text = " ".join(line[4:] for line in paths[".res"].read_text().splitlines() if line.startswith("REM "))
    assert f"R1 {r1:.4f} for all {len(F)} data, {r1_strong:.4f} for {strong.sum()} with F > 4 sigma(F)" in text
    assert text.startswith("SOLVED: probability 0.9") and f"XRD Phase {__version__}, charge flipping" in text
    item = gemmi.cif.read(str(paths[".cif"])).sole_block().find_value
    assert item("_refine_ls_R_factor_gt") == f"{r1_strong:.4f}" and item("_reflns_number_gt") == str(strong.sum())
    assert item("_chemical_formula_sum") == "'C3 N O2 S'" and item("_xrd_phase_verdict") == "solved"
    assert item("_cell_formula_units_Z") == str(len(crystal.spacegroup.operations()))
    assert 0.9 < float(item("_xrd_phase_probability")) <= 1


@pytest.mark.parametrize("name, kinds", [  # from their formulas: CH and NH, CH3, OH; eight OH, eight CH, three CH2; NH3, CH2
    ("paracetamol", {43: 5, 137: 1, 147: 1}), ("sucrose", {147: 8, 13: 8, 23: 3}),
    ("glycine_alpha_high_pressure", {137: 1, 23: 1})])
def test_hydrogen_rides_on_its_atom(name, kinds, tmp_path):
    crystal = read_cif(ROOT / "data" / "molecules" / f"{name}.cif")
    order = np.random.default_rng(2).permutation(len(crystal.elements))
    data = data_of(crystal, 1.5)
    elements = tuple(crystal.elements[i] for i in order)
    solution = Solution(crystal.fract[order], np.ones(len(order)), elements, crystal.u_iso[order], crystal.occ[order], None,
                        crystal.cell, crystal.spacegroup, 0.01, 1.0, 1, 1.0, "made")
    output.write_solution(tmp_path / "a", solution, data)
    lines = (tmp_path / "a.res").read_text().splitlines()
    atoms = lines[next(i for i, line in enumerate(lines) if line.startswith("FVAR")) + 1:lines.index("HKLF 4")]
    found, place, parent, open_ = [], {}, None, 0
    for line in atoms:
        words = line.split()
        if words[0] == "AFIX":
            open_ = int(words[1])
            found += [open_] * bool(open_)
            continue
        place[words[0]] = crystal.cell.orthogonalize(gemmi.Fractional(*map(float, words[2:5])))
        if re.match(r"H\d", words[0]):
            assert open_ and place[words[0]].dist(place[parent]) < 1.2 and float(words[6]) == (-1.5 if open_ > 100 else -1.2)
        else:
            assert not open_
            parent = words[0]
    assert {mn: found.count(mn) for mn in set(found)} == kinds and not re.match(r"H\d", atoms[-1])


def test_shelxfile_reads_the_res(done):
    from shelxfile import Shelxfile

    res = Shelxfile()
    res.read_file(str(done[3][".res"]))
    check_sites(done, [*res.cell][:6], [atom.element for atom in res.atoms.all_atoms],
                [atom.frac_coords for atom in res.atoms.all_atoms], [atom.occupancy for atom in res.atoms.all_atoms])
    assert sum(not atom.qpeak for atom in res.atoms.all_atoms) == 7, "no atom was invented"
    assert res.hklf.n == 4 and len(res.symmcards) > 0


@pytest.mark.skipif(not find_spec("iotbx"), reason="cctbx-base is not installed (the bench extra)")
def test_iotbx_reads_the_res(done):
    # in a process of its own: cctbx crashes when it is imported after torch
    script = """if 1:
        import json, sys
        import iotbx.shelx
        s = iotbx.shelx.parse_smtbx_refinement_model(filename=sys.argv[1]).structure
        atoms = [[x.element_symbol(), x.site, x.weight()] for x in s.scatterers()]
        print(json.dumps([s.unit_cell().parameters(), atoms, s.space_group_info().type().number()]))"""
    printed = subprocess.run([sys.executable, "-c", script, done[3][".res"]], capture_output=True, text=True, check=True).stdout
    cell, atoms, number = json.loads(printed)
    check_sites(done, cell, *zip(*atoms))
    assert number == done[0].spacegroup.number


def test_the_data_come_back_as_they_were(done):
    again = read_measured(done[3][".hkl"])
    data = done[1]
    np.testing.assert_array_equal(again.hkl, data.hkl)
    ratio = again.intensity.sum() / data.intensity.sum()
    assert again.intensity == pytest.approx(ratio * data.intensity, abs=0.01) and again.elements == pytest.approx(data.elements)
    text = done[3][".res"].read_text()
    # the scale of |F|: calculated amplitudes times FVAR are the roots of the intensities in the .hkl file
    scale = float(re.search(r"FVAR +(\S+)", text)[1])
    assert scale == pytest.approx(np.sqrt(0.3 * ratio), rel=0.03)


def test_the_mtz_holds_phases_of_the_atoms(done):
    mtz = gemmi.read_mtz_file(str(done[3][".mtz"]))
    small = done[2].as_crystal().small_structure()
    calculator = gemmi.StructureFactorCalculatorX(small.cell)
    sf = np.array([calculator.calculate_sf_from_small_structure(small, h) for h in mtz.make_miller_array().tolist()])
    F, FC, PHIC = (mtz.column_with_label(label).array for label in ("F", "FC", "PHIC"))
    strong = np.abs(sf) > 3
    turn = np.exp(1j * np.radians(PHIC)) * np.exp(-1j * np.angle(sf))
    assert np.abs(turn[strong] - 1).max() < 1e-3
    assert np.corrcoef(FC, np.abs(sf))[0, 1] > 0.99999 and np.abs(F - FC).sum() / F.sum() < 0.1


def test_the_map_stands_on_the_atoms(done):
    ccp4 = gemmi.read_ccp4_map(str(done[3][".ccp4"]))
    ccp4.setup(float("nan"))
    assert ccp4.grid.unit_cell.parameters == pytest.approx(done[0].cell.parameters, abs=1e-3)
    values = ccp4.grid.array
    for xyz in done[2].fract:
        assert ccp4.grid.interpolate_value(gemmi.Fractional(*xyz)) > 3 * values.std()


@pytest.mark.parametrize("name", NAMES)
def test_the_space_group_is_among_those_that_explain_most_absences(name):
    crystal = random_crystal(name)
    groups = [group.xhm() for group in candidates(data_of(crystal))]
    assert name in groups[:{"P 1 21/c 1": 1}.get(name, 3)], "P21/c has absences of its own"


def test_a_group_on_other_axes_is_another_candidate():
    crystal = random_crystals(1, 1, ("P 21 21 2",), recipe="molecules")[0]
    groups = [group.xhm() for group in candidates(data_of(crystal, 1.2))]
    assert groups[0] == "P 21 21 2" and {"P 21 2 2", "P m m 2", "P 2 m m", "P m 2 m", "P m m m"} < set(groups)
    assert len(set(groups)) == len(groups) and "P 1 2 1" not in groups


def hide(data):
    """The data in the group with fewest operators of their Laue class, on their lattice."""
    system, lattice = data.spacegroup.crystal_system_str(), data.spacegroup.centring_type()
    return in_group(data, lattice + {"triclinic": " 1", "monoclinic": " 1 2 1", "orthorhombic": " 2 2 2"}[system])


@pytest.mark.parametrize("name", ["P 1", "P -1", "P 1 21 1", "P 1 21/c 1", "C 1 2 1", "C 1 c 1"])
def test_the_space_group_is_found(name):
    crystal = random_crystal(name)
    solution, tried = solve_measured(hide(data_of(crystal)), search=True, seed=1)
    assert solution.accepted and solution.spacegroup.xhm() == name and solved(solution, crystal)
    agreement = {group.xhm(): figure for group, figure in tried}
    assert agreement[name] == solution.figure_of_merit and len(agreement) == len(tried) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["P -1", "P 1 21/n 1", "C 1 2/c 1", "P 1 c 1", "P 21 21 21", "P n a 21", "P n a m", "P b c a"])
def test_the_space_group_of_packed_molecules_is_found(name):
    # of seed 0 the structure in P n a m is found in P n a 21, all atoms twice: R1 0.030, and called solved
    crystal = random_crystals(1, int(name == "P n a m"), (name,), recipe="molecules")[0]
    solution, tried = solve_measured(hide(data_of(crystal, 0.95)), search=True)
    assert solution.accepted and solution.spacegroup.xhm() == name and solved(solution, crystal)


@pytest.mark.parametrize("name", ["hydantoin", "paracetamol", "sucrose"])
def test_the_space_group_of_a_molecule_is_found(name):
    crystal = read_cif(ROOT / "data" / "molecules" / f"{name}.cif")
    solution, _ = solve_measured(hide(data_of(crystal, 0.9)), search=True)
    assert solution.accepted and solution.spacegroup.xhm() == crystal.spacegroup.xhm() and solved(solution, crystal)


@pytest.mark.parametrize("code", ["2004910", "1100976", "various-atom-type-loops_12fdbb"])
def test_the_space_group_is_found_although_heavy_atoms_have_more_symmetry(code):
    path = MEASURED.parent / "crystals" / f"{code}.cif"
    if not path.exists():
        pytest.skip("the real crystals are absent: point XRD_REAL_DATA at them")
    crystal = read_cif(path)
    solution, _ = solve_measured(hide(data_of(crystal, 0.9)), search=True)
    assert solution.accepted and solution.spacegroup.xhm() == crystal.spacegroup.xhm() and solved(solution, crystal)


def test_the_phases_agree_with_a_subgroup_as_well_and_the_group_is_taken():
    solution, tried = solve_measured(hide(data_of(random_crystal("P 1 21/c 1"))), search=True)
    agreement = {group.xhm(): figure for group, figure in tried}
    assert min(agreement[name] for name in ("P 1 21/c 1", "P 1 21 1", "P 1 c 1")) > 0.8
    assert max(agreement[name] for name in ("P 1 2/m 1", "P 1 21/m 1", "P 1 2/c 1", "P 1 m 1")) < 0.8
    assert solution.spacegroup.xhm() == "P 1 21/c 1"
    text = output.verdict(solution, tried)
    assert f"Solved in P 1 21/c 1 (of {len(tried)} space groups; agreement of the phases: P 1 21/c 1 0." in text


def test_reflections_that_the_group_of_the_file_forbids_count_in_a_search():
    crystal = random_crystal("P 1 21 1")
    data = in_group(data_of(crystal), "P 1 21/c 1")
    solution, _ = solve_measured(data, search=True)
    assert solution.spacegroup.xhm() == "P 1 21 1" and solution.accepted and solved(solution, crystal)
    # the amplitudes that P21/c would leave out are in R1: the same as where the group is known
    known, _ = solve_measured(data_of(crystal))
    assert solution.r1 == pytest.approx(known.r1, abs=0.01) and len(solution.fract) == len(known.fract)


def test_the_files_hold_the_cell_of_the_group_found(tmp_path):
    crystal = random_crystal("P 1 21/c 1")
    data = hide(data_of(crystal))
    solution, _ = solve_measured(data, search=True)
    paths = {path.suffix: path for path in output.write_solution(tmp_path / "made", solution, data)}
    again = read_measured(paths[".hkl"])
    assert again.spacegroup.xhm() == "P 1 21/c 1" and again.elements == pytest.approx(crystal.contents)
    mtz = gemmi.read_mtz_file(str(paths[".mtz"]))
    assert not mtz.spacegroup.operations().systematic_absences(mtz.make_miller_array()).any()


def test_a_solution_on_other_axes_is_written_with_the_data_on_them(tmp_path):
    """As SHELXT may give it: a' = c, b' = -b, c' = a, where P 1 21/c 1 is P 1 21/a 1."""
    crystal = random_crystal("P 1 21/c 1")
    data = data_of(crystal)
    solution, _ = solve_measured(data)
    a, b, c, alpha, beta, gamma = crystal.cell.parameters
    turned = replace(solution, cell=gemmi.UnitCell(c, b, a, gamma, beta, alpha), spacegroup=gemmi.SpaceGroup("P 1 21/a 1"),
                     fract=solution.fract[:, [2, 1, 0]] * [1, -1, 1], orientation="a'=c, b'=-b, c'=a")
    paths = {path.suffix: path for path in output.write_solution(tmp_path / "made", turned, data)}
    again, atoms = read_measured(paths[".hkl"]), read_cif(paths[".cif"])
    assert again.cell.approx(turned.cell, 1e-3) and again.spacegroup.xhm() == atoms.spacegroup.xhm() == "P 1 21/a 1"
    merged = again.merge()
    F = np.abs(structure_factors(atoms, merged.hkl))
    scale = merged.F @ F / (F @ F)
    assert np.abs(merged.F - scale * F).sum() / merged.F.sum() < 0.05
    strange = replace(turned, cell=gemmi.UnitCell(5, 6, 7, 90, 90, 90))
    with pytest.raises(PhasingError, match="the cell of the solution, 5 6 7 90 90 90, is not of the lattice of the data"):
        output.write_solution(tmp_path / "made", strange, data)


def test_data_are_merged_once(tmp_path, monkeypatch):
    data, merged = data_of(random_crystal("P -1")), []
    monkeypatch.setattr(reflections, "merge", lambda *given, merge=reflections.merge: merged.append(1) or merge(*given))
    output.describe_data(data, data.merge())
    solution, _ = solve_measured(data, trials=4)
    output.write_solution(tmp_path / "made", solution, data)
    assert len(merged) == 1


def test_very_negative_intensities_fit_the_columns_too(tmp_path):
    crystal = random_crystal("P -1")
    data = data_of(crystal)
    data.intensity[0] = -12000.0
    solution, _ = solve_measured(data)
    output.write_solution(tmp_path / "made", solution, data)
    lines = (tmp_path / "made.hkl").read_text().splitlines()
    assert {len(line) for line in lines} == {32} and float(lines[0][12:20]) < -1000


def test_the_next_best_solutions_are_told_of_and_the_runner_up_is_written(tmp_path):
    crystal = random_crystal("P 1 21/c 1")
    data = hide(data_of(crystal))
    alone = solve_measured(data, search=True)[0]
    solved_, second = job.Solved(*solve_measured(data, search=True, several=3)), tmp_path / "made_b.res"
    solution = solved_.solution
    assert not alone.others and solution.r1 == alone.r1 and len(solution.others) == 2
    groups = [one.spacegroup.xhm() for one in (solution, *solution.others)]
    assert groups[0] == "P 1 21/c 1" and set(groups[1:]) == {"P 1 21 1", "P 1 c 1"}, "the same with less symmetry"
    assert all(solved(one, crystal) and one.probability > 0.9 for one in solution.others)
    paths = output.write_solution(tmp_path / "made", solution, data)
    assert paths[-1] == second and second in output.may_be_written(tmp_path / "made")
    found = read_instructions(second)
    assert found.spacegroup.xhm() == groups[1] and len(found.atoms().fract) == 14 and found.elements["S"] == 2
    text = " ".join(line[4:] for line in found.remarks)
    assert text.startswith("RUNNER-UP: the second best solution")
    assert f"SOLVED: probability {solution.others[0].probability:.3f}" in text
    crystal = replace(solution.others[0].as_crystal(), fract=found.atoms().fract, elements=found.atoms().elements,
                      u_iso=found.atoms().u_iso)
    merged = in_group(data, groups[1]).merge()
    F = np.abs(direct_sum(crystal, merged.hkl))
    r1 = np.abs(merged.F - F * (merged.F @ F) / (F @ F)).sum() / merged.F.sum()
    assert float(re.search(r"R1 (\S+) for all", text)[1]) == pytest.approx(r1, abs=1e-3)
    words = output.verdict(*solved_)
    assert f"The runner-up (_b.res), in {groups[1]}, has R1 {solution.others[0].r1:.3f}" in words
    rows = output.write_listing(tmp_path / "made", data, solved_, words).read_text().splitlines()
    rows = [line for line in rows if re.match(r" [1-5] 0\.\d{3}  ", line)]
    assert len(rows) == 3 and all(group in row for group, row in zip(groups, rows))
    # what is no structure is no runner-up
    poor = replace(solution, others=tuple(replace(one, evidence=replace(one.evidence, probability=0.01))
                                          for one in solution.others))
    assert output.runner_up(poor) is None and "runner-up" not in output.verdict(poor, solved_.tried)


def test_which_solutions_are_other_ones():
    crystal, rng = random_crystal("P 1 21 1"), np.random.default_rng(0)
    candidates_ = [SimpleNamespace(rank=lambda model: model.r1, reflections=crystal) for _ in range(2)]

    def found(r1, fract, candidate=candidates_[0]):
        return Found(candidate, SimpleNamespace(fract=fract, r1=r1), [])

    best = found(0.1, crystal.fract)
    hand = found(0.2, [0.5, 0.31, 0] - crystal.fract)   # from another origin, in the other hand
    near = found(0.3, crystal.fract + rng.uniform(-0.2, 0.2, (7, 3)) / crystal.cell.parameters[:3])
    part = found(0.5, np.concatenate([crystal.fract[:4], rng.random((3, 3))]))
    wrong = found(0.4, rng.random((7, 3)))
    group = found(0.6, crystal.fract, candidates_[1])
    assert _distinct([hand, group, near, part, wrong, best], best, 9) == [wrong, part, group]
    assert _distinct([hand, group, near, part, wrong, best], best, 2) == [wrong] and not _distinct([wrong], best, 1)


def test_in_which_groups_atoms_are_built():
    def chosen(*groups):
        """groups: (absent reflections, operators, agreement); P1 has no linked reflections."""
        made = [SimpleNamespace(n_absent=absent, n_ops=n, links=[range(n - 1)]) for absent, n, _ in groups]
        return _worth_building(made, [figure for *_, figure in groups])

    assert chosen((0, 1, 0.9)) == [0]
    assert chosen((0, 1, 0.5), (0, 2, 0.9)) == [1, 0], "P1 always agrees, and comes last"
    # P21/c and its subgroup, and P21/m, which does not agree
    assert chosen((9, 4, 0.86), (3, 2, 0.88), (3, 4, 0.45)) == [0, 1]
    # a heavy atom that has more symmetry than the rest: the glide plane that the absences show counts all the same
    assert chosen((0, 4, 0.97), (30, 4, 0.75), (30, 2, 0.55), (0, 2, 0.95)) == [1, 0, 3]
    assert chosen(*[(0, 4, 0.9 - 0.01 * i) for i in range(9)]) == [0, 1]


def test_the_contents_of_the_cell_stay_in_another_group():
    data = data_of(random_crystal("P 1 21/c 1"))
    assert in_group(data, "P 1 21 1").elements == {"S": 2, "O": 4, "N": 2, "C": 6}
    with pytest.raises(UserError, match="not of the Laue class of P 1 21/c 1"):
        in_group(data, "P -1")
    with pytest.raises(UserError, match="'P 1 21/q 1' is no space group"):
        in_group(data, "P 1 21/q 1")


def shuffled(data):
    """Data of no crystal."""
    return replace(data, intensity=np.random.default_rng(0).permutation(data.intensity))


def test_without_a_structure_it_says_so(tmp_path):
    data = shuffled(data_of(random_crystal("P 1 21/c 1"), d_min=1.0))
    solution, _ = solve_measured(data, trials=2)
    assert output.verdict(solution, []).startswith("Not solved") and output.verdict(None).startswith("Not solved")
    nothing = output.write_listing(tmp_path / "made", data, job.Solved(None, [(data.spacegroup, float("nan"))]), "Not solved.")
    assert nothing.name == "made_unsolved.log" and nothing.read_text().endswith("are possible\n\nNot solved.\n")
    paths = output.write_solution(tmp_path / "made", solution, data)
    assert {path.stem for path in paths} == {"made_unsolved"} and "REM NOT SOLVED: probability 0.0" in paths[2].read_text()


def test_an_uncertain_structure_is_exit_code_0_and_says_so_everywhere(tmp_path, capsys, monkeypatch):
    data = data_of(random_crystal("P 1 21/c 1"), d_min=1.0)
    write_shelx_files(tmp_path / "job", data.hkl, data.intensity, data.sigma, 1, data.cell, data.spacegroup, data.elements)
    solution = solve_measured(data, trials=4)[0]
    doubtful = replace(solution, evidence=replace(solution.evidence, probability=0.5))
    monkeypatch.setattr(job.charge_flipping, "solve", lambda *_, **__: doubtful)
    assert run("solve", str(tmp_path / "job.hkl"), "--engine", "charge_flipping") == 0
    assert "Uncertain in P 1 21/c 1" in (printed := capsys.readouterr().out) and "before you believe it" in printed
    folder = tmp_path / "job_xrd"
    assert "before you believe it" in (folder / "job.log").read_text()
    assert "REM UNCERTAIN: probability 0.500" in (folder / "job.res").read_text()
    assert "_xrd_phase_verdict uncertain" in (folder / "job.cif").read_text()
    assert run("solve", "--help") == 0 and "0 if it is solved or uncertain" in " ".join(capsys.readouterr().out.split())


def test_no_structure_is_exit_code_1_and_nothing_is_overwritten_unasked(tmp_path, capsys):
    data = shuffled(data_of(random_crystal("P 1 21/c 1"), d_min=1.0))
    write_shelx_files(tmp_path / "job", data.hkl, data.intensity, data.sigma, 1, data.cell, data.spacegroup, data.elements)
    solve = ["solve", str(tmp_path / "job.hkl"), "--engine", "charge_flipping", "--trials", "1", "--effort", "quick"]
    folder = tmp_path / "job_xrd"
    folder.mkdir()
    (folder / "job.res").write_text("edited")
    assert run(*solve) == 2
    assert capsys.readouterr().err.endswith("job.res is there already: add --overwrite, or choose another --out\n")
    assert run(*solve, "--overwrite") == 1
    assert (folder / "job.res").read_text() == "edited", "what is no structure takes no structure's place"
    assert {p.name for p in folder.iterdir()} >= {"job_unsolved.res", "job_unsolved.cif"}
    (folder / "job.res").unlink()
    assert run(*solve) == 2 and "job_unsolved.hkl is there already" in capsys.readouterr().err


def test_what_is_read_is_described():
    data = data_of(random_crystal("P -1"))
    text = output.describe_data(data, data.merge())
    assert "made.hkl (made up)" in text and "to 0.85 Å, 100 % complete, none measured twice" in text


def test_where_there_is_no_terminal_a_search_says_a_line_every_half_minute(capsys):
    with output.search_on_terminal(5) as watch:
        for seconds in (1, 29, 31, 45, 62, 70, 93):
            watch(Progress(seconds // 10, seconds, 0.4, 0.25 if seconds > 60 else float("nan")))
    assert capsys.readouterr().err.splitlines() == [
        "searching for 31 s: 3 starts, R1 0.400", "searching for 62 s: 6 starts, R1 0.400, probability 0.25",
        "searching for 93 s: 9 starts, R1 0.400, probability 0.25"]


# --- the command ---


def test_xrd_solve_writes_into_a_folder_beside_the_file(tmp_path, capsys):
    crystal = random_crystal("P 1 21/c 1")
    data = data_of(crystal)
    solution, _ = solve_measured(data, trials=4, seed=1)
    output.write_solution(tmp_path / "job", solution, data)  # for the .hkl and .ins
    for suffix in (".res", ".cif", ".mtz", ".ccp4"):
        (tmp_path / f"job{suffix}").unlink()
    (tmp_path / "job_xrd").mkdir()
    (tmp_path / "job_xrd" / "job_b.res").write_text("the runner-up of a search before this one")
    assert run("solve", str(tmp_path / "job.hkl"), "--engine", "charge_flipping", "--overwrite") == 0
    assert not (tmp_path / "job_xrd" / "job_b.res").exists()
    printed = capsys.readouterr().out
    assert "Solved in P 1 21/c 1: 7 atoms" in printed and "SHELX, F² by HKLF 4" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["job.hkl", "job.ins", "job_xrd"]
    assert {p.suffix for p in (tmp_path / "job_xrd").iterdir()} == {".hkl", ".ins", ".res", ".cif", ".mtz", ".ccp4", ".log"}
    log = (tmp_path / "job_xrd" / "job.log").read_text()
    assert all(line in log for line in printed.splitlines()[:-1]), "what was said on the terminal"
    rows = [line.split() for line in log.splitlines() if re.match(r" +\d+\.\d\d +\d\.\d\d  ", line)]
    assert len(rows) == 10 and sum(int(row[2]) for row in rows) == len(unique_hkl(data.cell, data.spacegroup, 0.85))
    assert float(re.search(r"B (.*) Å²", log)[1]) == pytest.approx(8 * np.pi**2 * crystal.u_iso.mean(), abs=1.5)
    assert re.search(r"-?0\.\d+ \+- 0\.\d+  possible: P 1 21/c 1\n", log) and re.search(r"no: P 1 21/n 1\n", log)
    assert "SOLVED: probability 0.9" in log and "R1 0.0" in log and "for reflections left out of the refinement" in log
    assert solved(replace(solution, fract=read_cif(tmp_path / "job_xrd" / "job.cif").fract), crystal)


def test_xrd_solve_finds_the_space_group_and_says_which_agree(tmp_path, capsys):
    crystal = random_crystal("P 1 21 1")
    data = hide(data_of(crystal))
    write_shelx_files(tmp_path / "job", data.hkl, data.intensity, data.sigma, 1, data.cell, data.spacegroup, data.elements)
    assert run("solve", str(tmp_path / "job.hkl"), "--engine", "charge_flipping", "--spacegroup", "search") == 0
    assert re.search(r"Solved in P 1 21 1 \(of \d+ space groups; agreement of the phases: P 1 21 1 0\.\d\d, ",
                     capsys.readouterr().out)
    assert solved(read_cif(tmp_path / "job_xrd" / "job.cif").fract, crystal)


def test_several_files_are_solved_and_a_bad_one_stops_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, data in (("a", data_of(random_crystal("P -1"), 1.0)), ("b", shuffled(data_of(random_crystal("P -1"), 1.0)))):
        write_shelx_files(tmp_path / name, data.hkl, data.intensity, data.sigma, 1, data.cell, data.spacegroup, data.elements)
    (tmp_path / "c.hkl").write_text("no reflections")
    several = ["solve", "a.hkl", "c.hkl", "b.hkl", "absent.hkl", "--engine", "charge_flipping", "--trials", "8", "--effort",
               "quick", "--workers", "0"]
    assert run(*several) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1/4 a.hkl: solved: R1 0.0") and lines[1].startswith("2/4 c.hkl: error: c.hkl, line 1")
    with open("solved.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["solved", "error", "not solved", "error"]
    assert rows[0]["formula"] == "S1 O2 N1 C3" and rows[0]["spacegroup"] == "P -1" and float(rows[0]["d_min"]) == 1.0
    assert (tmp_path / "a_xrd" / "a.res").exists() and (tmp_path / "b_xrd" / "b_unsolved.res").exists()
    assert run(*several) == 2 and "solved.csv is there already" in capsys.readouterr().err
    # what is there is not done again; in JSON
    assert run(*several, "--table", "more.csv", "--json") == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "a.res is there already" in found[0]["message"].replace("a.hkl", "a.res") and len(found) == 4
    assert run("solve", "a.hkl", "sub/a.hkl", "--out", "x") == 2 and "have the same name" in capsys.readouterr().err


@pytest.mark.slow
def test_several_files_on_a_cluster(tmp_path, capsys, monkeypatch):
    """Of another folder than that of its workers."""
    from distributed import LocalCluster

    data = data_of(random_crystal("P -1"), 1.0)
    for name in "ab":
        write_shelx_files(tmp_path / name, data.hkl, data.intensity, data.sigma, 1, data.cell, data.spacegroup, data.elements)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        monkeypatch.chdir(tmp_path)
        solve = ["solve", "a.hkl", "b.hkl", "c.hkl", "--engine", "charge_flipping", "--scheduler", cluster.scheduler_address]
        assert run(*solve) == 1
        assert run(*solve, "--workers", "2", "--table", "d.csv") == 2
    printed = capsys.readouterr()
    assert {line.split(": ")[0][4:]: line.split(": ")[1] for line in printed.out.splitlines()} == {
        "a.hkl": "solved", "b.hkl": "solved", "c.hkl": "error"}
    assert "a scheduler has workers of its own" in printed.err and (tmp_path / "b_xrd" / "b.res").exists()
    with open("solved.csv", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["a.hkl", "b.hkl", "c.hkl"]
    assert run(*solve[:-1], "post://here", "--table", "d.csv") == 2
    assert "no dask scheduler answers at post://here" in capsys.readouterr().err


@pytest.mark.slow
def test_several_files_in_processes_of_which_one_dies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = data_of(random_crystal("P -1"), 1.0)
    for name in "ab":
        write_shelx_files(tmp_path / name, data.hkl, data.intensity, data.sigma, 1, data.cell, data.spacegroup, data.elements)
    (tmp_path / "sitecustomize.py").write_text(  # as the system ends a process that takes too much memory
        "import os, pathlib\nread = pathlib.Path.read_bytes\n"
        "pathlib.Path.read_bytes = lambda path: os._exit(9) if path.name == 'b.hkl' else read(path)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    options = ["--engine", "charge_flipping", "--workers", "2", "--json"]
    done = subprocess.run([sys.executable, "-m", "xrd_helpers.cli", "solve", "b.hkl", "a.hkl", *options],
                          capture_output=True, text=True)
    verdicts = {row["file"]: row["verdict"] for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1 and verdicts == {"a.hkl": "solved", "b.hkl": "error"}
    assert "is there enough memory?" in (tmp_path / "solved.csv").read_text()


def test_one_file_in_json(tmp_path, capsys):
    data = data_of(random_crystal("P -1"), 1.0)
    write_shelx_files(tmp_path / "a", data.hkl, data.intensity, data.sigma, 1, data.cell, data.spacegroup, data.elements)
    assert run("solve", str(tmp_path / "a.hkl"), "--engine", "charge_flipping", "--json") == 0
    printed = capsys.readouterr()
    row = json.loads(printed.out)
    assert row["verdict"] == "solved" and row["folder"] == str(tmp_path / "a_xrd") and 0 < row["R1_strong"] <= row["R1"] < 0.1
    assert set(row) <= set(output.COLUMNS) and "Solved in P -1" in printed.err
    assert run("solve", str(tmp_path / "absent.hkl"), "--json") == 2
    assert json.loads(capsys.readouterr().out)["message"].endswith("absent.hkl cannot be read: No such file or directory")


def test_xrd_solve_says_that_everything_is_carbon(tmp_path, capsys):
    data = data_of(random_crystal("P 1 21/c 1"), d_min=1.0)
    write_shelx_files(tmp_path / "job", data.hkl, data.intensity, data.sigma, 1, data.cell, data.spacegroup, data.elements)
    text = (tmp_path / "job.ins").read_text().replace("SFAC C N O S", "TWIN").replace("UNIT 12 4 8 4", "BASF 0.1")
    (tmp_path / "job.ins").write_text(text)
    solve = ["solve", str(tmp_path / "job.hkl"), "--engine", "charge_flipping", "--effort", "quick"]
    assert run(*solve, "--trials", "2") in (0, 1)
    printed = capsys.readouterr().out
    assert "Note: TWIN and BASF of the file" in printed and "Note: nothing states the elements: every atom is taken" in printed
    assert "TWIN\nBASF 0.1\n" in next((tmp_path / "job_xrd").glob("*.res")).read_text()
    assert run(*solve, "--formula", "C3NO2S", "--z", "4", "--trials", "8", "--overwrite") == 0
    assert "nothing states" not in capsys.readouterr().out
    item = gemmi.cif.read(str(tmp_path / "job_xrd" / "job.cif")).sole_block().find_value
    assert item("_chemical_formula_sum") == "'C3 N O2 S'" and item("_cell_formula_units_Z") == "4"


def test_xrd_solve_refuses_in_a_sentence(tmp_path, capsys):
    data = data_of(random_crystal("P -1"))
    solution, _ = solve_measured(data, trials=4)
    output.write_solution(tmp_path / "job", solution, data)

    def message(*more):
        assert run("solve", str(tmp_path / "job.hkl"), *more) == 2
        return capsys.readouterr().err

    assert message("--engine", "magic") == "xrd: --engine 'magic' is none of auto, shelxt and charge_flipping\n"
    assert "config.yaml names /no/such/program as SHELXT" in message("--shelxt", "/no/such/program")
    assert "not of the Laue class" in message("--spacegroup", "P 1 21/c 1")
    assert message("--elements", "C Xy") == "xrd: --elements: 'Xy' is no element\n"
    assert "nothing was measured to --d-min 90 Å" in message("--d-min", "90")
    (tmp_path / "job.hkl").write_bytes(b"\x00\xff" * 300)
    assert "job.hkl, line 1" in message()
    assert run("solve", str(tmp_path / "absent.hkl")) == 2


def run(*arguments):
    """Exit code of the command line."""
    with mock.patch.object(sys, "argv", ["xrd", *arguments]), pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code or 0


@pytest.mark.slow
@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured reflections in {MEASURED}: set XRD_REAL_DATA")
def test_all_measured_data_sets_are_solved_from_their_intensities():
    with open(MEASURED / "SOURCES.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        data = read_measured(MEASURED / row["file"], MEASURED / row["model"] if row["model"] != row["file"] else None)
        quality = data.quality(data.merge())
        assert quality.n_unique == pytest.approx(int(row["n_asu"]), rel=0.01), row["id"]
        assert quality.d_min == pytest.approx(float(row["d_min"]), abs=0.005), row["id"]
        assert quality.completeness == pytest.approx(float(row["completeness"]), abs=0.02), row["id"]
        published = read_cif(MEASURED / row["model"])
        solution, _ = solve_measured(data)
        match = match_solution(solution, published)
        assert solution.accepted and match.n_matched == match.n_true, (row["id"], match)
        true = [element for element in published.elements if element not in ("H", "D")]
        assert all(solution.elements[i] == true[j] for i, j in match.pairs), (row["id"], "elements")
        solution, _ = solve_measured(hide(data), search=True)
        assert solution.accepted and solution.spacegroup.xhm() == published.spacegroup.xhm() and solved(solution, published)


@pytest.fixture(scope="module")
def measured_and_written(tmp_path_factory):
    """{name: (Measured, published crystal, {suffix: path})} of the measured data sets."""
    folder, found = tmp_path_factory.mktemp("measured"), {}
    with open(MEASURED / "SOURCES.csv", newline="") as file:
        for row in csv.DictReader(file):
            data = read_measured(MEASURED / row["file"], MEASURED / row["model"] if row["model"] != row["file"] else None)
            paths = output.write_solution(folder / row["id"], solve_measured(data)[0], data)
            found[row["id"]] = data, read_cif(MEASURED / row["model"]), {path.suffix: path for path in paths}
    return found


@pytest.mark.slow
@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured reflections in {MEASURED}: set XRD_REAL_DATA")
def test_files_of_measured_data_hold_the_published_molecule_in_one_piece(measured_and_written):
    from shelxfile import Shelxfile

    for name, (_, published, paths) in measured_and_written.items():
        res, small = Shelxfile(), gemmi.read_small_structure(str(paths[".cif"]))
        res.read_file(str(paths[".res"]))
        assert [atom.element for atom in res.atoms.all_atoms] == [site.element.name for site in small.sites], name
        fract = np.array([site.fract.tolist() for site in small.sites])
        np.testing.assert_allclose([atom.frac_coords for atom in res.atoms.all_atoms], fract, atol=2e-5)
        assert [atom.name for atom in res.atoms.all_atoms] == [site.label for site in small.sites]
        match = match_solution(read_cif(paths[".cif"]), published)
        assert match.n_matched == match.n_true == published.heavy.sum(), name
        xyz = np.array([small.cell.orthogonalize(site.fract).tolist() for site in small.sites])
        pieces, _ = connected_components(np.linalg.norm(xyz[:, None] - xyz, axis=-1) < 2.0)  # without any symmetry
        assert pieces == 1, name
        text = (MEASURED / f"{name}.cif").read_text() if (MEASURED / f"{name}.cif").exists() else ""
        lines = paths[".res"].read_text().splitlines()
        for word in ("TITL", "CELL", "ZERR", "LATT", "SYMM", "SFAC", "UNIT", "TEMP", "SIZE", "OMIT", "MERG"):
            expected = re.findall(rf"^{word} .*$", text, re.MULTILINE)  # of the .res that stands in the CIF
            assert not expected or [line for line in lines if line.startswith(word)] == [x.rstrip() for x in expected], word


REFINE = """
import sys
from cctbx.array_family import flex
from scitbx.lstbx import normal_eqns_solving
from smtbx.refinement import least_squares, model
for path in sys.argv[1:]:
    m = model.from_shelx(ins_or_res=path, hkl=path[:-3] + "hkl", strictly_shelxl=False)
    m.weighting_scheme = least_squares.mainstream_shelx_weighting(a=0.1)
    for n in (10, 30):  # isotropic first
        normal_eqns_solving.levenberg_marquardt_iterations(m.least_squares(), gradient_threshold=1e-8, step_threshold=1e-8,
                                                           n_max_iterations=n)
        structure = m.xray_structure
        structure.convert_to_anisotropic(selection=~structure.hd_selection())
        for atom, hydrogen in zip(structure.scatterers(), structure.hd_selection()):
            if not hydrogen:
                atom.flags.set_grad_u_aniso(True)
                atom.flags.set_grad_u_iso(False)
    data = m.fo_sq.fo_sq
    data = data.select(data.data() > 2 * data.sigmas())
    F = flex.sqrt(data.data())
    F_calc = flex.abs(data.structure_factors_from_scatterers(m.xray_structure, algorithm="direct").f_calc().data())
    print(flex.sum(flex.abs(F - F_calc * (flex.sum(F * F_calc) / flex.sum(F_calc * F_calc)))) / flex.sum(F))
"""


@pytest.mark.slow
@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured reflections in {MEASURED}: set XRD_REAL_DATA")
@pytest.mark.skipif(not find_spec("smtbx"), reason="cctbx-base is not installed (the bench extra)")
def test_cctbx_refines_from_the_res_of_measured_data(measured_and_written):
    files = [str(paths[".res"]) for *_, paths in measured_and_written.values()]
    done = subprocess.run([sys.executable, "-c", REFINE, *files], capture_output=True, text=True, check=True)
    r1 = dict(zip(measured_and_written, map(float, done.stdout.split())))
    # of F > 4 sigma(F), anisotropic; hydrogen rides where it was found
    assert len(r1) == 8 and max(r1.values()) < 0.10, r1


def test_a_list_of_kinds_is_filled_up_with_carbon(monkeypatch):
    asked = []
    monkeypatch.setattr(job.charge_flipping, "solve", lambda reflections, elements, **_: asked.append(elements))
    crystal = random_crystal("P 1 21/c 1")  # 521 Å³ in four parts: 7 atoms of 18 Å³
    hkl = unique_hkl(crystal.cell, crystal.spacegroup, 1.5)
    measured = Reflections.of_good_data(hkl, np.ones(len(hkl)), crystal.cell, crystal.spacegroup)
    for elements in (["C", "H", "O"], {}, ["S", *"OONCCC", "H"]):
        job.phase(measured, elements)
    assert asked == [{"O": 1, "C": 6}, {"C": 7}, {"S": 1, "O": 2, "N": 1, "C": 3, "H": 1}]


# P 1 21/c 1 of 521 Å³: 7 atoms of 18 Å³ in each of its four parts
def stated(in_file=None, header=None, **given):
    data = data_of(random_crystal("P 1 21/c 1"), d_min=2.0)
    in_file = data.elements if in_file is None else in_file
    return job.with_contents(replace(data, elements=in_file, header=header or {}), **given)


@pytest.mark.parametrize("given, expected, note", [
    ({"formula": "C3NO2S", "z": 4}, {"S": 1, "O": 2, "N": 1, "C": 3}, ""),
    ({"elements": "C3 H9 N O2 S"}, {"S": 1, "O": 2, "N": 1, "C": 3, "H": 9}, "4 formula units in the cell fill it best (18.6"),
    ({"formula": "C7H8"}, {"C": 7, "H": 8}, "4 formula units"), ({"formula": "C14H10"}, {"C": 7, "H": 5}, "2 formula units"),
    ({"formula": "CH4N2O"}, {"O": 2, "N": 4, "C": 2, "H": 8}, "8 formula units"),
    ({"elements": "C, h o"}, {"O": 1, "C": 1, "H": 1}, ""), ({"formula": "CCl4", "z": 8}, {"Cl": 8, "C": 2}, "")])
def test_what_is_said_of_the_contents(given, expected, note):
    made = stated(header={"TITL": ("TITL a",), "UNIT": ("UNIT 1",), "SFAC": ("SFAC C",), "ZERR": ("ZERR 9 0.1 0.2",)}, **given)
    assert made.elements == expected and "".join(made.notes).startswith(note) and bool(made.notes) == bool(note)
    assert made.header["TITL"] and "UNIT" not in made.header and "SFAC" not in made.header
    if "formula" in given:
        assert made.header["ZERR"][0] == f"ZERR {given.get('z') or int(note[0])} 0.1 0.2"


@pytest.mark.parametrize("elements, expected, note", [
    ({"S": 1, "O": 2, "N": 1, "C": 3}, None, ""),
    ({"O": 0.5, "C": 1.25, "H": 1}, {"O": 2, "C": 5, "H": 4}, "4 times as many atoms"),
    ({"C": 0.25, "H": 0.25, "N": 0.25, "O": 0.25}, {"C": 1, "H": 1, "N": 1, "O": 1}, "leaves 174 Å³ for each atom"),
    ({"C": 1e30, "O": 2}, {"C": 1, "O": 1}, "its elements are kept, their numbers set aside"),
    ({"C": 60, "H": 60}, {"C": 1, "H": 1}, "leaves 2.17 Å³"), ({}, {}, "every atom is taken for carbon, about 7 in the asym")])
def test_an_impossible_formula_is_set_aside_and_said(elements, expected, note):
    made = stated(elements, {"UNIT": ("UNIT 1",), "SFAC": ("SFAC C",)})
    assert made.elements == (elements if expected is None else expected) and note in "".join(made.notes)
    assert ("UNIT" in made.header) == (not note or not elements)


@pytest.mark.parametrize("given, message", [
    ({"formula": "C8H-"}, "--formula: 'C8H-' is no formula"), ({"formula": "C8Xx2"}, "--formula: 'Xx' is no element"),
    ({"elements": "C 8"}, "--elements: '8' is no formula"), ({"formula": "C7", "elements": "C"}, "not both"),
    ({"z": 4}, "--z goes with a formula"), ({"elements": "C H", "z": 4}, "--z goes with"),
    ({"formula": "C70", "z": 4}, "4 formula units leave 1.86 Å³ for each atom")])
def test_formulas_that_cannot_be(given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        stated(**given)


def test_an_effort_that_does_not_exist_is_no_crystal_without_an_answer():
    with pytest.raises(UserError, match="effort 'lots' is none of quick, normal, thorough"):
        job.phase(data_of(random_crystal("P 1 21/c 1"), d_min=1.0).merge(), effort="lots")
