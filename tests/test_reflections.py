"""Reflections: expansion to P1 against direct summation, SHELX files against the format and gemmi's symmetry."""

import gemmi
import numpy as np
import pytest

from xrd_helpers import reflections as refl

CELLS = {"P 1": (6.1, 8.3, 11.7, 81, 95, 104), "P -1": (6.1, 8.3, 11.7, 81, 95, 104),
         "P 1 21 1": (7.1, 9.3, 6.2, 90, 103, 90), "C 1 2 1": (12.1, 6.3, 7.2, 90, 108, 90),
         "P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90), "P 1 21/n 1": (7.3, 9.1, 8.4, 90, 99, 90),
         "I 1 2/a 1": (11.3, 5.1, 9.4, 90, 97, 90), "C 1 2/c 1": (12.3, 6.1, 9.4, 90, 107, 90)}


def brute_force(hkl, fract, weights, spacegroup):
    """F(h) = Σ_ops Σ_atoms w exp(2πi h·(R x + t)), over all operators, centring included: (n,) complex."""
    sf = np.zeros(len(hkl), complex)
    for op in spacegroup.operations():
        for x, w in zip(fract, weights):
            sf += w * np.exp(2j * np.pi * (hkl @ np.array(op.apply_to_xyz(list(x)))))
    return sf


@pytest.mark.parametrize("name", CELLS)
def test_expansion_agrees_with_direct_summation_on_the_whole_sphere(name):
    cell, spacegroup = gemmi.UnitCell(*CELLS[name]), gemmi.SpaceGroup(name)
    rng = np.random.default_rng(1)
    fract, weights = rng.random((3, 3)), [3.0, 1.0, 2.0]
    hkl = refl.unique_hkl(cell, spacegroup, 1.2)
    p1 = refl.expand_to_p1(hkl, spacegroup)
    sf = p1.structure_factors(brute_force(hkl, fract, weights, spacegroup))
    np.testing.assert_allclose(sf, brute_force(p1.hkl, fract, weights, spacegroup), atol=1e-9)
    # every reflection of the sphere once, except the systematic absences
    sphere = gemmi.make_miller_array(cell, gemmi.SpaceGroup("P 1"), 1.2)
    absent = spacegroup.operations().systematic_absences(sphere)
    sphere = sphere[~absent]
    expected = {tuple(h) for h in np.concatenate([sphere, -sphere])}
    assert {tuple(h) for h in p1.hkl} == expected and len(p1.hkl) == len(expected)


def test_table_refuses_what_is_not_merged():
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    for hkl, F in [([[1, 0, 0], [1, 0, 0]], [1, 1]), ([[0, 0, 0]], [1]), ([[1, 0, 0]], [-1]), ([[1, 0, 0]], [np.nan])]:
        with pytest.raises(refl.ReflectionError):
            refl.Reflections(np.array(hkl), np.array(F, float), np.ones(len(F)), cell, spacegroup)


def test_d_is_that_of_the_cell():
    cell = gemmi.UnitCell(*CELLS["P -1"])
    table = refl.Reflections(np.array([[1, -2, 3]]), [1.0], [0.1], cell, gemmi.SpaceGroup("P -1"))
    star = np.linalg.inv(np.array(cell.orth.mat.tolist()))
    assert table.d[0] == pytest.approx(1 / np.linalg.norm(np.array([1, -2, 3]) @ star), rel=1e-12)


@pytest.mark.parametrize("name, latt, symm", [  # the SHELX manual's tables, written out by hand
    ("P 1", -1, []), ("P -1", 1, []), ("P 1 21 1", -1, ["-X, 0.5+Y, -Z"]),
    ("P 1 21/c 1", 1, ["-X, 0.5+Y, 0.5-Z"]), ("C 1 2 1", -7, ["-X, Y, -Z"]), ("C 1 2/c 1", 7, ["-X, Y, 0.5-Z"]),
    ("C 1 c 1", -7, ["X, -Y, 0.5+Z"]), ("P 31", -1, ["-Y, X-Y, 2/6+Z", "-X+Y, -X, 4/6+Z"]),
    ("P 21 21 21", -1, ["0.5-X, -Y, 0.5+Z", "-X, 0.5+Y, 0.5-Z", "0.5+X, 0.5-Y, -Z"])])
def test_shelx_symmetry(name, latt, symm):
    found = refl.shelx_symmetry(gemmi.SpaceGroup(name))
    assert found[0] == latt and sorted(found[1]) == sorted(symm)


