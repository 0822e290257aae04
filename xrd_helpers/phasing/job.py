"""One data set from its reflections to a structure: what ``xrd solve`` and the notebooks do."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np

from ..config import UserError
from ..crystals import count_elements
from ..reflections import Measured, Reflections
from ..shelx import formula_units
from . import absolute_structure, charge_flipping, shelxt
from .charge_flipping import ATOM_VOLUME
from .output import as_solved, is_unsolved
from .peaks import without_hydrogen
from .placing import TOLD_APART, Arrangement, Part, PlacingError, completed, place, preferences
from .solution import PhasingError, Solution
from .spacegroups import candidates, laue_group, moved_to, without_absences
from .verdict import weigh_solution

LEAST = 20  # reflections, fewer than which are no data
MINUTES_KNOWN = 5.0  # that a search for known molecules may take
SEVERAL = 5  # solutions that are told of


class Solved(NamedTuple):
    """solution : None where no start gave any atoms
    tried : space groups in which it was looked for, with the agreement of the phases as in ``Solution.figure_of_merit``
    """

    solution: Solution | None
    tried: list[tuple[gemmi.SpaceGroup, float]]


def in_group(measured: Measured, spacegroup) -> Measured:
    """The same data in another space group of their Laue class; what is in the cell stays the same."""
    if isinstance(spacegroup, str):
        found = gemmi.find_spacegroup_by_name(spacegroup, measured.cell.alpha, measured.cell.gamma)
        if found is None:
            raise UserError(f"{spacegroup!r} is no space group: write it as in 'P 1 21/c 1'")
        spacegroup = found
    if laue_group(spacegroup) != laue_group(measured.spacegroup):
        raise UserError(f"{spacegroup.xhm()} is not of the Laue class of {measured.spacegroup.xhm()}, in which the data are: "
                        "correct it, or the cell and symmetry of the data")
    return moved_to(measured, spacegroup)


def prepared(measured: Measured, spacegroup="", d_min=0.0) -> Measured:
    """The data as they are to be phased: in a space group (``in_group``), cut at d_min (Å).

    UserError if that is no space group of their Laue class, or what is left is too little for any structure.
    """
    if spacegroup:
        measured = in_group(measured, spacegroup)
    inside = measured.cell.calculate_d_array(measured.hkl.astype(np.int32)) >= d_min
    if not inside.any():
        raise UserError(f"nothing was measured to --d-min {d_min:g} Å")
    if np.linalg.matrix_rank(measured.hkl[inside]) < 3:
        raise UserError(f"{measured.files[0]}: its reflections lie in one plane or row: no structure follows from them")
    measured = replace(measured, hkl=measured.hkl[inside], intensity=measured.intensity[inside], sigma=measured.sigma[inside])
    if (n := len(measured.merge())) < LEAST:
        raise UserError(f"{measured.files[0]}: {n} reflections are too few: {LEAST} different ones are "
                        "the least with which a structure is looked for")
    return measured


def read_formula(text, option="--formula") -> dict[str, float]:
    """{symbol: number} of a formula as C8H9NO2 or "C8 H9 N O2"; UserError, which names the option, if it is none."""
    numbers = {}
    for word in text.replace(",", " ").split():
        word = word.capitalize() if word.islower() else word
        parts = re.findall(r"([A-Z][a-z]?)(\d*\.?\d*)", word)
        if "".join(symbol + n for symbol, n in parts) != word:
            raise UserError(f"{option}: {word!r} is no formula: write it as C8H9NO2 or 'C8 H9 N O2'")
        for symbol, n in parts:
            if not gemmi.Element(symbol).atomic_number:
                raise UserError(f"{option}: {symbol!r} is no element")
            numbers[symbol] = numbers.get(symbol, 0) + float(n or 1)
    return count_elements(numbers)


def with_contents(measured: Measured, formula="", z=0, elements="") -> Measured:
    """The data with what is said to be in the cell, as far as it is possible; `notes` say what was assumed.

    Parameters
    ----------
    formula : of one formula unit, as C8H9NO2; z : formula units in the cell, 0 for those that fill it best
    elements : kinds of atoms, as "C H N O"; with a number, as "C8 H9 N O2", it is a formula

    A formula of the file stays where neither is given. One that leaves or wants a volume for each atom that is not hydrogen
    that no crystal has (``_possible``) is set aside: its ratios are kept if some number of formula units fills the cell, or
    else its elements alone.
    """
    if formula and elements:
        raise UserError("give --formula or --elements, not both")
    kinds = bool(elements) and not re.search(r"\d", elements)
    given = read_formula(formula) if formula else read_formula(elements, "--elements")
    if z and (not given or kinds):
        raise UserError("--z goes with a formula: give it with --formula, as C8H9NO2")
    note, header = "", measured.header
    if given:
        header = {name: lines for name, lines in header.items() if name not in ("SFAC", "UNIT", "DISP")}
    if kinds:
        return replace(measured, elements=given, header=header)
    if given:
        contents, units = _filling(given, measured, z)
        if not z:
            note = f"{units:g} formula units in the cell fill it best ({_volume(contents, measured):.1f} Å³ for each atom)"
        header = {**header, "ZERR": (f"ZERR {units:g} " + " ".join(measured.header["ZERR"][0].split()[2:8]),)} \
            if formula_units(header) else header
        if not _possible(contents, measured):
            raise UserError(f"the formula and {units:g} formula units leave {_volume(contents, measured):.3g} Å³ for each atom "
                            "that is not hydrogen, and 18 are usual: correct --formula or --z")
    elif not measured.elements:
        n = round(measured.cell.volume / len(measured.spacegroup.operations()) / ATOM_VOLUME)
        contents, note = {}, (f"nothing states the elements: every atom is taken for carbon, about {n} in the asymmetric unit; "
                              "give --formula or --elements if you know more")
    elif _possible(measured.elements, measured):
        return measured
    else:
        contents, units = _filling(measured.elements, measured)
        header = {name: lines for name, lines in header.items() if name not in ("SFAC", "UNIT", "DISP")}
        kept = f"its ratios are kept, with {units / len(measured.spacegroup.operations()):g} times as many atoms"
        if len(set(measured.elements.values())) == 1 or not _possible(contents, measured):
            contents, kept = dict.fromkeys(measured.elements, 1.0), "its elements are kept, their numbers set aside"
        note = (f"{measured.files[-1]}: its formula leaves {_volume(measured.elements, measured):.3g} Å³ for each atom that is "
                f"not hydrogen, and 18 are usual: {kept}")
    return replace(measured, elements=contents, header=header, notes=measured.notes + (note,) * bool(note))


def _filling(formula, measured, z=0):
    """({symbol: atoms in the asymmetric unit}, formula units in the cell): `z`, or as many as fill the cell best, whole
    numbers of them in the asymmetric unit or a whole number on each special position."""
    n_ops = len(measured.spacegroup.operations())
    units = [z] if z else [n_ops * n for n in range(1, 13)] + [n_ops // n for n in (2, 3, 4, 6, 8, 12) if n_ops % n == 0]
    contents = [{symbol: n * count / n_ops for symbol, n in formula.items()} for count in units]
    return min(zip(contents, units), key=lambda one: abs(np.log(_volume(one[0], measured) / ATOM_VOLUME)))


def _volume(contents, measured):
    """Å³ for each atom that is not hydrogen, or each atom where there is no other."""
    heavy = sum((without_hydrogen(contents) or contents).values())
    return measured.cell.volume / len(measured.spacegroup.operations()) / max(heavy, 1e-9)


def _possible(contents, measured):
    """Whether there are crystals as dense and as empty: 10 to 40 Å³ for each atom in organic ones, of others 5.7 in diamond
    and 118 in caesium."""
    organic = {"C", "H"} <= set(contents) and all(gemmi.Element(symbol).atomic_number <= 18 for symbol in contents)
    low, high = (10, 40) if organic else (5.5, 120)
    return low <= _volume(contents, measured) <= high


def phase(reflections: Reflections, elements=(), trials=None, seed=0, groups=None, predicted=None, effort="normal",
          minutes=None, watch=None, several=1) -> Solution | None:
    """``charge_flipping.solve``, or None where it cannot start: one crystal does not end the others.

    Where each of `elements` is there once, and they are too few for the cell, they are kinds rather than a formula: carbon
    fills them up, and how much hydrogen there is stays open. So it does where there are none.
    """
    volume = reflections.cell.volume / len(reflections.spacegroup.operations())
    contents, n = count_elements(elements), round(volume / ATOM_VOLUME)
    known = sum(without_hydrogen(contents).values())
    if set(contents.values()) <= {1.0} and known < 0.6 * n:
        contents["C"] = contents.get("C", 0) + n - known
        contents.pop("H", None)  # one H in all would make a right structure look wrong
    try:
        return charge_flipping.solve(reflections, contents, groups=groups, predicted=predicted, trials=trials, seed=seed,
                                     effort=effort, minutes=minutes, several=several, watch=watch)
    except PhasingError:
        return None


def solve_measured(measured: Measured, extra: Reflections | None = None, search=False, trials=None, seed=0,
                   effort="normal", minutes=None, watch=None, several=1) -> Solved:
    """Charge flipping, and atoms in the space group of the data or in one that their absences allow.

    Parameters
    ----------
    measured : unmerged reflections, cell, space group, elements
    extra : predicted reflections, a guide beside the measured ones (``charge_flipping.solve``)
    search : whether the space group is to be found, among those that the absences allow (``spacegroups.candidates``). The
        two groups of an enantiomorphic pair, as P 41 and P 43, explain data without anomalous scattering equally well: it is
        that of the hand in which the phases happened to come out.
    effort, minutes, several, watch : how far the search goes, and who is told of it (``charge_flipping.solve``)
    """
    measured, groups = _where(measured, search)
    solution = phase(measured.merge(), measured.elements, trials, seed, groups, extra, effort, minutes, watch,
                     several)
    return Solved(in_its_hand(solution, measured),
                  list(solution.groups) if solution else [(group, float("nan")) for group in groups])


def in_its_hand(solution: Solution | None, measured: Measured) -> Solution | None:
    """A solution in the hand that anomalous scattering tells, with what it says (``absolute_structure.settled``)."""
    if is_unsolved(solution) or solution.spacegroup.is_centrosymmetric():
        return solution
    try:
        return absolute_structure.settled(solution, as_solved(measured, solution))
    except PhasingError:  # of another lattice
        return solution


def _where(measured, search):
    """The data, and the space groups in which their structure may be: their own, or those that their absences allow."""
    if not search:
        return measured, [measured.spacegroup]
    return replace(measured, spacegroup=without_absences(measured.spacegroup)), candidates(measured)


def solve_with_molecules(measured: Measured, molecules, search=False, minutes=MINUTES_KNOWN, seed=0, watch=None,
                         several=1) -> Solved:
    """Known molecules placed in the cell; molecules as ``known_molecule.read_molecules`` gives them, see ``placing.place``."""
    measured, groups = _where(measured, search)
    known, counts = zip(*molecules)
    solution = place(measured.merge(), known, list(counts), minutes=minutes, seed=seed, groups=groups, several=several,
                     watch=watch)
    return Solved(in_its_hand(solution, measured), [(solution.spacegroup, float("nan"))])


class Alternative(NamedTuple):
    """One of several molecules that may be in the crystal.

    solved : None where it cannot fill the cell, which `refused` says; probability : that it is the one, if one of them is
    """

    name: str
    solved: Solved | None
    probability: float = 0.0
    refused: str = ""


def solve_with_alternatives(measured: Measured, alternatives, search=False, minutes=MINUTES_KNOWN, seed=0, watch=None):
    """``solve_with_molecules`` of each of several; list of Alternative, the likeliest first.

    Parameters
    ----------
    alternatives : {name: list of (KnownMolecule, count)}; minutes : for each

    Raises
    ------
    PlacingError
        If none of them can fill the cell.
    """
    found, refused = [], []
    for name, molecules in alternatives.items():
        try:
            found.append(Alternative(name, solve_with_molecules(measured, molecules, search, minutes, seed, watch)))
        except PlacingError as error:
            refused.append(Alternative(name, None, refused=str(error)))
    if not found:
        raise PlacingError(refused[0].refused)
    p = preferences([one.solved.solution for one in found]).tolist()
    return sorted((one._replace(probability=x) for one, x in zip(found, p)), key=lambda one: -one.probability) + refused


def compared(alternatives) -> str:
    """Which of several molecules it is, in words; those that the data do not tell apart are all named."""
    rows = [f"{one.name}: {one.refused}" if one.refused else
            f"{one.name}: R1 {one.solved.solution.r1:.3f}, {one.solved.solution.evidence.r_free:.3f} for reflections left out, "
            f"{one.solved.solution.verdict}; probability {one.probability:.3f}, if it is one of these" for one in alternatives]
    total = np.cumsum([one.probability for one in alternatives])
    likely = [one.name for one in alternatives[:int(np.searchsorted(total, TOLD_APART)) + 1]]
    said = (f"The data prefer {likely[0]}:" if len(likely) == 1 else
            f"The data do not tell {' from '.join(likely)}. The first of them:")
    return "\n".join([*rows, said])


def solve_with_fragment(measured: Measured, fragments, minutes=MINUTES_KNOWN, seed=0, watch=None) -> Solved:
    """Known parts of the molecules placed in the cell, the other atoms from maps with their phases."""
    known, counts = zip(*fragments)
    parts = tuple(Part(row, 1) for row, n in enumerate(counts) for _ in range(n))
    merged = measured.merge()
    chosen = Arrangement(parts, Fraction(1), float("nan"))
    solution = place(merged, known, minutes=minutes, seed=seed, chosen=chosen, watch=watch)
    solution = in_its_hand(completed(solution, merged, measured.elements), measured)
    return Solved(solution, [(measured.spacegroup, float("nan"))])


def solve_with_shelxt(measured: Measured, folder, program, extra=None, timeout=600.0, watch=None) -> Solved:
    """The same by SHELXT, which finds the space group by itself and takes predicted reflections for measured ones; see
    ``shelxt.run_shelxt`` for what it raises."""
    elements = measured.elements or count_elements(("C", "H", "N", "O"))
    solution = shelxt.run_shelxt(_together(measured, extra), elements, Path(folder), timeout, program, watch=watch)
    if extra is not None:  # predicted amplitudes are no evidence
        solution = replace(solution, evidence=weigh_solution(solution, measured.merge(), elements))
    return Solved(in_its_hand(solution, measured), [(solution.spacegroup, solution.figure_of_merit)])


def _together(measured, extra):
    merged = measured.merge()
    if extra is None:
        return merged
    columns = (np.concatenate([getattr(part, name) for part in (merged, extra)]) for name in ("hkl", "F", "sigF"))
    return Reflections(*columns, merged.cell, merged.spacegroup)
