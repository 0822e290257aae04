"""Files of measured reflections: the same few in every kind of file, and real ones as their authors say."""

import csv
import re

import gemmi
import numpy as np
import pytest

from makers import REAL
from reflection_makers import CELL, INS, ROWS, shelx_text
from xrd_helpers import reflection_files
from xrd_helpers.config import UserError
from xrd_helpers.reflection_files import Found, look_like_amplitudes, read_measured
from xrd_helpers.reflections import ReflectionError, unique_hkl

MEASURED = REAL / "measured"
CIF_CELL = "".join(f"_cell_{name} {x}\n" for name, x in zip(
    ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), CELL.split()))
CIF_HEAD = (f"data_a\n{CIF_CELL}_chemical_formula_sum 'C4 H5 N O2'\n_cell_formula_units_Z 4\n"
            "_diffrn_radiation_wavelength 1.54178\n"
            "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n'-x+1/2, y+1/2, -z+1/2'\n-x,-y,-z\n'x+1/2, -y+1/2, z+1/2'\n")


def loop(*columns, rows=ROWS):
    return "loop_\n" + "".join(column + "\n" for column in columns) + "".join(" ".join(map(str, r)) + "\n" for r in rows)


def hkl_of(prefix):
    return [prefix + "index_" + x for x in "hkl"]


def mtz_file(path, columns, rows):
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = gemmi.UnitCell(*map(float, CELL.split())), gemmi.SpaceGroup("P 1 21/n 1")
    mtz.add_dataset("a").wavelength = 1.54178
    for label, kind in columns:
        mtz.add_column(label, kind)
    mtz.set_data(np.array(rows, np.float32))
    mtz.write_to_file(str(path))


def check_made(measured, elements=True):
    assert measured.spacegroup.xhm() == "P 1 21/n 1" and measured.wavelength == pytest.approx(1.54178)
    assert measured.cell.parameters == pytest.approx([float(x) for x in CELL.split()], abs=1e-4)
    assert measured.elements == ({"O": 2, "N": 1, "C": 4, "H": 5} if elements else {})
    assert [tuple(h) for h in measured.hkl] == [row[:3] for row in ROWS]
    np.testing.assert_allclose(measured.intensity, [row[3] for row in ROWS], rtol=1e-5)
    np.testing.assert_allclose(measured.sigma, [row[4] for row in ROWS], rtol=1e-5)
    merged = measured.merge()
    assert len(merged) == 4 and merged.F.max() ** 2 == pytest.approx((121 / 4 + 100 / 16) / (1 / 4 + 1 / 16), rel=1e-4)


CIFS = {
    "F²": CIF_HEAD + loop(*hkl_of("_refln_"), "_refln_F_squared_meas", "_refln_F_squared_sigma"),
    "flags": CIF_HEAD + loop(*hkl_of("_refln_"), "_refln_F_squared_calc", "_refln_F_squared_meas", "_refln_F_squared_sigma",
                             "_refln_observed_status", rows=[(*r[:3], 7, *r[3:], "o") for r in ROWS]
                             + [(5, 1, 1, 7, 99, 1, "x"), (6, 1, 1, 7, "?", ".", "o")]),
    "raw": CIF_HEAD + loop(*hkl_of("_diffrn_refln_"), "_diffrn_refln_intensity_net", "_diffrn_refln_intensity_u"),
    "text": CIF_HEAD + "_shelx_hkl_file\n;\n" + shelx_text() + " _comment after the end\n;\n",
    "two blocks": CIF_HEAD + "data_b\n" + loop(*hkl_of("_refln_"), "_refln_intensity_meas", "_refln_intensity_sigma")}


@pytest.mark.parametrize("kind", CIFS)
def test_reflection_cifs(kind, tmp_path):
    path = tmp_path / "a.fcf"
    path.write_text(CIFS[kind])
    check_made(read_measured(path))
    path.rename(tmp_path / "a.hkl")  # the COD gives them this name
    check_made(read_measured(tmp_path / "a.hkl"))


def test_shelx_reflections_with_their_ins(tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text())
    with pytest.raises(ReflectionError, match="a.hkl holds no cell or no symmetry: put the .ins"):
        read_measured(tmp_path / "a.hkl")
    (tmp_path / "a.cif").write_text(CIF_HEAD)
    check_made(read_measured(tmp_path / "a.hkl"))
    (tmp_path / "other.ins").write_text(INS)
    measured = read_measured(tmp_path / "a.hkl", tmp_path / "other.ins")
    check_made(measured)
    assert measured.files == (tmp_path / "a.hkl", tmp_path / "other.ins")
    (tmp_path / "b.ins").write_text(INS.replace(CELL, "11.1 6.2 8.3 90 99 90"))
    (tmp_path / "a.hkl").rename(tmp_path / "b.hkl")
    assert read_measured(tmp_path / "b.ins").cell.a == 11.1
    check_made(read_measured(tmp_path / "b.ins", tmp_path / "other.ins"))  # the one that is named counts
    (tmp_path / "b.hkl").rename(tmp_path / "a.hkl")
    (tmp_path / "other.ins").rename(tmp_path / "a.ins")
    check_made(read_measured(tmp_path / "a.ins"))


