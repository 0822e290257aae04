"""Flack's x of twins whose shares are known, by a sum over atoms written out here; the other hand in every space group."""

from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest

from makers import REAL, make_crystal, random_crystal
from xrd_helpers.cif import read_cif
from xrd_helpers.crystals import all_operators
from xrd_helpers.phasing import Solution, output, solve_measured
from xrd_helpers.phasing.absolute_structure import (
    Hand,
    dispersion_read,
    flack,
    friedel_pairs,
    inverted,
    settled,
    with_error,
)
from xrd_helpers.reflection_files import read_measured
from xrd_helpers.reflections import Measured

WAVELENGTH = 1.54178


def amplitudes(crystal, hkl, wavelength=WAVELENGTH):
    """|F| (n,) with f' and f'': Σ occ (f + f' + i f'') exp(-8π² U s²) exp(2πi h·(R x + t)) over atoms and operators."""
    sf, stol2 = 0, 0.25 / crystal.cell.calculate_d_array(np.asarray(hkl, np.int32)) ** 2
    rot, tran = all_operators(crystal.spacegroup)
    for symbol, x, u, occ in zip(crystal.elements, crystal.fract, crystal.u_iso, crystal.occ):
        element = gemmi.Element(symbol)
        f = np.array([element.it92.calculate_sf(stol2=s) for s in stol2])
        f = f + complex(*gemmi.cromer_liberman(z=element.atomic_number, energy=12398.42 / wavelength))
        waves = sum(np.exp(2j * np.pi * hkl @ (r @ x + t)) for r, t in zip(rot, tran))
        sf = sf + occ * f * np.exp(-8 * np.pi**2 * u * stol2) * waves
    return np.abs(sf)


def data_of(crystal, share=0.0, noise=0.01, d_min=0.9, seed=0, **known):
    """The whole sphere of a twin by inversion, of which `share` is the other hand, with errors."""
    hkl = gemmi.make_miller_array(crystal.cell, gemmi.SpaceGroup("P 1"), d_min).astype(int)
    hkl = np.concatenate([hkl, -hkl])
    I = (1 - share) * amplitudes(crystal, hkl) ** 2 + share * amplitudes(crystal, -hkl) ** 2
    sigma = noise * I + 0.002 * I.mean()
    I = 0.4 * (I + sigma * np.random.default_rng(seed).standard_normal(len(I)))
    return Measured(hkl, I, 0.4 * sigma, crystal.cell, crystal.spacegroup, crystal.contents,
                    **{"wavelength": WAVELENGTH, "files": (Path("made.hkl"),), "kind": "made up", **known})


def solution_of(crystal, rho=None):
    return Solution(crystal.fract, np.ones(len(crystal.fract)), crystal.elements, crystal.u_iso, crystal.occ, rho, crystal.cell,
                    crystal.spacegroup, 0.02, 1.0, 1, 1.0, "made")


