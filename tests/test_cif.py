"""CIF files: what one says and does not say."""

import gemmi
import numpy as np
import pytest

from cif_makers import B_SITES, BAD, BODY, C2, C2C, FACE, I2A, P21C, P21N, SITES, THREE, TRICLINIC, centred, cif
from xrd_helpers.cif import DEFAULT_U, CifError, read_cif, read_cif_file
from xrd_helpers.crystals import CrystalError


def read(tmp_path, *args, **kwargs):
    path = tmp_path / "made.cif"
    path.write_text(cif(*args, **kwargs), encoding="utf-8")
    return read_cif(path)


def test_numbers_are_those_of_the_file(tmp_path):
    crystal = read(tmp_path, cell=("6.100(2)", "8.30", 11.7, 81, 95, 104), symbol="P -1",
                   sites=["C1 C 0.11(3) 0.22 -0.33 0.040(1) 1", "Na Na1+ 1.41 0.27 0.68 0.05 0.75"])
    assert crystal.name == "made" and crystal.source == "made.cif" and crystal.spacegroup.hm == "P -1"
    assert crystal.cell.parameters == TRICLINIC
    assert crystal.elements == ("C", "Na")
    np.testing.assert_array_equal(crystal.fract, [[0.11, 0.22, -0.33], [1.41, 0.27, 0.68]])
    np.testing.assert_array_equal(crystal.u_iso, [0.04, 0.05])
    np.testing.assert_array_equal(crystal.occ, [1, 0.75])


@pytest.mark.parametrize("symbol, ops, expected", [
    ("P 21/n", [], "P 1 21/n 1"), ("I 2/a", [], "I 1 2/a 1"), ("P 1 21/a 1", [], "P 1 21/a 1"),
    ("P 21/c", P21N, "P 1 21/n 1"),                  # the symbol names the type, the operators the setting
    ("C 2/c", centred(I2A, BODY), "I 1 2/a 1"),
    ("P 21/c", P21C, "P 1 21/c 1"),
    ("", P21N, "P 1 21/n 1"),                        # no symbol
    ("P2~1~/n", P21N, "P 1 21/n 1"),                 # a symbol as a typesetter writes it
    ("P 21/n", ["?"], "P 1 21/n 1"),                 # no operators
    ("C 2/c", C2C, "C 1 2/c 1"),                     # centring left out: C2C alone is P 2/c
    ("I 2/a", I2A, "I 1 2/a 1"),                     # I2A alone is P 2/a
    ("C 2/c", C2C + C2C, "C 1 2/c 1"),               # every operator twice instead
    ("P 2/c", C2C, "P 1 2/c 1"),
    ("C 2/c", centred(C2, FACE), "C 1 2 1"),         # complete as it stands: a smaller group than the symbol's
    ("C 2/c", ["x,y,z"], "P 1"),
    ("P 21/c", P21C[:3], "P 1 21/c 1"),              # one forgotten: no group as it stands
])
def test_space_group_and_setting(tmp_path, symbol, ops, expected):
    crystal = read(tmp_path, symbol=symbol, ops=ops)
    assert crystal.spacegroup.xhm() == expected
    if len(ops) > 1:  # every listed operator is one of the group
        group = {op.triplet() for op in crystal.spacegroup.operations()}
        assert {gemmi.Op(op).wrap().triplet() for op in ops} <= group


def test_b_in_the_column_of_u_is_converted_where_the_file_says_so(tmp_path):
    text = cif(sites=[f"{site} Biso" for site in B_SITES]).replace(
        "_atom_site_occupancy", "_atom_site_occupancy\n_atom_site_adp_type")
    (tmp_path / "b.cif").write_text(text)
    assert read_cif(tmp_path / "b.cif").u_iso == pytest.approx([0.040528, 0.030396], rel=1e-4)  # B / 78.957


def test_displacements_that_no_crystal_has_are_refused(tmp_path):
    with pytest.raises(CrystalError, match=r"made.cif: half .* above 2.80 Å².*B = 8π²U"):
        read(tmp_path, sites=B_SITES)