def test_amplitudes_are_squared_with_their_uncertainty(tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text([(1, 2, 3, 11.0, 0.5), (2, 0, 0, 0.0, 3.0)]))
    (tmp_path / "a.ins").write_text(INS.replace("HKLF 4", "HKLF 3"))
    (tmp_path / "b.cif").write_text(CIF_HEAD + loop(*hkl_of("_refln_"), "_refln_F_meas", "_refln_F_sigma",
                                                    rows=[(1, 2, 3, "11.0", 0.5), (2, 0, 0, 0, 3)]))
    mtz_file(tmp_path / "c.mtz", [("FC", "F"), ("FP", "F"), ("SIGFP", "Q")], [(1, 2, 3, 8, 11, 0.5), (2, 0, 0, 8, 0, 3)])
    for name in ("a.hkl", "b.cif", "c.mtz"):
        measured = read_measured(tmp_path / name)
        assert measured.intensity.tolist() == [121, 0] and measured.sigma.tolist() == [11, 9], name  # 2 F σ, or σ² at zero


def test_mtz(tmp_path):
    mtz_file(tmp_path / "a.mtz", [("I", "J"), ("SIGI", "Q")], [*ROWS, (4, 4, 4, np.nan, np.nan)])
    check_made(read_measured(tmp_path / "a.mtz"), elements=False)
    (tmp_path / "a.cif").write_text(CIF_HEAD)
    check_made(read_measured(tmp_path / "a.mtz"))
    mtz_file(tmp_path / "b.mtz", [("I(+)", "K"), ("SIGI(+)", "M"), ("I(-)", "K"), ("SIGI(-)", "M")],
             [(1, 2, 3, 121, 2, 100, 4), (2, 0, 0, 49, 1, np.nan, np.nan)])
    merged = read_measured(tmp_path / "b.mtz").merge()
    assert len(merged) == 2 and merged.F.max() ** 2 == pytest.approx((121 / 4 + 100 / 16) / (1 / 4 + 1 / 16))


BROKEN = {"a.hkl": [("   1   2   x    1.00    1.00\n", "line 1"), ("", "holds no reflections")],
          "a.cif": [("data_a\nloop_\n_x", "is not a CIF file that can be read"),
                    ("data_a\n_cell_length_a 3\n", "no measured refl"),
                    (CIFS["text"].replace("   1   2   3", "   1   2   y"), "line 1"),
                    (CIFS["F²"].replace("angle_beta 99", "angle_beta 0"), "a.cif"),
                    (CIFS["F²"].replace("angle_alpha 90", "angle_alpha 80"), "does not have the symmetry of P 1 21/n 1"),
                    (CIFS["F²"].replace("_cell_length_a 10.1", ""), "no cell")],
          "a.mtz": [("MTZ of nothing", "is not an MTZ file"), ("nothing", "is not an MTZ file")]}


@pytest.mark.parametrize("name, content, message", [(name, *case) for name, cases in BROKEN.items() for case in cases])
def test_broken_files_are_a_sentence(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    (tmp_path / "about.ins").write_text(INS)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_measured(tmp_path / name, tmp_path / "about.ins" if name != "a.cif" else None)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_reflections_without_an_uncertainty_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text([*ROWS, (4, 1, 1, 3.0, 0.0), (5, 1, 1, 3.0, -0.2)]))
    (tmp_path / "a.ins").write_text(INS)
    measured = read_measured(tmp_path / "a.hkl")
    check_made(measured)
    assert measured.notes == ("2 of 7 reflections have no uncertainty above zero and are left out",)
    (tmp_path / "a.hkl").write_text(shelx_text([(h, 1, 1, 3.0, 0.0) for h in range(1, 7)] + ROWS))
    with pytest.raises(ReflectionError, match=r"a.hkl: 6 of 11 reflections .* as \(1, 1, 1\) with sigma 0: give them"):
        read_measured(tmp_path / "a.hkl")