@pytest.mark.parametrize("name", ["P 1", "P 1 21 1", "C 1 c 1"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_the_other_hand_comes_back(name, share):
    crystal = random_crystal(name)
    data = data_of(crystal, share)
    hand = flack(crystal, data)
    assert hand.error < 0.03 and abs(hand.x - share) < 4 * hand.error and hand.n > 100
    assert flack(replace(crystal, fract=-crystal.fract), data).x == pytest.approx(1 - hand.x, abs=1e-6)
    found = settled(solution_of(crystal), data)
    assert found.hand.known and found.hand.inverted == (share == 1)
    expected = -crystal.fract if share == 1 else crystal.fract
    np.testing.assert_allclose((found.fract - expected + 0.5) % 1, 0.5, atol=1e-9)
    words = found.hand.in_words()
    assert ("most of the crystal, a twin" in words) == (share == 0.3) and ("were inverted" in words) == (share == 1)


def test_the_uncertainty_is_that_of_repeated_measurements():
    crystal = random_crystal("P 1 21 1")
    found = [flack(crystal, data_of(crystal, 0.2, noise=0.05, d_min=1.2, seed=seed)) for seed in range(24)]
    off = np.array([(hand.x - 0.2) / hand.error for hand in found])
    assert abs(off.mean()) < 0.75 and 0.6 < off.std() < 1.5


def test_a_pair_is_a_reflection_and_its_mate_averaged_over_equivalents():
    # point group 2: (1 2 3) and (-1 2 -3) are equal, and mates of (-1 -2 -3) and (1 -2 3); (1 0 3) is its own mate
    rows = [(1, 2, 3, 10, 1), (-1, 2, -3, 12, 1), (-1, -2, -3, 20, 1), (1, -2, 3, 22, 1), (1, 0, 3, 5, 1), (-1, 0, -3, 6, 1),
            (2, 1, 1, 7, 1), (-2, -1, -2, 8, 2), (2, 1, 2, 9, 3), (0, 1, 0, 9, 1), (0, -1, 0, 9, 1)]
    h, k, l, intensity, sigma = np.array(rows).T
    data = replace(data_of(random_crystal("P 1 21 1")), hkl=np.stack([h, k, l], 1), intensity=intensity.astype(float),
                   sigma=sigma.astype(float))
    hkl, intensity, sigma = friedel_pairs(data)
    assert hkl.tolist() == [[2, 1, 2], [1, 2, 3]]
    np.testing.assert_allclose(intensity, [[9, 8], [11, 21]])
    np.testing.assert_allclose(sigma, [[3, 2], [0.5**0.5, 0.5**0.5]])


def test_what_cannot_be_told_is_said():
    crystal = random_crystal("P 1 21 1")
    data = data_of(crystal)
    assert "no file states the wavelength" in flack(crystal, replace(data, wavelength=0.0)).in_words()
    assert "f'' is not known at 0.0251 Å" in flack(crystal, replace(data, wavelength=0.0251)).in_words()
    merged = data.merge()
    apart = replace(data, hkl=merged.hkl, intensity=merged.F**2, sigma=merged.F * merged.sigF)
    assert "Friedel pairs were not measured apart" in flack(crystal, apart).in_words()
    alike = replace(crystal, elements=("S",) * 7)  # all atoms have one phase more, and mates are equal
    assert "make no difference between Friedel mates" in flack(alike, data_of(alike)).in_words()
    light = replace(crystal, elements=tuple("OOONCCC"))
    hand = flack(light, data_of(light, noise=0.3))
    assert hand.error > 0.3 and not hand.known and "the data do not tell the hand" in hand.in_words()
    assert "is a twin by inversion, or has a centre" in Hand(0.48, 0.02, 100).in_words()
    assert settled(solution_of(random_crystal("P -1")), data_of(random_crystal("P -1"))).hand is None


def test_dispersion_that_the_file_states_is_taken():
    crystal = random_crystal("P 1 21 1")
    data = data_of(crystal)
    lines = {"S": gemmi.cromer_liberman(z=16, energy=12398.42 / WAVELENGTH)}
    for symbol in "CNO":
        lines[symbol] = gemmi.cromer_liberman(z=gemmi.Element(symbol).atomic_number, energy=12398.42 / WAVELENGTH)

    def with_disp(scale):
        header = {"DISP": tuple(f"DISP ${symbol} {a:.6f} {scale * b:.6f} 12.3" for symbol, (a, b) in lines.items())}
        assert set(dispersion_read(header)) == set("SCNO")
        return flack(crystal, replace(data, header=header))

    same, twice = with_disp(1), with_disp(2)
    assert same.x == pytest.approx(flack(crystal, data).x, abs=1e-3)
    assert 1 - 2 * twice.x == pytest.approx((1 - 2 * same.x) / 2, rel=0.05), "twice the signal expected, half of it seen"
    assert "make no difference between Friedel mates" in with_disp(0).in_words()


ACENTRIC = ["P 1", "C 1 c 1", "P 21 21 21", "P 41", "P 43", "I 41", "F d d 2", "P 31 2 1", "P 61", "I 41 2 2", "I -4 2 d",
            "P 43 21 2", "F 41 3 2", "P 41 3 2", "I 41 c d", "R 3 2:H"]


@pytest.mark.parametrize("name", ACENTRIC)
def test_the_other_hand_scatters_as_the_mates_do(name):
    group = gemmi.SpaceGroup(name)
    cell = {"cubic": (9, 9, 9, 90, 90, 90), "tetragonal": (7, 7, 9, 90, 90, 90), "hexagonal": (7, 7, 9, 90, 90, 120),
            "trigonal": (7, 7, 9, 90, 90, 120), "orthorhombic": (7, 8, 9, 90, 90, 90), "monoclinic": (7, 8, 9, 90, 101, 90),
            "triclinic": (6.1, 7.3, 8.7, 81, 95, 104)}[group.crystal_system_str()]
    crystal = make_crystal("SOC", name, cell, u=(0.02, 0.05))
    other = inverted(solution_of(crystal))
    hkl = np.array([[1, 2, 3], [-2, 1, 4], [3, 1, -2], [2, 2, 0], [1, 1, 3], [4, 2, 2]])
    np.testing.assert_allclose(amplitudes(other.as_crystal(), hkl), amplitudes(crystal, -hkl), atol=1e-9)
    partner = {"P 41": "P 43", "P 43": "P 41", "P 31 2 1": "P 32 2 1", "P 61": "P 65", "P 43 21 2": "P 41 21 2",
               "P 41 3 2": "P 43 3 2"}.get(name, name)
    assert other.spacegroup.xhm() == partner
    back = inverted(other)
    assert back.spacegroup.xhm() == name
    np.testing.assert_allclose((back.fract - crystal.fract + 0.5) % 1, 0.5, atol=1e-9)


def test_every_group_without_a_centre_has_another_hand():
    for group in gemmi.spacegroup_table():
        if not group.is_centrosymmetric():
            other = inverted(solution_of(make_crystal("C", group.xhm(), (9, 9, 9, 90, 90, 90)))).spacegroup
            assert (other.xhm() == group.xhm()) != group.is_enantiomorphic(), group.xhm()


def test_the_map_is_inverted_with_the_atoms():
    crystal = make_crystal("S", "F d d 2", (7, 8, 9, 90, 90, 90), [[0.11, 0.22, 0.33]])

    def rho(x, y, z):  # of waves that a grid of 9 x 10 x 7 holds
        return np.cos(2 * np.pi * (2 * x + 0.1)) + 0.3 * np.cos(2 * np.pi * (x - 3 * y + 2 * z + 0.2)) + 0.1

    grid = np.meshgrid(*(np.arange(n) / n for n in (9, 10, 7)), indexing="ij")
    other = inverted(solution_of(crystal, rho(*grid)))
    np.testing.assert_allclose(other.rho, rho(0.25 - grid[0], 0.25 - grid[1], -grid[2]), atol=1e-9)


@pytest.mark.parametrize("value, error, text", [  # as Acta Cryst. has them: one digit or two of the uncertainty, up to 19
    (0.031, 0.04, "0.03(4)"), (0.127, 0.15, "0.13(15)"), (-0.6, 0.32, "-0.6(3)"), (-0.549, 3.0, "-1(3)"),
    (0.5, 0.0021, "0.500(2)"), (0.0312, 0.0195, "0.03(2)"), (0.0312, 0.019, "0.031(19)")])
def test_uncertainties_stand_in_brackets(value, error, text):
    assert with_error(value, error) == text


def test_the_hand_stands_in_the_files(tmp_path):
    crystal = random_crystal("P 1 21 1")
    found = {}
    for share in (0, 1):
        data = data_of(crystal, noise=0.02)
        data = replace(data, hkl=(1 - 2 * share) * data.hkl)  # the same intensities, so the same start, of the other hand
        solved = solve_measured(data, trials=4, seed=2)
        solution = found[share] = solved.solution
        assert solution.accepted and solution.hand.known and abs(solution.hand.x) < 4 * solution.hand.error < 0.3
        # whatever the shift along the polar axis: the atoms have the Friedel differences of the crystal
        measured, found_ = (amplitudes(one, data.hkl) ** 2 - amplitudes(one, -data.hkl) ** 2
                            for one in (crystal, solution.as_crystal()))
        assert np.corrcoef(measured * (1 - 2 * share), found_)[0, 1] > 0.9
    assert found[0].hand.inverted != found[1].hand.inverted, "the same start in both"
    paths = {path.suffix: path for path in output.write_solution(tmp_path / "made", solution, data)}
    item = gemmi.cif.read(str(paths[".cif"])).sole_block().find_value
    assert item("_refine_ls_abs_structure_Flack") == with_error(solution.hand.x, solution.hand.error)
    assert f"{solution.hand.n} quotients [(I+)-(I-)]/[(I+)+(I-)]" in item("_refine_ls_abs_structure_details")
    text = " ".join(line[4:] for line in paths[".res"].read_text().splitlines() if line.startswith("REM"))
    assert solution.hand.in_words() in text and solution.hand.in_words() in output.verdict(*solved)
    assert solution.hand.in_words() in output.write_listing(tmp_path / "made", data, solved, "").read_text()


@pytest.mark.skipif(not (REAL / "measured").is_dir(), reason="no measured reflections: set XRD_REAL_DATA")
def test_light_atoms_and_molybdenum_tell_nothing():
    path = REAL / "measured" / "4035731.cif"  # C14 H9 N3 O3 in P 21, whose authors did not determine the hand either
    hand = flack(read_cif(path), read_measured(path))
    assert hand.n > 400 and hand.error > 1 and not hand.known