@pytest.mark.parametrize("name", [sg.xhm() for sg in gemmi.spacegroup_table_itb()][::3])
def test_shelx_symmetry_generates_the_group(name):
    spacegroup = gemmi.SpaceGroup(name)
    try:
        latt, symm = refl.shelx_symmetry(spacegroup)
    except refl.ReflectionError as error:
        assert "origin choice 2" in str(error) or "LATT" in str(error)
        return
    ops = [gemmi.Op("x,y,z")] + [gemmi.Op(s.lower().replace(" ", "")) for s in symm]
    if latt > 0:
        ops += [gemmi.Op("-x,-y,-z").combine(op).wrap() for op in ops]
    ops = [op.translated(list(c)).wrap() for op in ops for c in spacegroup.operations().cen_ops]
    assert len(ops) == len(spacegroup.operations())
    assert {op.triplet() for op in ops} == {op.triplet() for op in spacegroup.operations()}


@pytest.fixture
def table():
    cell, spacegroup = gemmi.UnitCell(*CELLS["P 1 21/c 1"]), gemmi.SpaceGroup("P 1 21/c 1")
    hkl = refl.unique_hkl(cell, spacegroup, 1.0)
    F = 5 + 200 * np.random.default_rng(2).random(len(hkl))
    return refl.Reflections(hkl, F, 0.02 * F, cell, spacegroup)


def test_shelx_files_read_back(table, tmp_path):
    refl.write_shelx(tmp_path / "job", table, ["O", "C", "C", "H"], title="a test")
    lines = (tmp_path / "job.ins").read_text().splitlines()
    assert lines[0] == "TITL a test"
    assert lines[1] == "CELL 0.71073 7.3000 9.1000 8.4000 90.000 111.000 90.000"
    assert lines[2] == "ZERR 4 0.001 0.001 0.001 0.000 0.010 0.000"
    assert lines[3:] == ["LATT 1", "SYMM -X, 0.5+Y, 0.5-Z", "SFAC C H O", "UNIT 8 4 4", "HKLF 4", "END"]
    records = (tmp_path / "job.hkl").read_text().splitlines()
    assert all(len(record) == 32 for record in records) and len(records) == len(table) + 1
    assert records[-1] == "   0   0   0    0.00    0.00   0"
    back = refl.read_shelx_hkl(tmp_path / "job.hkl", table.cell, table.spacegroup)
    order = {tuple(h): i for i, h in enumerate(back.hkl)}
    rows = [order[tuple(h)] for h in table.hkl]
    scale = np.sqrt(9999.0) / table.F.max()
    np.testing.assert_allclose(back.F[rows] ** 2, (table.F * scale) ** 2, atol=0.0051)
    np.testing.assert_allclose(back.sigF[rows], 0.02 * table.F * scale, rtol=0.03, atol=0.01)


def test_sigma_is_never_written_as_zero(table, tmp_path):
    refl.write_shelx(tmp_path / "job", refl.Reflections(table.hkl, table.F, 0 * table.F, table.cell, table.spacegroup),
                     ["C"])
    assert refl.read_shelx_records(tmp_path / "job.hkl")[2].min() >= 0.01


def test_merging_weights_equivalents(tmp_path):
    # P21/c: (1 2 3) and (-1 2 -3) are equivalent, and their Friedel mates; F² 100 ± 1 and 110 ± 2
    cell, spacegroup = gemmi.UnitCell(*CELLS["P 1 21/c 1"]), gemmi.SpaceGroup("P 1 21/c 1")
    merged = refl.merge([[1, 2, 3], [-1, 2, -3], [2, 1, 1]], [100, 110, -3], [1, 2, 1], cell, spacegroup)
    by_F = sorted(zip(merged.F, merged.sigF))
    assert len(merged) == 2 and by_F[0] == (0.0, 1.0)
    assert by_F[1][0] ** 2 == pytest.approx((100 / 1 + 110 / 4) / (1 + 1 / 4))


def test_hklf_3_holds_amplitudes(tmp_path):
    (tmp_path / "a.hkl").write_text("   1   2   3   12.00    0.10   1\n   0   0   0    0.00    0.00   0\n")
    cell, spacegroup = gemmi.UnitCell(*CELLS["P -1"]), gemmi.SpaceGroup("P -1")
    assert refl.read_shelx_hkl(tmp_path / "a.hkl", cell, spacegroup, hklf=3).F[0] == pytest.approx(12)
    assert refl.read_shelx_hkl(tmp_path / "a.hkl", cell, spacegroup).F[0] == pytest.approx(12**0.5)


def test_fortran_numbers_without_a_point_have_two_decimals(tmp_path):
    (tmp_path / "a.hkl").write_text("   1   2   3    1200      10\n")
    assert refl.read_shelx_records(tmp_path / "a.hkl")[1:] == (12.0, 0.1)


@pytest.mark.parametrize("line", ["   1   2", "   1   2   x   12.00    0.10", "   1   2   3     nan    0.10"])
def test_a_malformed_line_is_named(tmp_path, line):
    path = tmp_path / "bad.hkl"
    path.write_text("   1   2   3   12.00    0.10   1\n" + line + "\n")
    with pytest.raises(refl.ReflectionError, match="bad.hkl, line 2"):
        refl.read_shelx_records(path)
