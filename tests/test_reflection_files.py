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