def test_anisotropic_displacements_alone_give_their_equivalent(tmp_path):
    """U_eq = Σ_ij U_ij a*_i a*_j a_i·a_j / 3 (Fischer & Tillmanns, 1988), written out for a triclinic cell."""
    u = dict(U_11=0.031, U_22=0.052, U_33=0.043, U_23=0.011, U_13=-0.007, U_12=0.013)
    aniso = "\n".join(["loop_", "_atom_site_aniso_label", *(f"_atom_site_aniso_{name}" for name in u),
                       "C1 " + " ".join(map(str, u.values())), "O1 " + " ".join(map(str, u.values()))]) + "\n"
    crystal = read(tmp_path, cell=TRICLINIC, symbol="P -1", extra=aniso,
                   sites=["C1 C 0.11 0.22 0.33 ? 1", "O1 O 0.41 0.27 0.68 0.05 1"])
    a, b, c, *angles = TRICLINIC
    (ca, cb, cg), (sa, sb, sg) = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    v = np.sqrt(1 - ca**2 - cb**2 - cg**2 + 2 * ca * cb * cg)
    aa, bb, cc = sa / v, sb / v, sg / v  # a a*, b b*, c c*
    expected = (u["U_11"] * aa**2 + u["U_22"] * bb**2 + u["U_33"] * cc**2 + 2 * u["U_23"] * bb * cc * ca
                + 2 * u["U_13"] * aa * cc * cb + 2 * u["U_12"] * aa * bb * cg) / 3
    assert crystal.u_iso[0] == pytest.approx(expected, rel=1e-10)
    assert abs(expected - (0.031 + 0.052 + 0.043) / 3) > 0.001  # not the mean of the diagonal
    assert crystal.u_iso[1] == 0.05                             # the file's own value goes first


@pytest.mark.parametrize("factor, kept", [(1, True), (1e4, False)])
def test_tensors_on_another_scale_than_their_equivalents_are_not_believed(tmp_path, factor, kept):
    """As in COD 2000642, whose tensors are 10⁴ times too large."""
    u = [0.031, 0.052, 0.043, 0.013, -0.007, 0.011]
    names = ("U_11", "U_22", "U_33", "U_12", "U_13", "U_23")
    aniso = "\n".join(["loop_", "_atom_site_aniso_label", *(f"_atom_site_aniso_{name}" for name in names),
                       *(label + " " + " ".join(f"{factor * x:.4f}" for x in u) for label in ("C1", "O1"))]) + "\n"
    crystal = read(tmp_path, cell=TRICLINIC, symbol="P -1", extra=aniso)
    np.testing.assert_allclose(crystal.u_iso, [0.04, 0.05])
    if kept:
        np.testing.assert_allclose(crystal.u_aniso, [u, u])
    else:
        assert crystal.u_aniso is None


def test_occupancy_is_divided_by_the_operators_that_keep_the_site(tmp_path):
    """C 2/c: the inversion centre (0, 0, 0), the twofold axis (0, y, 1/4), and general positions."""
    sites = ["Fe Fe 0 0 0 0.02 1", "O1 O 0 0.3 0.25 0.03 0.8", "C1 C 0.11 0.22 0.33 0.04 0.6",
             "C2 C 0.14 0.24 0.31 0.04 0.4", "N1 N 0.3 0.1 0.2 0.04 0", "S1 S 0.25 0.25 0 0.04 1"]
    crystal = read(tmp_path, symbol="C 2/c", sites=sites)
    assert crystal.elements == ("Fe", "O", "C", "C", "S")  # both sites of the disorder, none that is empty
    # 1/4, 1/4, 0 is an inversion centre too, through the centring
    np.testing.assert_allclose(crystal.occ, [0.5, 0.4, 0.6, 0.4, 0.5], atol=1e-6)
    # so that a sum over all operators counts 4 Fe, 8 · 0.4 O, 8 C and 4 S
    expected = sum(8 * occ * gemmi.Element(e).it92.calculate_sf(stol2=0)
                   for e, occ in zip("Fe O C C S".split(), [0.5, 0.4, 0.6, 0.4, 0.5]))
    small = crystal.small_structure()
    total = gemmi.StructureFactorCalculatorX(small.cell).calculate_sf_from_small_structure(small, [0, 0, 0])
    assert total.real == pytest.approx(expected, rel=1e-6)


