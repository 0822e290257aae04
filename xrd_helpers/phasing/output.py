"""What a solution is handed on as: SHELX, CIF, CCP4 and MTZ files."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np
from tqdm import tqdm

from .. import __version__
from ..bonds import assembled, coordination
from ..config import atomic_path
from ..reflection_files import write_mtz
from ..reflections import Measured, Reflections
from ..shelx import formula_units, shelx_elements, shelx_scale, write_shelx_files, write_shelx_res
from ..structure_factors import fit_scale, structure_factors
from ..wilson import LEAST_PAIRS, intensity_statistics
from .absolute_structure import with_error
from .peaks import without_hydrogen
from .solution import PhasingError, Solution
from .spacegroups import absences, moved_to
from .verdict import WORDS, in_words, on_axes_of

SUFFIXES = (".hkl", ".ins", ".res", ".cif", ".mtz", ".ccp4")
UNSOLVED = "_unsolved"  # stands in the names of files that hold no structure
SECOND = "_b"  # and in that of the runner-up
SOFTWARE = f"XRD Phase {__version__}"
COLUMNS = ("file", "verdict", "probability", "R1", "R1_strong", "R1_left_out", "spacegroup", "atoms", "formula", "d_min",
           "completeness", "engine", "seconds", "folder", "message")  # of a table of files
LONGEST_TO_H = 1.25  # Å, of a bond to hydrogen that rides
DETAILS = ("{} quotients [(I+)-(I-)]/[(I+)+(I-)] (Parsons, Flack and Wagner, Acta Cryst. B69 (2013) 249-259), of isotropic "
           "atoms: a hint, to be refined")
MOST_NAMED = 6  # space groups named with their agreement


def labels(elements) -> list[str]:
    """C1, C2, O1 ...: each element numbered by itself."""
    return [f"{element}{elements[:i].count(element) + 1}" for i, element in enumerate(elements)]


def in_molecules(solution: Solution):
    """The same atoms as ``bonds.assembled`` has them: whole molecules, one after the other and beside each other.

    Returns
    -------
    Solution, and (n,) rows that its atoms had
    """
    order, fract = assembled(solution.fract, solution.elements, solution.cell, solution.spacegroup)
    columns = {name: getattr(solution, name)[order] for name in ("heights", "u_iso", "occ")}
    return replace(solution, fract=fract, elements=tuple(solution.elements[i] for i in order), **columns), order


def may_be_written(stem) -> list[Path]:
    """The files that ``write_solution`` and ``write_listing`` may write for a stem, whatever comes of the search."""
    stem = Path(stem)
    return [stem.with_name(stem.name + end + suffix) for end in ("", UNSOLVED) for suffix in (*SUFFIXES, ".log")] + [
        stem.with_name(f"{stem.name}{SECOND}.res")]


def write_solution(stem, solution: Solution, measured: Measured, names=None, extra=()) -> list[Path]:
    """Write ``.hkl``, ``.ins`` (no atoms), ``.res``, ``.cif``, ``.mtz`` and, where there is a map, ``.ccp4``; atoms stand as
    ``in_molecules`` puts them. What is "not solved" stands in files whose names say so (UNSOLVED), and the ``runner_up`` in a
    .res of its own (SECOND).

    Parameters
    ----------
    stem : path of the files without their suffix
    solution : on the axes of the data or others of their lattice, to which the data are brought then
    measured : the reflections it was found from; their elements are those of SFAC and UNIT, with those of the atoms, and
        their header is passed on
    names : (n,) of the atoms, by default ``labels`` of their elements
    extra : lines of SHELXL for the .res, as DFIX

    Returns
    -------
    list of Path
    """
    stem = Path(f"{stem}{UNSOLVED if is_unsolved(solution) else ''}")
    names = labels(solution.elements) if names is None else names  # as pictures have them
    second = runner_up(solution)
    solution, order = in_molecules(solution)
    names = [names[i] for i in order]
    crystal = solution.as_crystal(stem.name)
    measured = as_solved(measured, solution)
    merged = measured.merge()
    elements, header, wavelength = _contents(crystal, measured), measured.header, measured.wavelength or 0.71073
    sf = structure_factors(crystal, merged.hkl)
    scale, fit = fit_scale(merged.F, np.abs(sf)), agreement(merged, np.abs(sf))
    fits = shelx_scale(measured.intensity, measured.sigma)
    write_shelx_files(stem, measured.hkl, measured.intensity * fits, measured.sigma * fits, 1, measured.cell,
                      solution.spacegroup, elements, wavelength=wavelength, header=header)
    paths = [stem.with_name(stem.name + suffix) for suffix in SUFFIXES[:5 if solution.rho is None else 6]]
    write_shelx_res(paths[2], crystal, names, elements, wavelength, scale * np.sqrt(fits), _remarks(solution, fit), header,
                    extra, _riding(crystal))
    with atomic_path(paths[3]) as temporary:
        temporary.write_text(_cif(solution, stem.name, names, wavelength, elements, header, fit), encoding="utf-8")
    # F and sigF as measured, and amplitude (on their scale) and phase of the atoms
    columns = {"F": ("F", merged.F), "SIGF": ("Q", merged.sigF), "FC": ("F", scale * np.abs(sf)),
               "PHIC": ("P", np.degrees(np.angle(sf)))}
    write_mtz(paths[4], merged.hkl, columns, merged.cell, solution.spacegroup, wavelength, "solution")
    if solution.rho is not None:
        with atomic_path(paths[5]) as temporary:
            _ccp4(solution).write_ccp4_map(str(temporary))
    if second:
        paths.append(_write_second(stem, second, measured, wavelength, fits, header))
    return paths


def runner_up(solution: Solution | None) -> Solution | None:
    """The second best solution, where it and the best one may be the structure."""
    second = next(iter(solution.others), None) if solution else None
    return None if is_unsolved(solution) or is_unsolved(second) else second


def _write_second(stem, solution, measured, wavelength, fits, header):
    """Write the .res of a runner-up; the reflections of the best solution are also its."""
    measured, (solution, _) = moved_to(measured, solution.spacegroup), in_molecules(solution)
    merged, crystal = measured.merge(), solution.as_crystal(stem.name)
    sf = np.abs(structure_factors(crystal, merged.hkl))
    path = stem.with_name(f"{stem.name}{SECOND}.res")
    remarks = [f"RUNNER-UP: the second best solution, of which less is to be said than of {stem.name}.res. To refine it, copy "
               f"{stem.name}.hkl to {path.stem}.hkl", *_remarks(solution, agreement(merged, sf))]
    write_shelx_res(path, crystal, labels(solution.elements), _contents(crystal, measured), wavelength,
                    fit_scale(merged.F, sf) * np.sqrt(fits), remarks, header)
    return path


def _riding(crystal):
    """(n,) mn of the AFIX of hydrogen that follows its atom, by how many there are (k) and to how many others that is bonded;
    0 of other atoms, and of hydrogen of another kind, as of water."""
    orth, heavy = np.array(crystal.cell.orth.mat.tolist()), crystal.heavy
    bonds = coordination(crystal.fract, crystal.elements, crystal.cell, crystal.spacegroup)
    afix = np.zeros(len(heavy), int)
    for i in np.flatnonzero(heavy):
        k = int(np.argmax([*heavy[i + 1:], True]))
        rows = slice(i + 1, i + 1 + k)
        away = np.linalg.norm((crystal.fract[rows] - crystal.fract[i]) @ orth.T, axis=1)
        kind = {(1, 1): 147 if crystal.elements[i] == "O" else 163, (1, 2): 43, (1, 3): 13, (2, 1): 93, (2, 2): 23, (3, 1): 137}
        if k and away.max() < LONGEST_TO_H:
            afix[rows] = kind.get((k, int(bonds[i])), 0)
    return afix


class Agreement(NamedTuple):
    """R1 = Σ |F - |Fcalc|| / Σ F of `n` reflections, and of the `n_strong` with F > 4 sigma(F), as SHELXL compares."""

    r1: float
    n: int
    r1_strong: float
    n_strong: int


def agreement(merged: Reflections, F_calc) -> Agreement:
    """``Agreement`` of amplitudes (n,) with the merged data, on one scale by least squares."""
    off = np.abs(merged.F - fit_scale(merged.F, F_calc) * F_calc)
    intensity, sigma = merged.intensities()
    strong = intensity > 2 * sigma  # F > 4 sigma(F), where sigma(F) = sigma(I) / 2F
    return Agreement(off.sum() / merged.F.sum(), len(off), off[strong].sum() / max(merged.F[strong].sum(), 1e-30),
                     int(strong.sum()))


def _contents(crystal, measured):
    """{symbol: atoms in the asymmetric unit} for SFAC and UNIT: those stated, but where they are kinds rather than a formula
    (as ``weigh_solution`` has it) those found."""
    stated, found = measured.elements, crystal.contents
    kinds = sum(without_hydrogen(stated).values()) < 0.6 * sum(without_hydrogen(found).values())
    return {**stated, **found} if kinds else {**found, **stated}


def _remarks(solution, fit):
    """What is known of a solution, in sentences of ASCII."""
    hydrogen = "with" if "H" in solution.elements else "without"
    r_free = getattr(solution.evidence, "r_free", np.nan)
    left_out = f", {r_free:.4f} for reflections left out of the refinement in turn" if np.isfinite(r_free) else ""
    sure = "unknown" if np.isnan(solution.probability) else f"{solution.probability:.3f}"
    hand = [solution.hand.in_words()] if solution.hand else []
    return [f"{solution.verdict.upper()}: probability {sure}, by {SOFTWARE}, {solution.engine}, in {solution.spacegroup.xhm()}",
            f"R1 {fit.r1:.4f} for all {fit.n} data, {fit.r1_strong:.4f} for {fit.n_strong} with F > 4 sigma(F){left_out}; "
            f"{len(solution.elements)} atoms, {hydrogen} hydrogen", *hand]


def is_unsolved(solution: Solution | None) -> bool:
    """Whether there is no structure, or none that explains the data better than wrong atoms do."""
    return solution is None or solution.verdict == WORDS[0]


def as_solved(measured, solution):
    """The data in the space group of a solution, and on its axes where the engine chose others."""
    if solution.orientation != "as input" or not solution.cell.approx(measured.cell, 0.01):
        measured = _turned(measured, solution)
    return moved_to(measured, solution.spacegroup)


def _turned(measured, solution):
    fit = on_axes_of(solution, measured.merge())
    if fit is None:
        raise PhasingError(f"the cell of the solution, {' '.join(f'{x:.4g}' for x in solution.cell.parameters)}, is not of the "
                           "lattice of the data: no files are written")
    return replace(measured, hkl=np.round(measured.hkl @ fit[0].T).astype(measured.hkl.dtype), cell=solution.cell)


def _cif(solution, title, names, wavelength, elements, header, fit):
    block = gemmi.cif.Document().add_new_block(title.replace(" ", "_") or "solution")
    n_ops = len(solution.spacegroup.operations())

    def put(name, value):
        block.set_pair(name, gemmi.cif.quote(str(value)))

    put("_audit_creation_method", SOFTWARE)
    put("_computing_structure_solution", f"{SOFTWARE}, {solution.engine}")
    z = formula_units(header) or n_ops
    numbers = {symbol: round(n * n_ops / z, 2) for symbol, n in elements.items()}
    put("_chemical_formula_sum", " ".join(symbol if numbers[symbol] == 1 else f"{symbol}{numbers[symbol]:g}"
                                          for symbol in shelx_elements(numbers)))
    put("_cell_formula_units_Z", f"{z:g}")
    for name, value in zip(("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
                           solution.cell.parameters):
        put(f"_cell_{name}", f"{value:.6g}")
    put("_cell_volume", f"{solution.cell.volume:.3f}")
    put("_space_group_name_H-M_alt", solution.spacegroup.xhm())
    put("_space_group_IT_number", solution.spacegroup.number)
    put("_diffrn_radiation_wavelength", f"{wavelength:.5f}")
    put("_reflns_number_total", fit.n)
    put("_reflns_number_gt", fit.n_strong)
    put("_reflns_threshold_expression", "I > 2u(I)")
    put("_refine_ls_R_factor_all", f"{fit.r1:.4f}")
    put("_refine_ls_R_factor_gt", f"{fit.r1_strong:.4f}")
    if solution.hand:
        if not solution.hand.why:
            put("_refine_ls_abs_structure_Flack", with_error(solution.hand.x, solution.hand.error))
        put("_refine_ls_abs_structure_details", solution.hand.why or DETAILS.format(solution.hand.n))
    put("_xrd_phase_verdict", solution.verdict)
    if np.isfinite(solution.probability):
        put("_xrd_phase_probability", f"{solution.probability:.3f}")
    symmetry = block.init_loop("_space_group_symop_", ["operation_xyz"])
    for op in solution.spacegroup.operations():
        symmetry.add_row([gemmi.cif.quote(op.triplet())])
    sites = block.init_loop("_atom_site_", ["label", "type_symbol", "fract_x", "fract_y", "fract_z", "U_iso_or_equiv",
                                            "adp_type", "occupancy", "site_symmetry_multiplicity"])
    for name, element, xyz, u, occ in zip(names, solution.elements, solution.fract, solution.u_iso, solution.occ):
        # CIF gives the share of the site that is filled: here all of it, and the site as often as symmetry repeats it
        sites.add_row([name, element, *(f"{x:.5f}" for x in xyz), f"{u:.5f}", "Uiso", "1", str(round(n_ops * occ))])
    return block.as_string()


def _ccp4(solution):
    """The density of the whole cell; P1, since the grid need not have the symmetry of the space group."""
    ccp4 = gemmi.Ccp4Map()
    ccp4.grid = gemmi.FloatGrid(np.ascontiguousarray(solution.rho, np.float32))
    ccp4.grid.set_unit_cell(solution.cell)
    ccp4.grid.spacegroup = gemmi.SpaceGroup("P 1")
    ccp4.update_ccp4_header()
    return ccp4


def write_listing(stem, measured: Measured, solved, words) -> Path:
    """Write ``.log``: what was read, how good it is, which space groups it allows, and what was found, as SHELXT's .lxt does.

    Parameters
    ----------
    stem : path without the suffix; UNSOLVED is added where no structure was found
    solved : job.Solved; words : ``verdict`` of it
    """
    merged, solution, cell = measured.merge(), solved.solution, measured.cell
    contents = " ".join(f"{symbol} {n:g}" for symbol, n in measured.elements.items()) or "nothing stated"
    rows = [SOFTWARE, "", describe_data(measured, merged),
            f"Cell {' '.join(f'{x:g}' for x in cell.parameters)}, {cell.volume:.1f} Å³; in the asymmetric unit {contents}", "",
            "  d_max  d_min  possible  measured    %  times  I/sigma  R_int"]
    for x in measured.shells(merged):
        times, r_int = x.n_measured / max(x.n_unique, 1), "-" if x.r_int is None else f"{x.r_int:.3f}"
        rows.append(f"{x.d_max:7.2f}{x.d_min:7.2f}{x.n_possible:10d}{x.n_unique:10d}{100 * x.n_unique / x.n_possible:5.0f}"
                    f"{times:7.1f}{x.i_over_sigma:9.1f}{r_int:>7}")
    s = intensity_statistics(merged, measured.elements)
    hint = "" if s.n_pairs < LEAST_PAIRS else ": TWINNING IS LIKELY" if s.twinning_likely else ": no sign of twinning"
    rows += ["", f"Wilson plot: B {s.B:.2f} Å²",
             f"<|E^2 - 1|> {s.e2_1:.3f}; expected are 0.968 with a centre of symmetry, 0.736 without",
             f"L-test: <|L|> {s.l:.3f}, <L^2> {s.l2:.3f} of {s.n_pairs} pairs; expected are {s.expected:.3f} of one crystal, "
             f"{s.twinned:.3f} of two equal twin domains{hint}", "",
             "Reflections that are absent in a space group, and their mean intensity over that of all at their resolution:"]
    rows += [f"{entry.n:7d}{entry.mean:8.3f} +- {entry.error:.3f}  {'possible' if entry.allowed else 'no'}: "
             + ", ".join(group.xhm() for group in entry.groups[:MOST_NAMED]) for entry in absences(measured)]
    tried = [f"{group.xhm()} (agreement of the phases {figure:.2f})" for group, figure in solved.tried if np.isfinite(figure)]
    rows += ["", f"Looked for in {', '.join(tried or [group.xhm() for group, _ in solved.tried])}"
             + "; --spacegroup search looks in all that are possible" * (len(solved.tried) == 1)]
    if solution:
        crystal = solution.as_crystal()
        merged = as_solved(measured, solution).merge()
        rows += ["Found in the asymmetric unit: " + " ".join(f"{symbol} {n:g}" for symbol, n in crystal.contents.items()),
                 *_remarks(solution, agreement(merged, np.abs(structure_factors(crystal, merged.hkl))))]
        rows += _ranking(solution) if solution.others else []
    path = Path(f"{stem}{UNSOLVED if is_unsolved(solution) else ''}.log")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([*rows, "", words]) + "\n", encoding="utf-8")
    return path


def _ranking(solution):
    """Lines of a table of a solution and its others."""
    rows = ["", "The best solutions, each in another space group than those above it, or with fewer than 80 % of its atoms",
            "within 0.5 Å of theirs at any allowed origin and hand:",
            "      R1  left out  probability  space group    atoms"]
    for i, one in enumerate([solution, *solution.others], 1):
        r_free = f"{one.evidence.r_free:.3f}" if np.isfinite(one.evidence.r_free) else "-"
        rows.append(f"{i:2d}{one.r1:6.3f}{r_free:>10}{one.probability:13.3f}  {one.spacegroup.xhm():<12}"
                    f"{len(one.elements):8d}  {one.verdict}")
    return rows


def summary(measured: Measured, solution: Solution | None) -> dict:
    """What came of a search, by the names of COLUMNS; nan where it is not known."""
    quality = measured.quality(measured.merge())
    row = {"verdict": WORDS[0], "d_min": round(quality.d_min, 3), "completeness": round(quality.completeness, 4)}
    if solution is None:
        return row | {"message": "no random start led to atoms"}
    merged = as_solved(measured, solution).merge()
    fit = agreement(merged, np.abs(structure_factors(solution.as_crystal(), merged.hkl)))
    return row | {"verdict": solution.verdict, "probability": solution.probability, "R1": round(fit.r1, 4),
                  "R1_strong": round(fit.r1_strong, 4), "R1_left_out": getattr(solution.evidence, "r_free", np.nan),
                  "spacegroup": solution.spacegroup.xhm(), "atoms": len(solution.elements), "engine": solution.engine,
                  "formula": " ".join(f"{s}{n:g}" for s, n in solution.as_crystal().contents.items()),
                  "seconds": round(solution.seconds, 1)}


def describe_data(measured: Measured, merged: Reflections) -> str:
    """What was read and how good it is, in words."""
    q = measured.quality(merged)
    agreement = "none measured twice" if q.r_int is None else f"R_int {q.r_int:.3f}"
    return (f"{measured.files[0]} ({measured.kind}): {q.n_measured} measurements of {q.n_unique} reflections in "
            f"{measured.spacegroup.xhm()}, to {q.d_min:.2f} Å, {100 * q.completeness:.0f} % complete, {agreement}, "
            f"mean I/sigma {q.i_over_sigma:.1f}" + "".join(f"\nNote: {note}." for note in measured.notes))


def verdict(solution: Solution | None, tried=()) -> str:
    """Solved, uncertain or not solved, and why one should believe it, in words."""
    several = f" in any of {len(tried)} space groups" if len(tried) > 1 else ""
    where = f" in {solution.spacegroup.xhm()}" if solution else several
    if solution and len(tried) > 1:
        best = sorted(tried, key=lambda pair: (pair[0].xhm() != solution.spacegroup.xhm(), -pair[1]))
        agreed = ", ".join(f"{group.xhm()} {figure:.2f}" for group, figure in best[:MOST_NAMED])
        where += f" (of {len(tried)} space groups; agreement of the phases: {agreed}{', ...' * (len(tried) > MOST_NAMED)})"
    if solution is None:
        return f"Not solved{where}: no random start led to atoms."
    hydrogen = "with" if "H" in solution.elements else "without"
    found = (f"{len(solution.elements)} atoms, R1 {solution.r1:.3f} {hydrogen} hydrogen, {solution.engine}, {solution.trials} "
             f"random starts, {solution.seconds:.1f} s")
    why = {"solved": "", "uncertain": " Refine it, look at its bonds and difference map, or try more random starts, before you "
           "believe it.", "not solved": " What is written explains the data no better than wrong atoms do."}[solution.verdict]
    evidence = f" {in_words(solution.evidence)}." if solution.evidence else ""
    second = runner_up(solution)
    other = "" if second is None else (f" The runner-up (_b.res), in {second.spacegroup.xhm()}, has R1 {second.r1:.3f} and "
                                       f"probability {second.probability:.3f}: {second.verdict}.")
    hand = f" {solution.hand.in_words()}." if solution.hand else ""
    return f"{solution.verdict.capitalize()}{where}: {found}.{evidence}{why}{hand}{other}"


@contextmanager
def search_on_terminal(minutes):
    """A function that shows the Progress of ``charge_flipping.solve`` as a bar over the minutes that it has, on a terminal."""
    with tqdm(total=60 * minutes or None, desc="search", unit="s", mininterval=0.5, disable=None,
              bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}") as bar:
        def watch(progress):
            sure = "" if np.isnan(progress.probability) else f", probability {progress.probability:.2f}"
            best = f", R1 {progress.r1:.3f}" if np.isfinite(progress.r1) else ""
            bar.set_postfix_str(f"{progress.starts} starts{best}{sure}", refresh=False)
            bar.update(min(progress.seconds, 60 * minutes or progress.seconds) - bar.n)
        yield watch


def watch_on_terminal(stage, seconds):
    """Show what SHELXT is busy with, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[KSHELXT, {seconds:.0f} s: {stage}", end="", file=sys.stderr, flush=True)