LAYOUTS = {"free": "%d %d %d %.3f %.3f\n", "free, with commas and a batch": "%d,%d,%d, %.2f ,%.2f, %d\n",
           "wide values": "%4d%4d%4d%10.2f%10.2f%4d\n", "wide indices": "%5d%5d%5d%8.2f%8.2f\n",
           "with direction cosines": "%4d%4d%4d%8.2f%8.2f%4d 0.1234-0.5678 0.12345\n"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("end", ["", "0 0 0 0.00 0.00 0\n TITL what follows the end\n"])
def test_other_columns_than_those_of_shelx(layout, end, tmp_path):
    form = LAYOUTS[layout]
    rows = [(*row, 1) if form.count("%") == 6 else row for row in ROWS]
    (tmp_path / "a.hkl").write_text("".join(form % row for row in rows) + end)
    (tmp_path / "a.ins").write_text(INS)
    check_made(read_measured(tmp_path / "a.hkl"))


def test_columns_that_touch_and_numbers_without_a_point(tmp_path):
    (tmp_path / "a.hkl").write_text(" -10 -12-103-1234.56 1234.561000\n   1   2   399999.9999999.99-101\n"
                                    "   0   1   1    1200      10\n")
    (tmp_path / "a.ins").write_text(INS.replace(CELL, "50.5 31.0 41.5 90 99 90"))
    measured = read_measured(tmp_path / "a.hkl")
    assert measured.hkl.tolist() == [[-10, -12, -103], [1, 2, 3], [0, 1, 1]]
    assert measured.intensity.tolist() == [-1234.56, 99999.99, 12.0] and measured.sigma.tolist() == [1234.56, 99999.99, 0.1]


def embedded(tag, text):
    return f"{tag}\n;\n{text}\n;\n"


HKL, FCF = shelx_text(), "data_x\n" + loop(*hkl_of("_refln_"), "_refln_F_squared_meas", "_refln_F_squared_sigma")
LATER, DETAILS = "data_global\n_journal_year 2020\n" + CIF_HEAD + "data_b\n", "_iucr_refine_reflections_details"
OTHER = CIF_HEAD.replace("data_a", "data_b").replace("10.1", "11.1") + embedded("_shelx_hkl_file", shelx_text(ROWS[1:]))
WORDS = "The reflections are kept by the authors, who send them on request."
PLACES = {"hkl": CIF_HEAD + embedded(DETAILS, HKL), "fcf": CIF_HEAD + embedded("_iucr_refine_fcf_details", FCF),
          "fcf as reflections": CIF_HEAD + embedded(DETAILS, FCF), "in a later block": LATER + embedded("_shelx_hkl_file", HKL),
          "words, then fcf": CIF_HEAD + embedded(DETAILS, WORDS) + embedded("_iucr_refine_fcf_details", FCF),
          "twice": CIF_HEAD + 2 * embedded("_shelx_hkl_file", HKL),
          "two structures": CIF_HEAD + embedded("_shelx_hkl_file", HKL) + OTHER}


@pytest.mark.parametrize("place", PLACES)
def test_where_programs_put_reflections_into_a_cif(place, tmp_path):
    (tmp_path / "a.cif").write_text(PLACES[place])
    measured = read_measured(tmp_path / "a.cif")
    check_made(measured)
    assert ("(the first of 2 lists, in block a)" in measured.kind) == (place in ("twice", "two structures", "words, then fcf"))


@pytest.mark.parametrize("encode", [lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.encode("latin-1"),
                                    lambda text: text.encode("utf-16"), lambda text: text.replace("\n", "\r\n").encode(),
                                    lambda text: text.replace("\n", "\r").encode()])
def test_texts_of_any_encoding(encode, tmp_path):
    text = CIFS["F²"] + "_publ_author 'Müller'\n" + embedded("_shelx_res_file", INS + "REM Å\n")
    (tmp_path / "a.cif").write_bytes(encode(text))
    check_made(read_measured(tmp_path / "a.cif"))
    (tmp_path / "b.hkl").write_bytes(encode(shelx_text()))
    (tmp_path / "b.ins").write_bytes(encode(INS.replace("TITL made", "TITL Müller, a =\nREM so =")))
    check_made(read_measured(tmp_path / "b.hkl"))


def test_the_header_is_read_from_wherever_it_stands(tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text())
    (tmp_path / "a.ins").write_text(INS.replace("UNIT", "TWIN\nBASF 0.3\nUNIT"))
    measured = read_measured(tmp_path / "a.hkl")
    assert measured.header["ZERR"] == ("ZERR 4 0.001 0.001 0.001 0 0.01 0",)
    assert measured.header["SFAC"] == ("SFAC C H N =\n  O",)
    assert len(measured.notes) == 1 and measured.notes[0].startswith("TWIN and BASF of the file: passed on")
    text = CIFS["F²"].replace("length_a 10.1", "length_a 10.1000(12)").replace("angle_beta 99", "angle_beta 99.00(3)")
    (tmp_path / "b.cif").write_text(text + "_diffrn_ambient_temperature 173(2)\n")
    header = read_measured(tmp_path / "b.cif").header
    assert header == {"CELL": ("CELL 1.54178 10.1000 6.2 8.3 90 99.00 90",), "ZERR": ("ZERR 4 0.0012 0 0 0 0.03 0",),
                      "TEMP": ("TEMP -100.15",)}
    (tmp_path / "c.cif").write_text(CIFS["text"] + f"_shelx_res_file\n;\n{INS}\n;\n")
    assert read_measured(tmp_path / "c.cif").header["TITL"] == ("TITL made",)


@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured reflections in {MEASURED}")
def test_real_files_hold_as_many_reflections_as_their_authors_say():
    with open(MEASURED / "SOURCES.csv", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            measured = read_measured(MEASURED / row["file"], MEASURED / row["model"] if row["file"] != row["model"] else None)
            merged = measured.merge()
            assert len(measured.hkl) == int(row["n_refl"]) and len(merged) == int(row["n_asu"]), row["id"]
            assert merged.d_min == pytest.approx(float(row["d_min"]), abs=0.0015), row["id"]
            assert merged.spacegroup.xhm() == row["sg_hm"] and measured.wavelength == pytest.approx(float(row["wavelength"]))
            assert set(measured.elements) == set(re.findall("[A-Z][a-z]?", row["formula"])), row["id"]


@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured reflections in {MEASURED}")
@pytest.mark.parametrize("name", ["2021921", "2241551"])  # whose authors merged in the class that they state
def test_r_int_of_real_files_is_what_their_authors_say(name):
    stated = gemmi.cif.read(str(MEASURED / f"{name}.cif")).sole_block().find_value("_diffrn_reflns_av_R_equivalents")
    measured = read_measured(MEASURED / f"{name}.cif")
    assert measured.quality(measured.merge()).r_int == pytest.approx(float(stated), abs=0.00005)


@pytest.mark.skipif(not MEASURED.is_dir(), reason=f"no measured reflections in {MEASURED}")
@pytest.mark.parametrize("name", ["4035731", "2021921", "1517337", "2241551"])
def test_the_ins_and_hkl_files_of_real_cifs_say_the_same(name, tmp_path):
    block = gemmi.cif.read(str(MEASURED / f"{name}.cif")).sole_block()
    for suffix, tag in ((".hkl", "_shelx_hkl_file"), (".res", "_shelx_res_file")):
        (tmp_path / f"a{suffix}").write_text(gemmi.cif.as_string(block.find_value(tag)).lstrip("\n"))
    inside, beside = read_measured(MEASURED / f"{name}.cif"), read_measured(tmp_path / "a.hkl")
    assert beside.spacegroup.xhm() == inside.spacegroup.xhm() and beside.wavelength == pytest.approx(inside.wavelength)
    assert beside.cell.parameters == pytest.approx(inside.cell.parameters, abs=0.006)
    assert beside.elements == pytest.approx(inside.elements, abs=0.01)
    assert np.array_equal(beside.hkl, inside.hkl) and np.array_equal(beside.intensity, inside.intensity)


# ---- F or F², and what the data are worth ----

def wilson(centric, n=3000, seed=0):
    """Intensities of Wilson statistics that fall off with resolution -> (I, d)."""
    rng = np.random.default_rng(seed)
    s2 = rng.uniform(0.05, 1.5, n)
    I = (rng.standard_normal(n) ** 2 if centric else rng.exponential(1, n)) * np.exp(-4 * s2)
    return I, s2**-0.5


@pytest.mark.parametrize("centric", [False, True])
def test_amplitudes_are_told_from_their_squares(centric):
    I, d = wilson(centric)
    assert not look_like_amplitudes(I, d) and look_like_amplitudes(np.sqrt(I), d)
    assert not look_like_amplitudes(np.sqrt(I) - 0.1 * np.sqrt(I).mean(), d), "F is never below zero"


@pytest.mark.parametrize("hklf", ["HKLF 3", "HKLF 4", ""])
def test_what_the_ins_file_says_of_the_values_counts(tmp_path, hklf):
    I, d = wilson(True, 900)
    spacegroup, cell = gemmi.SpaceGroup("P 1 21/c 1"), gemmi.UnitCell(7.3, 9.1, 8.4, 90, 111, 90)
    hkl = unique_hkl(cell, spacegroup, 0.85)[:900]
    I = 1000 * I[np.argsort(-d)][np.argsort(np.argsort(-cell.calculate_d_array(hkl.astype("i4"))))]
    value = np.sqrt(I) if hklf != "HKLF 4" else I
    (tmp_path / "job.hkl").write_text("".join("%4d%4d%4d%8.2f%8.2f\n" % (*h, x, 1) for h, x in zip(hkl, value)))
    (tmp_path / "job.ins").write_text("TITL x\nCELL 0.71073 7.3 9.1 8.4 90 111 90\nLATT 1\nSYMM -X, 0.5+Y, 0.5-Z\nSFAC C\n"
                                      f"UNIT 40\n{hklf}\n")
    measured = read_measured(tmp_path / "job.hkl")
    assert measured.kind == {"HKLF 3": "SHELX, F by HKLF 3", "HKLF 4": "SHELX, F² by HKLF 4",
                             "": "SHELX, F by their distribution"}[hklf]
    assert measured.intensity == pytest.approx(I, rel=0.02, abs=0.6)


def test_a_format_is_its_reader_in_the_list(tmp_path, monkeypatch):
    def read_table(path):
        table = np.loadtxt(path)
        return Found(table[:, :3].astype(int), table[:, 3], table[:, 4], 2, "a table")

    monkeypatch.setitem(reflection_files.READERS, ".xy", read_table)
    (tmp_path / "a.xy").write_text("\n".join(" ".join(map(str, row)) for row in ROWS))
    (tmp_path / "a.ins").write_text(INS)
    measured = read_measured(tmp_path / "a.xy")
    check_made(measured)
    assert measured.kind == "a table"


def test_amplitudes_are_told_in_shells_by_the_second_moment():
    """Of 0 and 1, of which a share p is 1, it is 1 / p: 1.72 for 58 of 100, 1.75 for 57."""
    d = np.linspace(2, 1, 100)
    values = np.zeros((2, 100))
    values[0, :58], values[1, :57] = 7, 7
    assert look_like_amplitudes(values[0], d) and not look_like_amplitudes(values[1], d)
    assert not look_like_amplitudes(0 * d, d)
    # two shells of 60, each of one value, the strong ones at low resolution; in one of 119 the moment is that of all, 1.9
    d = np.linspace(2, 1, 120)
    values, order = np.where(d > 1.5, 100, 1), np.random.default_rng(0).permutation(120)
    assert look_like_amplitudes(values[order], d[order]) and not look_like_amplitudes(values[:119], d[:119])
    # below zero: a half per cent of all may be, one more tells F²
    d = np.linspace(2, 1, 1000)
    for n, expected in ((5, True), (6, False)):
        assert look_like_amplitudes(np.where(np.arange(1000) < n, -0.01, 1), d) is expected


# ---- what is in a file, item by item ----

COLUMNS = [  # of the dictionaries cif_core, mmcif and pdbx, SHELXL's .fcf among them; power of F
    ("_refln_", "F_squared_meas", "F_squared_sigma", 2), ("_refln_", "F_squared_meas", "F_squared_meas_su", 2),
    ("_refln_", "intensity_meas", "intensity_sigma", 2), ("_refln_", "intensity_meas", "intensity_meas_su", 2),
    ("_refln_", "F_meas", "F_sigma", 1), ("_refln_", "F_meas", "F_meas_su", 1), ("_refln_", "F_meas", "F_meas_sigma", 1),
    ("_diffrn_refln.", "intensity_net", "intensity_sigma", 2), ("_diffrn_refln_", "intensity_net", "intensity_sigma", 2),
    ("_diffrn_refln_", "intensity_net", "intensity_u", 2), ("_diffrn_refln_", "intensity_net", "intensity_net_su", 2),
    ("_refln.", "intensity_meas", "intensity_sigma", 2), ("_refln.", "F_meas_au", "F_meas_sigma_au", 1)]
FEW = [(1, 2, 3, 11.0, 0.5), (2, 0, 0, 6.0, 0.25)]


@pytest.mark.parametrize("prefix, value, sigma, power", COLUMNS)
def test_each_pair_of_columns_is_f_or_its_square(prefix, value, sigma, power, tmp_path):
    (tmp_path / "a.cif").write_text(CIF_HEAD + loop(*hkl_of(prefix), prefix + value, prefix + sigma, rows=FEW))
    measured = read_measured(tmp_path / "a.cif")
    assert measured.kind == prefix + value and measured.hkl.tolist() == [[1, 2, 3], [2, 0, 0]]
    assert measured.intensity.tolist() == ([121, 36] if power == 1 else [11, 6])
    assert measured.sigma.tolist() == ([11, 3] if power == 1 else [0.5, 0.25])


def cif_with(old, new, tail=""):
    assert old in CIFS["F²"]
    return CIFS["F²"].replace(old, new) + tail


def test_what_a_cif_says_of_the_crystal(tmp_path):
    def read(text):
        (tmp_path / "a.cif").write_text(text)
        return read_measured(tmp_path / "a.cif")

    # the group by its operators, by a Hall symbol, by Hermann and Mauguin's, or by its number
    operators = CIF_HEAD[CIF_HEAD.index("loop_"):]
    for item in ("_symmetry_space_group_name_Hall '-P 2yn'\n", "_symmetry_space_group_name_H-M 'P 1 21/n 1'\n"):
        check_made(read(cif_with(operators, item)))
    assert read(cif_with(operators, "_symmetry_Int_Tables_number 14\n")).spacegroup.hm == "P 1 21/c 1"
    with pytest.raises(ReflectionError, match="a.cif holds no cell or no symmetry"):
        read(cif_with(operators, ""))
    # contents of the asymmetric unit: 4 operators; without a number of formula units as many as these
    for z, share in (("4", 1), ("2", 0.5), ("?", 1), ("0", 1), ("10000", 1), ("8(1)", 2)):
        elements = read(cif_with("_Z 4", f"_Z {z}")).elements
        assert elements == {"O": 2 * share, "N": share, "C": 4 * share, "H": 5 * share}, z
    assert read(cif_with("C4 H5 N O2", "C1.5 Xx3 Br")).elements == {"Br": 1, "C": 1.5}
    # a wavelength of X-rays, or none is stated
    for stated, known in (("1.54178", True), ("99.5", True), ("100", False), ("100.5", False), ("0", False), ("?", False)):
        measured = read(cif_with("1.54178", stated, "_diffrn_ambient_temperature 0\n"))
        assert set(measured.header) == ({"CELL", "ZERR"} if known else set()), stated
        assert measured.wavelength == (0 if stated == "?" else float(stated))
    assert read(cif_with("_Z 4", "_Z ?")).header == {}
    # uncertainties in units of the last digit
    text = cif_with("length_a 10.1", "length_a 10.1(2)").replace("length_b 6.2", "length_b 6(12)")
    assert read(text).header["ZERR"] == ("ZERR 4 0.2 12 0 0 0 0",)
    # the .res in it counts where its cell is that of the file, within 0.02
    for a, counts in (("10.1003", True), ("10.115", True), ("10.13", False)):
        res = f"_shelx_res_file\n;\n{INS.replace('10.1 6.2', f'{a} 6.2')}\n;\n"
        measured = read(CIFS["F²"] + res)
        assert ("TITL" in measured.header) == counts and measured.cell.a == (float(a) if counts else 10.1)
    assert "TITL" not in read(CIFS["F²"] + "_shelx_res_file\n;\nsent on request\n;\n").header


def test_a_cell_has_the_symmetry_of_the_group_but_for_a_little(tmp_path):
    """As measured cells do, whose angles are not always set to 90°."""
    (tmp_path / "a.cif").write_text(cif_with("angle_alpha 90", "angle_alpha 90.04"))
    assert read_measured(tmp_path / "a.cif").cell.alpha == 90.04
    (tmp_path / "a.cif").write_text(cif_with("angle_alpha 90", "angle_alpha 90.3"))
    with pytest.raises(ReflectionError, match="does not have the symmetry of P 1 21/n 1"):
        read_measured(tmp_path / "a.cif")


def test_numbers_that_nobody_measures_are_refused(tmp_path):
    """d(0 0 41) of 8.3 Å and β = 99° is 0.1999 Å, d(0 0 40) 0.2049: half a wavelength is at least 0.2."""
    def read(*rows):
        (tmp_path / "a.cif").write_text(CIF_HEAD + loop(*hkl_of("_refln_"), "_refln_F_squared_meas", "_refln_F_squared_sigma",
                                                        rows=[*ROWS, *rows]))
        return read_measured(tmp_path / "a.cif")

    assert len(read((0, 0, 40, 9, 1)).hkl) == 6
    for row in ((0, 0, 41, 9, 1), (1, -10000, 2, 9, 1)):
        with pytest.raises(ReflectionError, match=rf"short enough for reflection {re.escape(str(row[:3]))} of this cell"):
            read(row, (3, 0, 37, 1, 1))
    assert read((1, 1, 1, 9e29, 1)).intensity.max() == 9e29 and read((1, 1, 1, 9, 9e29)).sigma.max() == 9e29
    for row in ((1, 1, 1, 2e30, 1), (1, 1, 1, -2e30, 1), (1, 1, 1, 9, 2e30)):
        with pytest.raises(ReflectionError, match=r"a.cif holds a number of 2e\+30, which no detector counts"):
            read(row)
    for index in ("1.5", "2147483648", "-1e11"):
        with pytest.raises(ReflectionError, match="a.cif holds indices that are no whole numbers"):
            read((1, index, 1, 9, 1))
    with pytest.raises(ReflectionError, match="a.cif: no reflection is above zero"):
        (tmp_path / "a.cif").write_text(CIFS["F²"].replace(" 121.0 ", " 0 ").replace(" 100.0 ", " -1 ").replace(" 49.0 ", " 0 ")
                                        .replace(" 16.0 ", " 0 "))
        read_measured(tmp_path / "a.cif")
    # half of them with an uncertainty are enough, and F(000) is none of them
    assert len(read(*((h, 1, 1, 3, 0) for h in range(2, 7)), (0, 0, 0, 9, 1)).hkl) == 5


def test_what_was_predicted_is_not_measured(tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text([*ROWS, (4, 1, 1, 3.0, 1.0), (5, 1, 1, 3.0, 1.0)]))
    for n, notes in ((5, ("2 predicted reflections of the file are left out",)), (7, ()), (9, ())):
        (tmp_path / "a.ins").write_text(INS.replace("REM SYMM", f"REM EXTENDED: {n} measured reflections\nREM SYMM"))
        measured = read_measured(tmp_path / "a.hkl")
        assert measured.notes == notes and len(measured.hkl) == min(n, 7)


@pytest.mark.parametrize("names", [["TWIN"], ["BASF"], ["OMIT"], ["NEUT"], ["TWIN", "BASF", "OMIT"]])
def test_what_is_not_honoured_is_said(names, tmp_path):
    (tmp_path / "a.hkl").write_text(shelx_text())
    (tmp_path / "a.ins").write_text(INS.replace("UNIT", "".join(f"{name} 1\n" for name in names) + "UNIT"))
    note, = read_measured(tmp_path / "a.hkl").notes
    assert note.startswith(" and ".join(names) + " of the file: passed on to what is written, but not honoured here")


@pytest.mark.parametrize("hklf, power", [("HKLF 4", 2), ("hklf  3", 1), ("", 2), ("HKLF 5", 0)])
def test_the_res_in_a_cif_says_what_its_hkl_holds(hklf, power, tmp_path):
    text = embedded("_shelx_res_file", INS.replace("HKLF 4", hklf)) + embedded("_shelx_hkl_file", shelx_text(FEW))
    (tmp_path / "a.cif").write_text(CIF_HEAD + text)
    if not power:
        with pytest.raises(ReflectionError, match="a.cif holds reflections of HKLF 5, which is not supported: 4"):
            read_measured(tmp_path / "a.cif")
        return
    measured = read_measured(tmp_path / "a.cif")
    assert measured.intensity.tolist() == ([11, 6] if power == 2 else [121, 36])
    assert measured.kind == f"SHELX, HKLF {2 + power}, in the CIF"


def test_a_file_is_told_by_what_it_holds(tmp_path):
    mtz_file(tmp_path / "a.hkl", [("I", "J"), ("SIGI", "Q")], ROWS)
    check_made(read_measured(tmp_path / "a.hkl"), elements=False)
    (tmp_path / "b.mtz").write_text("# made\n  DATA_a" + CIFS["F²"][6:])
    check_made(read_measured(tmp_path / "b.mtz"))
    (tmp_path / "c.dat").write_text(shelx_text())
    (tmp_path / "c.ins").write_text(INS)
    check_made(read_measured(tmp_path / "c.dat"))


PAIRS = {"JQ": [("IMEAN", "J"), ("SIGIMEAN", "Q")], "FQ": [("F", "F"), ("SIGF", "Q")],
         "KM": [("I(+)", "K"), ("SIGI(+)", "M"), ("I(-)", "K"), ("SIGI(-)", "M")],
         "GL": [("F(+)", "G"), ("SIGF(+)", "L"), ("F(-)", "G"), ("SIGF(-)", "L")]}


@pytest.mark.parametrize("types", PAIRS)
def test_columns_of_an_mtz_file(types, tmp_path):
    """A second pair does not count unless it is that of the Friedel mates, of which those without an uncertainty are absent."""
    columns, both = PAIRS[types], types in ("KM", "GL")
    other = [] if both else [("SECOND", columns[0][1]), ("SIGSECOND", columns[1][1])]
    rows = [(1, 2, 3, 11, 0.5, 10, 0.25), (2, 0, 0, 6, 0.25, 5, 0), (0, 1, 1, 4, 0, 3, 1)]
    mtz_file(tmp_path / "a.mtz", [("H2", "I"), *columns, *other], [(*r[:3], 9, *r[3:]) for r in rows])
    measured = read_measured(tmp_path / "a.mtz")
    power = 2 if types in ("FQ", "GL") else 1
    expected = [((1, 2, 3), 11), ((2, 0, 0), 6)] + [((-1, -2, -3), 10), ((0, -1, -1), 3)] * both
    assert [(tuple(h), I) for h, I in zip(measured.hkl.tolist(), measured.intensity)] == [(h, x**power) for h, x in expected]
    assert measured.kind == f"MTZ, {columns[0][0]}"
    mtz_file(tmp_path / "b.mtz", [("F", "F"), ("PHI", "P")], [(1, 2, 3, 1, 2)])
    with pytest.raises(ReflectionError, match="b.mtz holds neither intensities nor amplitudes"):
        read_measured(tmp_path / "b.mtz")


def test_an_mtz_file_is_written_as_gemmi_reads_it(tmp_path):
    cell, group, rng = gemmi.UnitCell(6.1, 8.3, 11.7, 81, 95, 104), gemmi.SpaceGroup("P -1"), np.random.default_rng(0)
    hkl, F, phi = rng.integers(-9, 10, (20, 3)), rng.random(20), rng.uniform(-180, 180, 20)
    reflection_files.write_mtz(tmp_path / "a.mtz", hkl, {"F": ("F", F), "PHI": ("P", phi)}, cell, group, 0.71073, "made")
    mtz = gemmi.read_mtz_file(str(tmp_path / "a.mtz"))
    assert [(c.label, c.type) for c in mtz.columns[3:]] == [("F", "F"), ("PHI", "P")] and mtz.spacegroup == group
    np.testing.assert_allclose(mtz.array, np.column_stack([hkl, F, phi]), rtol=1e-6)
    assert mtz.cell.parameters == pytest.approx(cell.parameters, rel=1e-6)
    assert mtz.datasets[-1].dataset_name == "made" and mtz.datasets[-1].wavelength == pytest.approx(0.71073)
    for wavelength, known in ((99, 99), (0, 0), (100, 0), (101, 0)):
        columns = {"F": ("F", F + 1), "SIGF": ("Q", F + 1)}
        reflection_files.write_mtz(tmp_path / "b.mtz", hkl, columns, cell, group, wavelength, "x")
        assert read_measured(tmp_path / "b.mtz").wavelength == known
    mtz.columns[4].type = "Q"
    for unknown in ((1, 1, 1, 90, 90, 90), (0, 0, 0, 0, 0, 0)):  # as where a program did not know it
        mtz.set_cell_for_all(gemmi.UnitCell(*unknown))
        mtz.write_to_file(str(tmp_path / "c.mtz"))
        with pytest.raises(ReflectionError, match="c.mtz holds no cell or no symmetry"):
            read_measured(tmp_path / "c.mtz")


def test_what_two_files_say_is_taken_from_the_reflections_first(tmp_path):
    (tmp_path / "a.cif").write_text(CIFS["F²"])
    other = INS.replace("10.1 6.2", "10.2 6.2").replace("1.54178", "0.71073").replace("SFAC C", "SFAC Si")
    (tmp_path / "a.ins").write_text(other)
    check_made(read_measured(tmp_path / "a.cif"))  # which lacks nothing
    check_made(read_measured(tmp_path / "a.cif", tmp_path / "a.ins"))
    (tmp_path / "a.cif").write_text(cif_with("'C4 H5 N O2'", "?").replace("1.54178", "?"))
    measured = read_measured(tmp_path / "a.cif")
    assert measured.cell.a == 10.1 and measured.wavelength == 0.71073 and measured.elements["Si"] == 4
    assert measured.files == (tmp_path / "a.cif", tmp_path / "a.ins")
    (tmp_path / "a.hkl").write_text(shelx_text())
    (tmp_path / "b.cif").write_text("data_x\n_cell_length_a 10.1\n")
    with pytest.raises(ReflectionError, match="b.cif states no cell or no symmetry, and .*a.hkl does not either"):
        read_measured(tmp_path / "a.hkl", tmp_path / "b.cif")
    (tmp_path / "b.cif").write_text("data_x\n_audit_update 1\n" + CIF_HEAD)  # of several blocks the one with a cell
    check_made(read_measured(tmp_path / "a.hkl", tmp_path / "b.cif"))


def test_a_cell_with_more_reflections_than_can_be_listed_names_its_file(tmp_path):
    """Found by the fuzzer: a slip of the pen makes an edge of 790 Å, in which the same indices reach 0.26 Å."""
    lines = [f"{h:4}{k:4}{l:4}{9:8.2f}{1:8.2f}\n" for h, k, l in ((1, 2, 3), (2, 0, 34), (1, 1, 1))]
    (tmp_path / "a.hkl").write_text("".join(lines))
    (tmp_path / "a.ins").write_text("TITL a\nCELL 0.7103 790 111 9 84 90 111\nSFAC C\nUNIT 1\nHKLF 4\nEND\n")
    measured = read_measured(tmp_path / "a.hkl")
    for told in (measured.quality, measured.shells):
        with pytest.raises(ReflectionError, match=r"a\.hkl: a cell of .* reflections to .*, more than can be treated here"):
            told(measured.merge())