def test_a_block_without_atoms_is_passed_over(tmp_path):
    path = tmp_path / "made.cif"
    path.write_text("data_global\n_journal_name_full 'Acta'\n" + cif(symbol="P 21/n"))
    assert read_cif(path).elements == ("C", "O")


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path, case):
    content, words, reason = BAD[case]
    path = tmp_path / "broken.cif"
    path.write_bytes(content)
    with pytest.raises(CifError) as caught:
        read_cif(path)
    assert caught.value.reason == reason
    message = str(caught.value)
    assert "broken.cif" in message and words in message and "\n" not in message
    (entry,) = read_cif_file(path)  # among thousands, the same without an exception
    assert (entry.crystal, entry.reason, entry.message) == (None, reason, message)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CrystalError, match="nowhere.cif cannot be read.*No such file"):
        read_cif(tmp_path / "nowhere.cif")


# --- What else a file may say ---


@pytest.mark.parametrize("tags, expected", [
    ("_space_group_name_Hall '-P 2yn'", "P 1 21/n 1"),
    ("_symmetry_space_group_name_Hall -P_2ybc", "P 1 21/c 1"),       # as one file of COD has it
    ("_space_group_name_Hall '-I 2ya'", "I 1 2/a 1"),
    ("_space_group_IT_number 14", "P 1 21/c 1"),                     # the reference setting
    ("_symmetry_Int_Tables_number 15", "C 1 2/c 1"),
    ("_space_group_name_Hall '-P 2yn'\n_space_group_IT_number 4", "P 1 21/n 1"),
    ("_space_group_name_Hall ?\n_space_group_IT_number 14", "P 1 21/c 1"),
])
def test_hall_symbol_or_number_alone_is_enough(tmp_path, tags, expected):
    assert read(tmp_path, symbol="", extra=tags + "\n").spacegroup.xhm() == expected


def test_the_order_is_operators_then_hall_then_symbol(tmp_path):
    hall = "_space_group_name_Hall '-P 2yn'\n"
    assert read(tmp_path, symbol="P 21/c", extra=hall).spacegroup.xhm() == "P 1 21/n 1"
    assert read(tmp_path, symbol="P 21/n", ops=P21C, extra=hall).spacegroup.xhm() == "P 1 21/c 1"


@pytest.mark.parametrize("symbol, ops, other", [
    ("P 21/c", P21C, False), ("P 21/c", P21N, False),  # the symbol of the type, not of the setting: no contradiction
    ("P 21", P21C, True), ("C 2/c", ["x,y,z"], True), ("", P21N, False),
])
def test_a_symbol_of_another_group_is_noted(tmp_path, symbol, ops, other):
    (tmp_path / "made.cif").write_text(cif(symbol=symbol, ops=ops))
    (entry,) = read_cif_file(tmp_path / "made.cif")
    assert entry.crystal and entry.other_symbol is other


def test_sites_without_u_get_the_default_and_are_counted(tmp_path):
    sites = ["C1 C 0.11 0.22 0.33 0.03 1", "O1 O 0.41 0.27 0.68 ? 1", "N1 N 0.1 0.7 0.2 0 1", "N2 N 0.3 0.7 0.2 -0.02 1"]
    (tmp_path / "made.cif").write_text(cif(sites=sites))
    (entry,) = read_cif_file(tmp_path / "made.cif")
    assert entry.without_u == 3 and DEFAULT_U == 0.05
    np.testing.assert_array_equal(entry.crystal.u_iso, [0.03, 0.05, 0.05, 0.05])
    assert entry.crystal.u_aniso is None


def test_a_tensor_with_a_negative_trace_is_not_kept(tmp_path):
    names = "U_11 U_22 U_33 U_23 U_13 U_12".split()
    aniso = "\n".join(["loop_", "_atom_site_aniso_label", *(f"_atom_site_aniso_{name}" for name in names),
                       "C1 0.01 0.01 -0.05 0 0 0", "O1 0.02 0.03 0.04 0.001 0.002 0.003"]) + "\n"
    crystal = read(tmp_path, cell=TRICLINIC, symbol="P -1", extra=aniso,
                   sites=["C1 C 0.11 0.22 0.33 ? 1", "O1 O 0.41 0.27 0.68 0.05 1"])
    np.testing.assert_array_equal(crystal.u_iso, [0.05, 0.05])
    np.testing.assert_array_equal(crystal.u_aniso, [[0] * 6, [0.02, 0.03, 0.04, 0.003, 0.002, 0.001]])


def with_column(name, values, sites=SITES, **kwargs):
    """A CIF whose atom sites have one column more."""
    text = cif(sites=[f"{site} {value}" for site, value in zip(sites, values, strict=True)], **kwargs)
    return text.replace("_atom_site_occupancy", f"_atom_site_occupancy\n_atom_site_{name}")


