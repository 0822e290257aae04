"""Structure factors: closed forms, sums over all operators in numpy, gemmi's direct summation on real crystals."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch

from makers import REAL, TRICLINIC, make_crystal
from xrd_helpers import ROOT
from xrd_helpers import structure_factors as sf_module
from xrd_helpers.cif import read_cif
from xrd_helpers.crystals import Crystal, CrystalError, all_operators
from xrd_helpers.structure_factors import CrystalBatch, fit_scale, structure_factors

SHIPPED = sorted((ROOT / "data" / "molecules").glob("*.cif")) + sorted((ROOT / "data" / "simple").glob("*.cif"))
GROUPS = ("P 1 21/c 1", "P 1 21 1", "C 1 2 1", "C 1 2/c 1", "C 1 c 1", "P 1 c 1", "P -1", "P 1", "P 21 21 21", "P b c a",
          "P n a 21", "P 1 21/n 1", "I 1 2/a 1", "P 1 1 21/b", "P 21/b 1 1", "I 41/a :2", "P 41 21 2", "R -3 :H", "R 3 c :R",
          "P 61 2 2", "F d -3 m :2", "P 21 3")
ENERGY = 8.048  # keV, Cu Kα
X = np.array([0.1, 0.2, 0.3])


def crystal(spacegroup, cell=TRICLINIC, n=5, seed=0, elements=("C", "N", "O", "S", "Cl")):
    elements = [elements[i % len(elements)] for i in range(n)]
    return make_crystal(elements, spacegroup, cell, u=(0.01, 0.08), occ=(0.3, 1), seed=seed)


def some_hkl(n=60, reach=(6, 8, 11), seed=0):
    """(n, 3) Miller indices of both signs, (0, 0, 0) among them."""
    rng = np.random.default_rng(seed)
    return np.vstack([[[0, 0, 0]], rng.integers(-np.array(reach), np.array(reach) + 1, (n - 1, 3))])


def form_factor(element, stol2):
    """Table 6.1.1.4 in double precision (gemmi's own calculate_sf has seven digits)."""
    it92 = gemmi.Element(element).it92
    return sum(a * np.exp(-b * stol2) for a, b in zip(it92.a, it92.b)) + it92.c


def brute_force(c, hkl, energy=None):
    """The sum over all operators, centring included, reflection by reflection and with U* of the rotated indices."""
    stol2 = np.array([0 if not any(h) else 0.25 / c.cell.calculate_d(list(h)) ** 2 for h in hkl])
    reciprocal = c.cell.reciprocal()
    star = np.array([reciprocal.a, reciprocal.b, reciprocal.c])
    sf = np.zeros(len(hkl), complex)
    for op in c.spacegroup.operations():
        for i, (element, x, u, occ) in enumerate(zip(c.elements, c.fract, c.u_iso, c.occ)):
            f = form_factor(element, stol2).astype(complex)
            if energy is not None:
                f += complex(*gemmi.cromer_liberman(z=gemmi.Element(element).atomic_number, energy=1000 * energy))
            damping = np.exp(-8 * np.pi**2 * u * stol2)
            if c.u_aniso is not None and c.u_aniso[i].any():
                u11, u22, u33, u12, u13, u23 = c.u_aniso[i]
                rotated = hkl @ (np.array(op.rot) / gemmi.Op.DEN) * star
                tensor = np.array([[u11, u12, u13], [u12, u22, u23], [u13, u23, u33]])
                damping = np.exp(-2 * np.pi**2 * np.array([h @ tensor @ h for h in rotated]))
            sf += occ * f * damping * np.exp(2j * np.pi * (hkl @ np.array(op.apply_to_xyz(list(x)))))
    return sf


def relative_error(sf, reference):
    """Largest error over the largest amplitude: a weak reflection has no relative error of its own."""
    return np.abs(sf - reference).max() / np.abs(reference).max()


def gemmi_structure(path, c):
    """What gemmi itself reads, anisotropic U among it, of the sites that the reader keeps; U_iso and occupancy are the
    reader's, who corrects them in some files, and all atoms are neutral."""
    for block in gemmi.cif.read(str(path)):
        small = gemmi.make_small_structure_from_block(block)
        if len(small.sites):
            break
    kept = gemmi.SmallStructure()
    kept.cell, kept.spacegroup = small.cell, c.spacegroup
    atoms = iter(zip(c.elements, c.fract, c.u_iso, c.occ))
    atom = next(atoms)
    for site in small.sites:
        if atom and site.element.name == atom[0] and np.allclose(site.fract.tolist(), atom[1], rtol=0, atol=1e-12):
            site.u_iso, site.occ, site.charge = *atom[2:], 0
            if c.u_aniso is None:  # the reader does not believe the tensors of some files
                site.aniso = gemmi.SMat33d(0, 0, 0, 0, 0, 0)
            kept.add_site(site)
            atom = next(atoms, None)
    assert len(kept.sites) == len(c.elements)
    kept.setup_cell_images()
    return kept


def gemmi_sf(small, hkl):
    direct = gemmi.StructureFactorCalculatorX(small.cell)
    return np.array([direct.calculate_sf_from_small_structure(small, list(map(int, h))) for h in hkl])


def sample(c, n, d_min, seed=0):
    """n reflections to d_min over the whole sphere, and up to n / 4 systematically absent ones among them."""
    sphere = gemmi.make_miller_array(c.cell, gemmi.SpaceGroup("P 1"), d_min)
    sphere = np.concatenate([sphere, -sphere])
    rng = np.random.default_rng(seed)
    absent = c.spacegroup.operations().systematic_absences(sphere)
    some = [rng.permutation(np.flatnonzero(mask))[:k] for mask, k in ((~absent, n), (absent, n // 4))]
    return sphere[np.concatenate(some)], np.repeat([False, True], [len(some[0]), len(some[1])])


def random_cell(group, rng):
    """A cell with edges near 10 Å that has the symmetry of the space group and no more."""
    a, b, c = rng.uniform(7, 13, 3)
    alpha, beta, gamma = rng.uniform(75, 105, 3)
    system = group.crystal_system_str()
    if group.ext == "R":
        return gemmi.UnitCell(a, a, a, alpha, alpha, alpha)
    if system in ("trigonal", "hexagonal"):
        return gemmi.UnitCell(a, a, c, 90, 90, 120)
    if system in ("tetragonal", "cubic"):
        return gemmi.UnitCell(a, a, a if system == "cubic" else c, 90, 90, 90)
    if system == "triclinic":
        return gemmi.UnitCell(a, b, c, alpha, beta, gamma)
    angles = [90.0, 90.0, 90.0]
    if system == "monoclinic":
        angles["abc".index(group.monoclinic_unique_axis())] = beta
    return gemmi.UnitCell(a, b, c, *angles)


def random_crystal(name, seed, anisotropic):
    """Six atoms, H and Br among them: one at the origin, the others in general positions; every other one anisotropic."""
    rng, group = np.random.default_rng(seed), gemmi.SpaceGroup(name)
    fract, occ = rng.random((6, 3)), rng.uniform(0.3, 1, 6)
    fract[0] = 0
    occ[0] /= (np.abs(all_operators(group)[1] % 1) < 1e-9).all(axis=1).sum()  # operators that leave the origin in place
    u_aniso = None
    if anisotropic:
        root = rng.normal(0, 0.03, (6, 3, 3)) + 0.18 * np.eye(3)
        u_aniso = (root @ root.swapaxes(1, 2))[:, [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]] * np.tile([[0], [1]], (3, 1))
    return Crystal(f"{name} {seed}", random_cell(group, rng), group, ("Cl", "C", "H", "N", "O", "Br"), fract,
                   rng.uniform(0.01, 0.08, 6), occ, u_aniso=u_aniso)


def random_100():
    return [random_crystal(GROUPS[i % len(GROUPS)], i, anisotropic=i // len(GROUPS) % 2 == 1) for i in range(100)]


def block_of(*reach):
    """(n, 3) all indices from -reach to reach."""
    return np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)


def test_carbon_pair_has_its_closed_form():
    """One C at X in P -1: F = 2 f(s) exp(-8π² U s²) cos(2π h·X), real."""
    pair = make_crystal(["C"], fract=[X], u=0.04)
    hkl = gemmi.make_miller_array(pair.cell, gemmi.SpaceGroup("P 1"), 0.8)
    stol2 = 0.25 / pair.cell.calculate_d_array(hkl) ** 2
    # carbon in International Tables C, table 6.1.1.4
    f = 0.2156 + sum(a * np.exp(-b * stol2) for a, b in
                     ((2.31, 20.8439), (1.02, 10.2075), (1.5886, 0.5687), (0.865, 51.6512)))
    expected = 2 * f * np.exp(-8 * np.pi**2 * 0.04 * stol2) * np.cos(2 * np.pi * hkl @ X)
    sf = structure_factors(pair, hkl)
    assert len(hkl) > 2000
    np.testing.assert_allclose(sf.real, expected, rtol=0, atol=2e-6)  # electrons; gemmi keeps the table in float32
    assert (sf.imag == 0).all()


def test_every_space_group_agrees_with_the_sum_over_all_operators():
    """All settings of gemmi's table in one batch, among them inversions off the origin and all centrings."""
    table = list({group.xhm(): group for group in gemmi.spacegroup_table()}.values())
    assert len(table) > 500
    crystals = [crystal(group.xhm(), n=2, seed=i) for i, group in enumerate(table)]
    hkl = some_hkl(12, reach=(4, 4, 4))
    sf = CrystalBatch.from_crystals(crystals).structure_factors(torch.as_tensor(hkl)).numpy()
    for row, c in zip(sf, crystals):
        # over the largest sum that the cell could reach, since centring may leave only weak reflections
        highest = abs(brute_force(c, hkl[:1])[0])
        assert np.abs(row - brute_force(c, hkl)).max() < 1e-10 * highest, c.spacegroup.xhm()


def test_f000_is_the_number_of_electrons():
    """Z of C, N, O, S, Cl by heart; the table's fits miss Z by 0.01 electrons at most."""
    c = crystal("C 1 2/c 1", gemmi.UnitCell(12.3, 6.1, 9.4, 90, 107, 90))
    electrons = 8 * (c.occ * [6, 7, 8, 16, 17]).sum()
    assert structure_factors(c, [[0, 0, 0]])[0] == pytest.approx(electrons, rel=1e-3)


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-6), (torch.float32, 2e-6)], ids=["double", "single"])
def test_100_random_crystals_agree_with_gemmi(dtype, bound):
    """The bound for double precision is as narrow as the seven digits of gemmi's own form factors allow."""
    for hkl in (some_hkl(30), some_hkl(30) % 4):  # few reflections of a large block, and most of a small one
        crystals = random_100()
        sf = CrystalBatch.from_crystals(crystals, dtype=dtype).structure_factors(torch.as_tensor(hkl)).numpy()
        for row, c in zip(sf, crystals):
            assert relative_error(row, gemmi_sf(c.small_structure(), hkl)) < bound, c.name


def test_both_ways_of_summing_agree(monkeypatch):
    """Term by term, in blocks, and in blocks that are cut, for each axis that may stand perpendicular to the others."""
    crystals, hkl = random_100(), torch.as_tensor(block_of(3, 2, 4)[::2])
    assert {kind.axis for kind in CrystalBatch.from_crystals(crystals).kinds} == {-1, 0, 1, 2}
    for energy in (None, ENERGY):
        results = []
        for sparse, chunk in ((0, 2**20), (100, 2**20), (100, 300)):
            monkeypatch.setattr(sf_module, "SPARSE", sparse)
            monkeypatch.setitem(sf_module.CHUNK, "cpu", chunk)
            results.append(CrystalBatch.from_crystals(crystals, energy=energy).structure_factors(hkl).numpy())
        for other in results[1:]:
            np.testing.assert_allclose(other, results[0], rtol=0, atol=1e-11 * np.abs(results[0]).max())


@pytest.mark.parametrize("name", GROUPS)
def test_anisotropic_and_anomalous_scattering_agree_with_the_sum_over_all_operators(name):
    for anisotropic in (False, True):
        c = random_crystal(name, 1, anisotropic)
        for hkl in (some_hkl(20), block_of(2, 2, 2)):
            reference = brute_force(c, hkl, ENERGY)
            assert np.abs(structure_factors(c, hkl, energy=ENERGY) - reference).max() < 1e-10 * np.abs(reference).max()


def test_f_prime_agrees_with_gemmi():
    """In P -1 the real part is the sum with f + f′, which gemmi adds, and the imaginary part that with f″."""
    c, hkl = random_crystal("P -1", 3, anisotropic=True), some_hkl()
    small = c.small_structure()
    direct = gemmi.StructureFactorCalculatorX(small.cell)
    for element in set(c.elements):
        direct.addends.set(gemmi.Element(element), gemmi.cromer_liberman(gemmi.Element(element).atomic_number, 17479)[0])
    sf = structure_factors(c, hkl, energy=17.479)
    reference = np.array([direct.calculate_sf_from_small_structure(small, list(map(int, h))).real for h in hkl])
    assert np.abs(sf.real - reference).max() < 1e-5 * np.abs(reference).max()
    assert np.abs(sf.imag).max() > 0.5


def test_chlorine_has_the_published_f_prime_and_f_double_prime():
    """International Tables C, table 4.2.6.8, Cu Kα: 0.3639 and 0.7018 electrons."""
    c = crystal("P 1", n=1, elements=("Cl",))
    change = structure_factors(c, [[0, 0, 0]], energy=ENERGY)[0] - structure_factors(c, [[0, 0, 0]])[0]
    assert change == pytest.approx(c.occ[0] * (0.3639 + 0.7018j), rel=2e-3)


@pytest.mark.parametrize("name, polar", [("P 1 21 1", True), ("P 21 21 21", True), ("P 1 21/c 1", False), ("P -1", False)])
def test_friedel_pairs_differ_where_there_is_no_inversion(name, polar):
    c = random_crystal(name, 2, anisotropic=False)
    hkl = some_hkl(60)
    pairs = [np.abs(structure_factors(c, sign * hkl, energy=13.6)) for sign in (1, -1)]  # above the K edge of Br
    difference = np.abs(pairs[0] - pairs[1]).max() / pairs[0].max()
    assert difference > 0.01 if polar else difference < 1e-12


@pytest.mark.parametrize("energy", [0.9, 81, -8, 0, float("nan"), float("inf")])
def test_an_energy_beyond_the_tables_is_refused(energy):
    with pytest.raises(CrystalError, match=f"from 1 to 80 keV, not at {energy} keV"):
        structure_factors(crystal("P 1"), some_hkl(), energy=energy)


def test_an_element_without_f_prime_is_named():
    c = crystal("P 1", elements=("C", "Pu"))
    assert np.isfinite(structure_factors(c, some_hkl())).all()
    with pytest.raises(CrystalError, match="no f′ and f″ for the element Pu"):
        structure_factors(c, some_hkl(), energy=ENERGY)


def test_the_tables_of_f_prime_reach_from_1_to_80_kev_and_to_uranium():
    for energy in (1, 80):
        assert np.isfinite(structure_factors(crystal("P 1"), some_hkl(), energy=energy)).all()
    assert structure_factors(crystal("P 1", elements=("U",)), some_hkl(), energy=ENERGY)[0].imag > 10
    with pytest.raises(CrystalError, match="for the element Np, only up to uranium"):
        structure_factors(crystal("P 1", elements=("Np",)), some_hkl(), energy=ENERGY)


def test_f_prime_and_f_double_prime_may_be_given():
    """Of one element, at one atom of it at the origin; those of the other stay the ones of the tables."""
    c = make_crystal("CS", "P 1", fract=[X, [0, 0, 0]], u=0.0)
    change = (structure_factors(c, some_hkl(), energy=ENERGY, dispersion={"S": (1.5, 2.5)})
              - structure_factors(c, some_hkl(), energy=ENERGY))
    expected = complex(1.5, 2.5) - complex(*gemmi.cromer_liberman(16, 1000 * ENERGY))
    np.testing.assert_allclose(change, expected, atol=1e-9)


def test_equal_displacements_along_all_axes_are_isotropic():
    """Uij = U cos of the angle between the reciprocal axes is the tensor of a sphere, in a triclinic cell as well."""
    c = crystal("P 1")
    r = c.cell.reciprocal()
    cosines = np.cos(np.radians([r.gamma, r.beta, r.alpha]))
    sphere = replace(c, u_aniso=c.u_iso[:, None] * [1, 1, 1, *cosines], u_iso=np.full(5, 0.3))
    np.testing.assert_allclose(structure_factors(sphere, some_hkl()), structure_factors(c, some_hkl()), rtol=1e-9)


def test_no_reflections_give_none():
    assert structure_factors(crystal("P 1"), np.empty((0, 3), int)).shape == (0,)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_crystals_agree_with_gemmi(path):
    """The reader and the sum together, since gemmi reads the file itself."""
    c = read_cif(path)
    hkl, absent = sample(c, 60, 0.8 if path.parent.name == "molecules" else 0.5)
    reference = gemmi_sf(gemmi_structure(path, c), hkl)
    sf = structure_factors(c, hkl)
    assert absent.any() or c.spacegroup.hm == "P m -3 m"  # CsCl has no absences
    assert relative_error(sf, reference) < 1e-5
    assert np.abs(sf[absent]).max(initial=0) < 1e-9 * np.abs(reference).max()


@pytest.mark.parametrize("folder, number", [("crystals", 100), ("simple", 10)])
def test_real_crystals_agree_with_gemmi(folder, number):
    paths = sorted((REAL / folder).glob("*.cif"))
    if not paths:
        pytest.skip(f"{REAL / folder} is not there: set XRD_REAL_DATA to a folder with crystals/ and simple/")
    assert len(paths) > number
    wrong = {}
    for path in paths:
        c = read_cif(path)
        hkl, _ = sample(c, 48, 0.9)
        error = relative_error(structure_factors(c, hkl), gemmi_sf(gemmi_structure(path, c), hkl))
        if not error < 1e-5:
            wrong[path.name] = error
    assert not wrong


def mixed():
    """Crystals that differ in everything that is padded: atoms, operators, centring, inversion."""
    return [crystal("P -1", n=7, seed=1), crystal("P 1", n=2, seed=2, elements=("Br",)),
            crystal("I 1 2/a 1", gemmi.UnitCell(11.3, 5.1, 9.4, 90, 97, 90), n=4, seed=3),
            crystal("P 21 21 21", gemmi.UnitCell(5.9, 8.1, 13.2, 90, 90, 90), n=11, seed=4),
            crystal("R 3 :H", gemmi.UnitCell(9.1, 9.1, 6.2, 90, 90, 120), n=3, seed=5)]


def test_a_batch_of_mixed_crystals_equals_single_ones(monkeypatch):
    hkl = some_hkl()
    crystals = mixed()
    singles = np.array([structure_factors(c, hkl) for c in crystals])
    for chunk in (sf_module.CHUNK["cpu"], 600):  # the second one makes parts of a few reflections
        monkeypatch.setitem(sf_module.CHUNK, "cpu", chunk)
        batch = CrystalBatch.from_crystals(crystals).structure_factors(torch.as_tensor(hkl)).numpy()
        assert batch.shape == (5, len(hkl))
        np.testing.assert_allclose(batch, singles, rtol=0, atol=1e-10)


def test_a_batch_of_centrosymmetric_crystals_takes_the_cosine_way():
    """All with the inversion at the origin: the imaginary sums are left out, and F is real."""
    crystals = [mixed()[0], mixed()[2]]
    sf = CrystalBatch.from_crystals(crystals).structure_factors(torch.as_tensor(some_hkl())).numpy()
    for row, c in zip(sf, crystals):
        assert relative_error(row, brute_force(c, some_hkl())) < 1e-12


@pytest.mark.parametrize("sparse", [0, 1e9], ids=["terms", "block"])
def test_single_precision_is_good_to_two_in_a_million(sparse, monkeypatch):
    """Indices to the ends of the largest box, where the phases are largest and float32 coarsest."""
    monkeypatch.setattr(sf_module, "SPARSE", sparse)
    hkl = some_hkl(400, reach=(16, 21, 28))
    crystals = mixed() + [crystal("P 1 21/c 1", gemmi.UnitCell(7.3, 9.1, 18.4, 90, 111, 90), n=30, seed=6)]
    single = CrystalBatch.from_crystals(crystals, dtype=torch.float32).structure_factors(torch.as_tensor(hkl))
    assert single.dtype == torch.complex64
    for row, c in zip(single.numpy(), crystals):
        assert relative_error(row, brute_force(c, hkl)) < 2e-6


def test_a_shift_changes_the_phases_only():
    hkl, shift = some_hkl(), np.array([0.31, -0.17, 0.83])
    c = crystal("P 1")
    moved = Crystal("moved", c.cell, c.spacegroup, c.elements, c.fract + shift, c.u_iso, c.occ)
    before, after = structure_factors(c, hkl), structure_factors(moved, hkl)
    np.testing.assert_allclose(np.abs(after), np.abs(before), rtol=1e-9)
    change = np.degrees(np.angle(after / before)) - 360 * hkl @ shift
    assert np.abs(change - 360 * np.round(change / 360)).max() < 1e-6
    assert np.ptp(np.degrees(np.angle(after / before))) > 90


@pytest.mark.parametrize("name", ["P 1", "P 1 21 1", "P -1"])
def test_friedel_mates_are_complex_conjugates(name):
    c = crystal(name, TRICLINIC if "21" not in name else gemmi.UnitCell(7.1, 9.3, 6.2, 90, 103, 90))
    sf = structure_factors(c, some_hkl())
    np.testing.assert_allclose(structure_factors(c, -some_hkl()), sf.conj(), rtol=0, atol=1e-10)
    assert name == "P -1" or np.abs(sf.imag).max() > 1


def test_resolution_is_that_of_gemmi():
    hkl = some_hkl()[1:]
    hkl = hkl[(hkl != 0).any(axis=1)]
    batch = CrystalBatch.from_crystals(mixed())
    for row, c in zip(batch.stol2(torch.as_tensor(hkl)).numpy(), mixed()):
        np.testing.assert_allclose(row, 0.25 / c.cell.calculate_d_array(hkl) ** 2, rtol=1e-12)


def test_deuterium_scatters_as_hydrogen_does():
    light, heavy = crystal("P 1", elements=("C", "H")), crystal("P 1", elements=("C", "D"))
    np.testing.assert_allclose(structure_factors(heavy, some_hkl()), structure_factors(light, some_hkl()), rtol=1e-14)


def test_an_element_without_form_factor_is_named():
    with pytest.raises(CrystalError, match="element Lr"):
        structure_factors(crystal("P 1", elements=("C", "Lr")), some_hkl())


def test_scale_of_least_squares():
    F, F_calc = np.array([2.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0])  # Σ F F_calc = 37, Σ F_calc² = 14
    assert fit_scale(F, F_calc) == pytest.approx(37 / 14) and fit_scale(F, 0 * F_calc) == 0


@pytest.mark.parametrize("symbol", ["H", "D", "C", "Br", "U"])
def test_form_factors_are_those_of_gemmi(symbol):
    stol2 = np.linspace(0, 1.5, 7)
    expected = [gemmi.Element("H" if symbol == "D" else symbol).it92.calculate_sf(stol2=x) for x in stol2]
    np.testing.assert_allclose(sf_module.form_factor(symbol, stol2), expected, rtol=1e-6)