@pytest.mark.parametrize("text, words", [
    (cif(sites=[SITES[0], "O1 O 0.41 0.27 0.68 0.05 0.5"]), "O1 has an occupancy of 0.5"),
    (cif(sites=[*SITES, "H1 H 0.3 0.4 0.5 0.06 0.33"]), "H1 has an occupancy of 0.33"),  # hydrogen like every other
    (cif(sites=[*SITES, "O2 O 0.3 0.4 0.5 0.06 2"]), "O2 has an occupancy of 2"),
    (with_column("disorder_group", ["1", "2", "."], THREE), "disorder groups 1, 2"),
    (with_column("disorder_group", [".", ".", "-1"], THREE), "disorder groups -1"),
    (with_column("disorder_group", ["A", "B", "?"], THREE), "disorder groups A, B"),
])
def test_disorder_is_set_aside_unless_it_is_wanted(tmp_path, text, words):
    (tmp_path / "made.cif").write_text(text)
    (entry,) = read_cif_file(tmp_path / "made.cif")
    assert (entry.crystal, entry.reason) == (None, "disorder") and words in entry.message and "made.cif" in entry.message
    (entry,) = read_cif_file(tmp_path / "made.cif", keep_disordered=True)
    assert len(entry.crystal.elements) == text.count(" 0.0") and entry.reason == ""


@pytest.mark.parametrize("text", [
    with_column("disorder_group", ["1", "1", "."], THREE),                       # one group alone, filled
    cif(sites=[*SITES, "O2 O 0.3 0.4 0.5 0.06 0.995"]),                          # 1 within its error
    with_column("disorder_group", ["1", "2", "1"], [SITES[0], "O2 O 0.3 0.4 0.5 0.06 0", SITES[1]]),  # the other is empty
])
def test_what_only_looks_like_disorder_is_kept(tmp_path, text):
    (tmp_path / "made.cif").write_text(text)
    assert read_cif_file(tmp_path / "made.cif")[0].reason == ""


def test_dummy_sites_are_no_atoms(tmp_path):
    sites = [*SITES, "H3 H -1 -1 -1 0.05 4"]
    (tmp_path / "made.cif").write_text(with_column("calc_flag", ["d", "calc", "dum"], sites))
    assert read_cif_file(tmp_path / "made.cif")[0].crystal.elements == ("C", "O")


@pytest.mark.parametrize("formula, reason, occ", [
    ("C2 Fe O", "", [0.5, 1, 0.5]),            # Fe on the centre and O on the axis are full: the file has divided by two
    ("C4 Fe O", "disorder", [0.25, 1, 0.25]),  # half filled: then they are a quarter of a general position
    ("", "disorder", [0.25, 1, 0.25]),         # nothing says so: occupancy as CIF defines it
])
def test_occupancies_that_are_divided_already(tmp_path, formula, reason, occ):
    """C 2/c holds 4 Fe (-1), 8 C and 4 O (2) if all are full: C2 Fe O; half of Fe and O is C4 Fe O."""
    text = cif(symbol="C 2/c", extra=f"_chemical_formula_sum '{formula}'\n" if formula else "",
               sites=["Fe Fe 0 0 0 0.02 0.5", "C1 C 0.11 0.22 0.33 0.04 1", "O1 O 0 0.3 0.25 0.03 0.5"])
    (tmp_path / "made.cif").write_text(text)
    assert read_cif_file(tmp_path / "made.cif")[0].reason == reason
    np.testing.assert_allclose(read_cif(tmp_path / "made.cif").occ, occ)


def test_every_block_with_atoms_is_a_structure(tmp_path):
    path = tmp_path / "two.cif"
    path.write_text("data_global\n_journal_year 2001\n" + cif(symbol="P 21/n").replace("data_made", "data_I")
                    + cif(cell=("?", 6.3, 9.2, 90, 104, 90)).replace("data_made", "data_II")
                    + cif(symbol="P -1", cell=TRICLINIC).replace("data_made", "data_III"))
    entries = read_cif_file(path)
    assert [(e.name, e.reason) for e in entries] == [("two_I", ""), ("two_II", "no cell"), ("two_III", "")]
    assert [e.crystal.spacegroup.xhm() for e in entries if e.crystal] == ["P 1 21/n 1", "P -1"]
    assert entries[0].crystal.name == "two_I" and read_cif(path).name == "two"
