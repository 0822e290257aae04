"""What people, other programs and strangers hand in: files that are to be refused in one sentence, or read rightly.

``CASES`` are made up here, each a folder of files and the commands that take them; nothing is copied from anywhere.

Usage: python tests/bad_input/make.py FOLDER, which writes all of them there, a folder a case. ``benchmarks/bad_files.py`` runs
every command on every case and counts what survives; ``tests/test_bad_input.py`` does so for those that take no time.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the makers of the tests
from cif_makers import BAD as BAD_CIFS
from cif_makers import SITES, cif

CELL = "7.3 9.1 8.4 90 111 90"
INS = f"""TITL a
CELL 0.71073 {CELL}
ZERR 4 0.001 0.001 0.001 0 0.01 0
LATT 1
SYMM -X, 0.5+Y, 0.5-Z
SFAC C N O S
UNIT 12 4 8 4
HKLF 4
END
"""
INDICES = [(h, k, l) for h in range(-4, 5) for k in range(5) for l in range(1, 5)]
ROWS = [(*h, 100.0 + 7 * (i % 31), 2.5) for i, h in enumerate(INDICES)]
GARBAGE = np.random.default_rng(1).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
SECONDS, GIGABYTES = 30, 4  # of a processor, and of memory
COMMANDS = {
    "reflections": {
        "solve": "solve {file} --engine charge_flipping --trials 1 --effort quick --minutes 0.02",
        "extend": "extend {file} --model shell_mean",
    },
    "cifs": {
        "read-cifs": "read-cifs cifs --out out.parquet --workers 0",
        "evaluate": "evaluate cifs --out table.csv --model xrd_transformer --workers 0 --curve 20",
    },
    "crystals": {
        "evaluate": "evaluate {file} --out table.csv --model xrd_transformer --workers 0 --curve 20",
        "read-cifs": "read-cifs {file} --out out.parquet --workers 0",
        "train": "train --model xrd_transformer --start xrd_transformer.safetensors --crystals {file} --out mine.safetensors "
        "--steps 1 --batch-size 1 --n-validation 1 --n-validations 0 --workers 0 --device cpu",
    },
    "weights": {
        "extend": "extend job.hkl --model {file}",
        "solve": "solve job.hkl --extend {file} --trials 1 --minutes 0.02",
        "evaluate": "evaluate cifs --out table.csv --model {file} --workers 0 --curve 20",
        "train": "train --model unet --start {file} --out mine.safetensors --steps 1 --workers 0 --device cpu",
    },
    "molecule": {"solve": "solve job.hkl --molecule {file} --minutes 0.02", "extend": "extend job.hkl --molecule {file}"},
    "config": {"run": "run --profile smoke"},
    "set": {"run": "run --profile smoke --set {file}"},
    "out": {
        "generate": "generate --n 3 --workers 0 --out {file}",
        "extend": "extend job.hkl --model shell_mean --out {file}",
        "solve": "solve job.hkl --trials 1 --minutes 0.02 --out {file}",
        "read-cifs": "read-cifs cifs --out {file} --workers 0",
        "evaluate": "evaluate cifs --out {file} --model xrd_transformer --workers 0 --curve 20",
        "train": "train --model xrd_transformer --out {file} --steps 1 --workers 0 --device cpu",
    },
}


@dataclass(frozen=True)
class Case:
    """Files {name: bytes, text, or a function that makes what stands at the path}; the first is handed in, unless `handed` says
    otherwise. A sentence has to hold `named`; `reads`: it is odd but right, and has to be read. `only`: the commands that take
    it, where not all of its kind do. `big`: takes seconds to make."""

    kind: str
    name: str
    files: dict
    named: str = ""
    reads: bool = False
    handed: str | None = None
    only: tuple[str, ...] = ()
    big: bool = False

    @property
    def file(self) -> str:
        return next(iter(self.files)) if self.handed is None else self.handed

    @property
    def commands(self) -> dict[str, list[str]]:
        """{command: its arguments}, for a working directory that is the case's folder."""
        return {
            command: [word.replace("{file}", self.file) for word in text.split(" ")]
            for command, text in COMMANDS[self.kind].items()
            if not self.only or command in self.only
        }

    def write(self, folder) -> Path:
        """Make the files in a folder, which is made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (self.files | SURROUNDINGS.get(self.kind, {})).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder


def fixed(rows):
    return "".join("%4d%4d%4d%8.2f%8.2f   1\n" % row for row in rows)


def free(rows):
    return "".join("%d %d %d %.2f %.2f\n" % row for row in rows)


def devices(make):
    """Things that are no files, for a path."""
    return {
        "a folder": make(os.mkdir),
        "a named pipe": make(os.mkfifo),
        "/dev/zero": make(lambda p: p.symlink_to("/dev/zero")),
        "a link to nowhere": make(lambda p: p.symlink_to("nowhere")),
        "a link to itself": make(lambda p: p.symlink_to(p.name)),
    }


HKL = fixed(ROWS)
CIF_HEAD = (
    "data_a\n"
    + "".join(
        f"_cell_{name} {x}\n"
        for name, x in zip(("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"), CELL.split())
    )
    + "_space_group_name_H-M_alt 'P 1 21/c 1'\n_chemical_formula_sum 'C3 N O2 S'\n"
)
LOOP = "loop_\n_refln_index_h\n_refln_index_k\n_refln_index_l\n_refln_F_squared_meas\n_refln_F_squared_sigma\n"
CIF = CIF_HEAD + LOOP + free(ROWS)


# --- reflections ---


def reflections():
    cells = [
        "0 0 0 90 90 90",
        "-7.3 9.1 8.4 90 111 90",
        "nan 9.1 8.4 90 111 90",
        "inf 9.1 8.4 90 111 90",
        "7.3 9.1 8.4",
        "7.3 9.1 8.4 90 0 90",
        "7.3 9.1 8.4 90 180 90",
        "7.3 9.1 8.4 90 200 90",
        "7.3 9.1 8.4 30 120 30",
        "7.3 9.1 8.4 90 -111 90",
        "1e9 9.1 8.4 90 111 90",
        "7,3 9,1 8,4 90 111 90",
        "7.3 9.1 8.4 80 111 90",
        "0.1 0.1 0.1 90 111 90",
        "1e-300 9 8 90 111 90",
    ]
    ins = (
        {f"cell {cell}": INS.replace(CELL, cell) for cell in cells}
        | {f"cut at {n}": INS[:n] for n in (0, 10, 22, 30, 40)}
        | {f"unit {unit}": INS.replace("UNIT 12", f"UNIT {unit}") for unit in ("a", "inf", "nan", "-12")}
        | {
            "binary": bytes(range(256)) * 9,
            "noise": GARBAGE,
            "a line of megabytes": "TITL a\nCELL " + "9" * 3_000_000,
            "equals": "CELL " + "= " * 10**6,
            "no element": INS.replace("SFAC C", "SFAC Xx"),
            "wavelength zero": INS.replace("0.71073", "0"),
            "wavelength nan": INS.replace("0.71073", "nan"),
            "LATT 99": INS.replace("LATT 1", "LATT 99"),
            "LATT a word": INS.replace("LATT 1", "LATT P"),
            "LATT 0": INS.replace("LATT 1", "LATT 0"),
            "no group": INS.replace("0.5-Z", "0.3-Z"),
            "SYMM of nothing": INS.replace("-X, 0.5+Y, 0.5-Z", ""),
            "SYMM a word": INS.replace("-X, 0.5+Y, 0.5-Z", "twofold"),
            "symmetry and cell apart": INS.replace("0.5+Y, 0.5-Z", "Z, Y"),
            "HKLF 5": INS.replace("HKLF 4", "HKLF 5"),
            "HKLF in words": INS.replace("HKLF 4", "HKLF four"),
            "HKLF 10^30": INS.replace("HKLF 4", "HKLF " + "9" * 30),
            "a matrix": INS.replace("HKLF 4", "HKLF 4 1 0 1 0 0 0 1 1 0 0"),
            "operators": INS.replace("SYMM -X", "SYMM " + "-X" * 4000),
            "a thousand operators": INS.replace("SYMM", "".join(f"SYMM X+{i}/1000,Y,Z\n" for i in range(1000)) + "SYMM"),
            "zero bytes": INS.replace("\n", "\0"),
            "a page": "<html><body>404</body></html>",
            "compressed": gzip.compress(INS.encode()),
        }
    )
    for name, text in ins.items():
        yield Case("reflections", f"ins {name}", {"job.ins": text, "job.hkl": HKL}, "job.ins")
    for name, make in devices(lambda make: make).items():
        yield Case("reflections", f"ins is {name}", {"job.hkl": HKL, "job.ins": make}, "job.")
        yield Case("reflections", f"hkl is {name}", {"job.hkl": make, "job.ins": INS}, "job.hkl")
        yield Case("reflections", f"cif is {name}", {"job.cif": make}, "job.cif")
        yield Case("reflections", f"mtz is {name}", {"job.mtz": make}, "job.mtz")
    hkl = {
        "empty": "",
        "index 99999": free([(99999, 0, 0, 5, 1), *ROWS]),
        "index beyond 32 bits": free([(10**12, 0, 0, 5, 1), *ROWS]),
        "index beyond 64 bits": free([(10**30, 0, 0, 5, 1), *ROWS]),
        "h = 1e9": free([(10**9, 0, 0, 5, 1), *ROWS]),
        "index 99": fixed([(99, 99, 99, 5, 1), *ROWS]),
        "axial": fixed([(h, 0, 0, 5 + h, 1) for h in range(1, 9)]),
        "a plane": fixed([(h, k, 0, 5 + h, 1) for h in range(1, 9) for k in range(1, 9)]),
        "five": fixed(ROWS[:40:8]),
        "one": fixed(ROWS[:1]),
        "all absent": fixed([(h, 0, l, 50, 1) for h in range(6) for l in (1, 3, 5)]),
        "all negative": fixed([(*row[:3], -5, 1) for row in ROWS]),
        "all zero": fixed([(*row[:3], 0, 1) for row in ROWS]),
        "no sigma": fixed([(*row[:4], 0) for row in ROWS]),
        "negative sigma": fixed([(*row[:4], -1) for row in ROWS]),
        "not a number": HKL + "   1   2   3     nan    1.00   1\n",
        "infinity": HKL + "   1   2   3     inf    1.00   1\n",
        "1e308": free([(*row[:3], 1e308, 1e300) for row in ROWS]),
        "half an index": HKL + " 1.5 2.0 3.0    5.00    1.00\n",
        "cut in a row": HKL[: len(HKL) // 2 - 9] + "\n" + HKL,
        "a line of megabytes": "1" * 3_000_000,
        "spaces": " " * 3_000_000,
        "empty lines": "\n" * 3_000_000,
        "compressed": gzip.compress(HKL.encode()),
        "binary": b"\x00\xff\x01" * 999,
        "noise": GARBAGE,
        "a page": "<html>\n<body>404</body>",
        "zeros alone": fixed([(0, 0, 0, 0, 0)]),
        "a table of words": "h k l I sigma\n" * 50,
        "UTF-16 without a mark": HKL.encode("utf-16-le"),
        "Latin-1": b"\xe9\xe8" * 2000,
        "a pickle": b"\x80\x04cos\nsystem\n.",
        "one column": "5.0\n" * 300,
    }
    for name, text in hkl.items():
        only = ("solve",) if name == "a plane" else ()  # which can be extended
        yield Case("reflections", f"hkl {name}", {"job.hkl": text, "job.ins": INS}, "job.hkl", only=only)
    changes = {
        "cell of nan": ("7.3", "nan"),
        "cell of zero": ("7.3", "0"),
        "cell of 1e9": ("7.3", "1e9"),
        "a negative": ("7.3", "-7.3"),
        "a unknown": ("7.3", "?"),
        "a in words": ("7.3", "seven"),
        "beta 0": ("111", "0"),
        "beta 200": ("111", "200"),
        "beta nan": ("111", "nan"),
        "no such group": ("P 1 21/c 1", "P 99"),
        "no group": ("_space_group_name_H-M_alt 'P 1 21/c 1'\n", ""),
        "half an index": ("\n1 2 3 ", "\n1.5 2 3 "),
        "cut off": (CIF[len(CIF) // 2 :], ""),
        "cut in a row": ("\n4 4 4 ", "\n4 4 "),
        "h = 1e9": ("\n1 2 3 ", "\n1000000000 2 3 "),
        "h beyond 64 bits": ("\n1 2 3 ", "\n1" + "0" * 40 + " 2 3 "),
        "an open text": ("data_a\n", "data_a\n_a\n;\n"),
        "an open quote": ("'C3 N O2 S'", "'C3 N O2 S"),
        "group and cell apart": ("P 1 21/c 1", "P 4 2 2"),
        "only a list": (CIF_HEAD, "data_a\n"),
        "columns": (LOOP, LOOP.replace("_refln_index_l\n", "")),
    }
    texts = {name: CIF.replace(old, new, 1) for name, (old, new) in changes.items()} | {
        "empty": "",
        "no data": "data_a\n",
        "no list": CIF_HEAD,
        "an empty list": CIF_HEAD + LOOP,
        "noise": b"data_a\n" + GARBAGE,
        "unknown values": CIF_HEAD + LOOP + "1 2 3 ? ?\n" * 50,
        "points": CIF_HEAD + LOOP + ". . . . .\n" * 50,
        "nan values": CIF_HEAD + LOOP + "".join("%d %d %d nan 1\n" % row[:3] for row in ROWS),
        "loops in loops": "loop_\n" * 10_000,
        "deep brackets": "data_a\n_a " + "[" * 100_000,
        "zero bytes": CIF.replace("\n", "\0"),
        "compressed": gzip.compress(CIF.encode()),
        "a line of megabytes": "data_" + "a" * 3_000_000,
        "embedded noise": CIF_HEAD + "_shelx_hkl_file\n;\n" + "x y z\n" * 99 + ";\n",
        "embedded in itself": CIF_HEAD + "_shelx_fcf_file\n;\n" + "data_b\n" * 30 + ";\n",
        "embedded HKLF 5": CIF_HEAD + "_shelx_res_file\n;\nHKLF 5\n;\n_shelx_hkl_file\n;\n" + HKL + ";\n",
    }
    for name, text in texts.items():
        yield Case("reflections", f"cif {name}", {"job.cif": text}, "job.cif")
    for damage in (
        "hkl nan",
        "hkl 1e30",
        "hkl half",
        "cell nan",
        "cell 1e9",
        "cell 0",
        "cell -7",
        "sigma nan",
        "value nan",
        "sigma 0",
        "cut 90",
        "cut 2000",
        "noise 80",
        "group 0",
        "no columns",
        "header alone",
    ):
        yield Case(
            "reflections", f"mtz {damage}", {"job.mtz": lambda path, damage=damage: damaged_mtz(path, damage)}, "job.mtz"
        )
    yield Case("reflections", "no file", {"job.ins": INS}, "job.hkl", handed="job.hkl")
    yield Case("reflections", "no ins", {"job.hkl": HKL}, "job.hkl")
    for name, text in (("nothing", ""), ("this folder", "."), ("the root", "/")):
        yield Case("reflections", name, {"job.hkl": HKL, "job.ins": INS}, "a folder", handed=text)
    yield Case("reflections", "a name of 5000 letters", {"job.ins": INS}, "aaa", handed="a" * 5000 + ".hkl")
    yield Case("reflections", "a file of another program", {"job.xyz": GARBAGE}, "job.xyz")
    yield Case(
        "reflections",
        "ten million lines",
        {"job.hkl": lambda p: p.write_text(HKL * 55_556), "job.ins": INS},
        reads=True,
        big=True,
    )
    yield Case(
        "reflections",
        "two gigabytes",
        {"job.hkl": lambda p: os.truncate(_touched(p), 2**31), "job.ins": INS},
        "job.hkl",
        big=True,
    )
    yield from odd_reflections()


def odd_reflections():
    """Valid, if odd: all but the last few hold ROWS, in whatever form."""
    hkl, cif_ = (
        {
            "CRLF": HKL.replace("\n", "\r\n"),
            "CR": HKL.replace("\n", "\r"),
            "Ctrl-Z": HKL + "\x1a",
            "a byte-order mark": "\ufeff" + HKL,
            "UTF-16": HKL.encode("utf-16"),
            "free format": free(ROWS),
            "commas": free(ROWS).replace(" ", ","),
            "no batch": "".join(line[:28] + "\n" for line in HKL.splitlines()),
            "no last end of line": HKL[:-1],
            "ends with zeros": HKL + fixed([(0, 0, 0, 0, 0)]) + "_exptl_special_details\nwhatever\n",
            "ends with an empty line": HKL + "\nTITL a\n",
            "Latin-1 after the end": HKL.encode() + b"\n\xe9\n",
            "F8.3": "".join("%4d%4d%4d%8.3f%8.3f   1\n" % row for row in ROWS),
            "each three times": HKL * 3,
            "upside down": fixed(ROWS[::-1]),
            "Friedel mates": fixed([(-h, -k, -l, I, s) for h, k, l, I, s in ROWS]),
            "wide": free(ROWS).replace(" ", "   "),
            "exponents": "".join("%d %d %d %.6e %.6e\n" % row for row in ROWS),
            "absent ones besides": HKL + fixed([(h, 0, l, 3, 1) for h in range(5) for l in (1, 3)]),
            "sigma zero besides": HKL + fixed([(3, 3, 3, 3, 0)]),
        },
        {
            "as it is": CIF,
            "a byte-order mark": "\ufeff" + CIF,
            "CRLF": CIF.replace("\n", "\r\n"),
            "capital letters": CIF.replace("_cell_", "_CELL_").replace("_refln_", "_Refln_").replace("loop_", "LOOP_"),
            "Latin-1 in a text": CIF.replace("data_a\n", "data_a\n_a\n;\né\n;\n").encode("latin-1"),
            "uncertainties": CIF.replace(" 7.3\n", " 7.3(2)\n"),
            "comments": CIF.replace("\n", " # x\n"),
            "an item twice": CIF.replace("data_a\n", "data_a\n_a 1\n_a 2\n"),
            "status": CIF.replace(LOOP, LOOP + "_refln_observed_status\n").replace(" 2.50\n", " 2.50 o\n")
            + "3 3 3 9.00 1.00 x\n",
            "diffrn": CIF.replace(
                LOOP,
                LOOP.replace("_refln_", "_diffrn_refln_")
                .replace("F_squared_meas", "intensity_net")
                .replace("F_squared_sigma", "intensity_sigma"),
            ),
            "embedded": CIF_HEAD + "_shelx_hkl_file\n;\n" + HKL + ";\n",
            "two blocks": CIF_HEAD + "data_b\n" + LOOP + free(ROWS),
            "unknown ones besides": CIF + "3 3 3 ? ?\n",
            "many blocks": "".join(f"data_x{i}\n_a 1\n" for i in range(2000)) + CIF,
        },
    )
    for name, text in hkl.items():
        yield Case("reflections", f"odd hkl {name}", {"job.hkl": text, "job.ins": INS}, reads=True)
    for name, text in cif_.items():
        yield Case("reflections", f"odd cif {name}", {"job.cif": text}, reads=True)
    for damage in ("none", "plus and minus", "amplitudes", "batch besides"):
        yield Case(
            "reflections", f"odd mtz {damage}", {"job.mtz": lambda path, damage=damage: damaged_mtz(path, damage)}, reads=True
        )
    ins = {
        "TITL =": INS.replace("TITL a", "TITL a =\n  CELL and so on"),
        "REM =": INS.replace("LATT", "REM a =\nLATT"),
        "REM = and more": INS.replace("LATT", "REM a =\n  LATT 7 =\n and on\nLATT"),
        "Z 0": INS.replace("ZERR 4 ", "ZERR 0 "),
        "ZERR alone": INS.replace("ZERR 4", "ZERR"),
        "UNIT 1e30": INS.replace("UNIT 12", "UNIT 1e30"),
        "small letters": INS.lower(),
        "CRLF": INS.replace("\n", "\r\n"),
        "comments": INS.replace("\n", " ! x\n"),
        "continued": INS.replace("7.3 9.1", "7.3 =\n 9.1"),
        "no end": INS.replace("END\n", ""),
        "UTF-16": INS.encode("utf-16"),
        "an empty UNIT": INS.replace("UNIT 12 4 8 4", "UNIT"),
        "atoms": INS.replace("HKLF", "C1 1 0.1 0.2 0.3 11 0.05\nQ1 1 0.4 0.5 0.6 11 0.05 3.2\nHKLF"),
    }
    for name, text in ins.items():
        yield Case("reflections", f"odd ins {name}", {"job.hkl": HKL, "job.ins": text}, reads=True)
    yield Case("reflections", "odd name ü ñ", {"jöb ñ.hkl": HKL, "jöb ñ.ins": INS}, reads=True)
    yield Case("reflections", "a name in capital letters", {"JOB.HKL": HKL, "JOB.INS": INS}, "JOB.HKL")
    yield Case(
        "reflections",
        "a link to a file",
        {"job.hkl": lambda p: p.symlink_to("other.txt"), "job.ins": INS, "other.txt": HKL},
        reads=True,
    )


def cut(make, share):
    """A maker of the first part of what `make` writes to a path."""

    def made(path):
        make(path)
        os.truncate(path, int(share * path.stat().st_size))

    return made


def _touched(path):
    path.touch()
    return path


def damaged_mtz(path, damage="none"):
    """An MTZ file of ROWS, with a damage: what, and to which value."""
    table = np.array(ROWS, np.float32)
    mtz = gemmi.Mtz(with_base=True)
    mtz.cell, mtz.spacegroup = gemmi.UnitCell(*map(float, CELL.split())), gemmi.SpaceGroup("P 1 21/c 1")
    what, _, value = damage.partition(" ")
    if what == "cell":
        mtz.cell = gemmi.UnitCell(float(value), 9.1, 8.4, 90, 111, 90)
    if what in ("hkl", "value", "sigma"):
        table[(5, 0) if what == "hkl" else (slice(None), 3 if what == "value" else 4)] = (
            1.5 if value == "half" else float(value)
        )
    mtz.add_dataset("a")
    types = {"no": "AB", "amplitudes": "FQ", "plus": "KMKM"}.get(what, "JQ")
    for label, kind in zip(("I", "SIGI", "I(-)", "SIGI(-)"), types):
        mtz.add_column(label, kind)
    if what == "amplitudes":
        table[:, 3] = np.sqrt(table[:, 3])
        table[:, 4] /= 2 * table[:, 3]
    if what == "plus":
        table = np.column_stack([table, table[:, 3:]])
    if what == "batch":
        mtz.add_column("BATCH", "B")
        table = np.column_stack([table, np.ones(len(table), np.float32)])
    mtz.set_data(np.ascontiguousarray(table))
    mtz.write_to_file(str(path))
    content = path.read_bytes()
    if what == "cut":
        path.write_bytes(content[: int(value)])
    elif what == "noise":
        path.write_bytes(content[: int(value)] + GARBAGE[: len(content) - int(value)])
    elif what == "header":
        path.write_bytes(content[:20])
    elif what == "group":
        path.write_bytes(content.replace(b"SYMINF", b"XXMINF").replace(b"SYMM", b"XXMM"))


# --- structures: CIF files and files of crystals ---


def cifs():
    texts = {name: content for name, (content, *_) in BAD_CIFS.items()} | {
        "x nan": cif(sites=[*SITES, "C7 C nan 0.1 0.2 0.04 1"]),
        "x inf": cif(sites=[*SITES, "C7 C inf 0.1 0.2 0.04 1"]),
        "x 1e30": cif(sites=[*SITES, "C7 C 1e30 0.1 0.2 0.04 1"]),
        "a 1e9": cif((1e9, 6.3, 9.2, 90, 104, 90)),
        "a nan": cif(("nan", 6.3, 9.2, 90, 104, 90)),
        "a negative": cif((-12, 6.3, 9.2, 90, 104, 90)),
        "a 0.001": cif((1e-3, 6.3, 9.2, 90, 104, 90)),
        "beta 200": cif((12, 6.3, 9.2, 90, 200, 90)),
        "occupancy nan": cif(sites=[*SITES, "C7 C 0.2 0.1 0.2 0.04 nan"]),
        "occupancy 1e9": cif(sites=[*SITES, "C7 C 0.2 0.1 0.2 0.04 1e9"]),
        "occupancy -1": cif(sites=["C7 C 0.2 0.1 0.2 0.04 -1"]),
        "U 1e9": cif(sites=["C7 C 0.2 0.1 0.2 1e9 1"]),
        "occupancy half": cif(sites=[*SITES, "C7 C 0.2 0.1 0.2 0.04 0.5"]),
        "a line of megabytes": "data_" + "a" * 3_000_000,
        "deep brackets": "data_a\n_a " + "[" * 100_000,
        "loops in loops": "loop_\n" * 10_000,
        "zero bytes": cif().replace("\n", "\0"),
        "compressed": gzip.compress(cif().encode()),
        "UTF-16": cif().encode("utf-16"),
        "a page": "<html>404</html>",
        "no element": cif(sites=["X1 ? 0.1 0.2 0.3 0.04 1"]),
    }
    for name, text in texts.items():
        yield Case("cifs", name, {"cifs/a.cif": text}, ".left_out.csv", only=("read-cifs",))
        yield Case("cifs", f"{name}, beside a good one", {"cifs/a.cif": text, "cifs/b.cif": cif()}, reads=True)
    for name, make in devices(lambda make: make).items():
        yield Case("cifs", f"is {name}", {"cifs/a.cif": make, "cifs/b.cif": cif()}, reads=True)
        yield Case("cifs", f"the folder is {name}", {"cifs": make}, "cifs")
    yield Case("cifs", "an empty folder", {"cifs/notes.txt": ""}, "cifs")
    yield Case("cifs", "no folder", {"notes.txt": ""}, "cifs")
    odd = {
        "U nan": cif(sites=[*SITES, "C7 C 0.2 0.1 0.2 nan 1"]),
        "U -1": cif(sites=[*SITES, "C7 C 0.2 0.1 0.2 -1 1"]),
        "CRLF": cif().replace("\n", "\r\n"),
        "a byte-order mark": "\ufeff" + cif(),
        "an atom outside the cell": cif(sites=[*SITES, "C7 C 7.2 -3.9 0.2 0.04 1"]),
        "one atom": cif(sites=SITES[:1]),
        "many blocks": "".join(f"data_x{i}\n_a 1\n" for i in range(2000)) + cif(),
        "a name that is a path": cif().replace("data_made", "data_../../../etc/passwd"),
    }
    for name, text in odd.items():
        yield Case("cifs", f"odd {name}", {"cifs/a.cif": text}, reads=True)
    yield Case(
        "cifs",
        "two of one name",
        {"cifs/1/a.cif": cif(), "cifs/2/a.cif": cif(sites=[SITES[0], SITES[1].replace("O", "S")])},
        reads=True,
    )


def stored_crystals():
    def file(change=None, columns=None, n=3):
        def make(path):
            import pyarrow as pa
            import pyarrow.parquet as pq

            from xrd_helpers.random_crystals import random_crystals
            from xrd_helpers.storage import write_crystals

            write_crystals(path, random_crystals(n, 1, ["P 1 21/c 1"]))
            table = pq.read_table(path)
            if change:
                rows = table.to_pylist()
                change(rows[1])
                table = table.from_pylist(
                    rows,
                    schema=pa.schema([(f.name, f.type if f.name != "cell" else pa.list_(pa.float64())) for f in table.schema]),
                )
            pq.write_table(columns(table) if columns else table, path)

        return make

    def of(name, value, place=0):
        def change(row):
            row[name] = [*row[name][:place], value, *row[name][place + 1 :]]

        return change

    def whole(**values):
        return lambda row: row.update(values)

    nothing = dict(elements=[], fract=[], u_iso=[], occ=[], u_aniso=[])
    changes = {
        f"{name} {value}": of(name, value, 1)
        for name in ("fract", "u_iso", "occ", "cell")
        for value in (float("nan"), float("inf"), -float("inf"), 1e30)
    } | {
        "fract None": of("fract", None),
        "fract far off": of("fract", 1e7),
        "u_iso negative": of("u_iso", -0.5),
        "u_iso 1e3": of("u_iso", 1e3),
        "occ negative": of("occ", -1.0),
        "occ 0": of("occ", 0.0),
        "occ 7": of("occ", 7.0),
        "cell negative": of("cell", -7.0),
        "cell 0": of("cell", 0.0),
        "cell 1e9": of("cell", 1e9),
        "angle 200": of("cell", 200.0, 4),
        "cell of three": whole(cell=[7.0, 8.0, 9.0]),
        "cell of none": whole(cell=[]),
        "element of none": of("elements", ""),
        "element Xx": of("elements", "Xx"),
        "element X": of("elements", "X"),
        "element a path": of("elements", "../../etc"),
        "element of spaces": of("elements", "  "),
        "element Lr": of("elements", "Lr"),
        "no atoms": whole(**nothing),
        "an atom less": lambda row: row["fract"].pop(),
        "group None": whole(spacegroup=None),
        "group P 99": whole(spacegroup="P 99"),
        "group empty": whole(spacegroup=""),
        "group of another cell": whole(spacegroup="P 4 2 2"),
        "u_aniso nan": lambda row: row.update(u_aniso=[float("nan")] * 6 * len(row["elements"])),
        "u_aniso 1e20": lambda row: row.update(u_aniso=[1e20] * 6 * len(row["elements"])),
        "name None": whole(name=None),
    }
    for name, change in changes.items():
        yield Case("crystals", name, {"c.parquet": file(change)}, "c.parquet")
    import pyarrow as pa

    columns = {
        "without fract": lambda t: t.drop(["fract"]),
        "without cell": lambda t: t.drop(["cell"]),
        "cell as text": lambda t: t.set_column(t.schema.get_field_index("cell"), "cell", pa.array(["7 8 9"] * len(t))),
        "elements as numbers": lambda t: t.set_column(
            t.schema.get_field_index("elements"), "elements", pa.array([[6]] * len(t))
        ),
        "spacegroup as numbers": lambda t: t.set_column(
            t.schema.get_field_index("spacegroup"), "spacegroup", pa.array([14] * len(t))
        ),
        "no rows": lambda t: t[:0],
        "fract as a struct": lambda t: t.set_column(
            t.schema.get_field_index("fract"), "fract", pa.array([{"x": 1.0}] * len(t))
        ),
        "bytes for names": lambda t: t.set_column(t.schema.get_field_index("name"), "name", pa.array([b"\xff\xfe"] * len(t))),
    }
    for name, change in columns.items():
        yield Case("crystals", f"columns: {name}", {"c.parquet": file(columns=change)}, "c.parquet")
    contents = {
        "empty": b"",
        "noise": GARBAGE,
        "only the mark": b"PAR1PAR1",
        "a footer of gigabytes": b"PAR1" + b"\0" * 40 + struct.pack("<i", 2**31 - 1) + b"PAR1",
        "a page": b"<html>",
        "compressed": gzip.compress(b"PAR1" * 9),
    }
    for name, content in contents.items():
        yield Case("crystals", name, {"c.parquet": content}, "c.parquet")
    for share in (0.1, 0.5, 0.99):
        yield Case("crystals", f"cut at {share}", {"c.parquet": cut(file(), share)}, "c.parquet")
    for byte in (200, 600, 1500):

        def flipped(path, byte=byte):
            from xrd_helpers.random_crystals import random_crystals
            from xrd_helpers.storage import write_crystals

            write_crystals(path, random_crystals(3, 1, ["P 1 21/c 1"]))
            content = bytearray(path.read_bytes())
            content[byte] ^= 0xFF
            path.write_bytes(content)

        yield Case("crystals", f"byte {byte} damaged", {"c.parquet": flipped}, "c.parquet")
    EVALUATED = ("evaluate", "read-cifs")
    for name, make in devices(lambda make: make).items():
        yield Case("crystals", f"is {name}", {"c.parquet": make}, "c.parquet")
    yield Case("crystals", "is not there", {"notes.txt": ""}, "c.parquet", handed="c.parquet")
    yield Case("crystals", "odd: as it is", {"c.parquet": file()}, reads=True, only=EVALUATED)
    yield Case(
        "crystals",
        "odd: more columns",
        {"c.parquet": file(columns=lambda t: t.append_column("more", pa.array([1] * len(t))))},
        reads=True,
        only=EVALUATED,
    )
    yield Case(
        "crystals",
        "odd: a name that is a path",
        {"c.parquet": file(whole(name="../../../etc/passwd"))},
        reads=True,
        only=EVALUATED,
    )


# --- weights ---


def safetensors(metadata, arrays, header=None):
    """The bytes of a safetensors file by the format's description; header: changes to what it says."""
    entries, data = {"__metadata__": metadata} if metadata is not None else {}, b""
    for name, array in arrays.items():
        entries[name] = {"dtype": "F16", "shape": list(array.shape), "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    for name, change in (header or {}).items():
        entries[name] = entries[name] | change
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def small_unet():
    import torch

    from xrd_helpers.models import UNet

    torch.manual_seed(0)
    model = UNet(UNet.Config((3, 4), 5))
    return {key: value.numpy().astype(np.float16) for key, value in model.state_dict().items()}


UNET_CONFIG = {"widths": [3, 4], "bottleneck": 5, "published": False}
UNET_MADE = {"box": "monoclinic", "d_input": 1.5, "d_target": 0.8, "r_ext": 0.6, "cc_ext": 0.4, "recipe": "atoms"}


def weights():
    def file(config=None, made=None, model="unet", header=None, arrays=None, lacking=(), **metadata):
        def make(path):
            said = {
                "model": model,
                "config": config if isinstance(config, str) else json.dumps(UNET_CONFIG | (config or {})),
                "made": made if isinstance(made, str) else json.dumps(UNET_MADE | (made or {})),
            } | metadata
            path.write_bytes(
                safetensors(
                    {k: v for k, v in said.items() if k not in lacking}, (arrays or (lambda a: a))(small_unet()), header
                )
            )

        return make

    cases = {
        f"config {key} {value!r}": file({key: value})
        for key, value in [
            ("widths", [10**9, 10**9]),
            ("widths", [100_000, 4]),
            ("widths", [3] * 10_000),
            ("widths", 3),
            ("widths", "ab"),
            ("widths", None),
            ("widths", []),
            ("widths", [0, 0]),
            ("widths", [-3, 4]),
            ("widths", [3.5, 4]),
            ("widths", [3, True]),
            ("widths", [[3], [4]]),
            ("bottleneck", 10**12),
            ("bottleneck", 200_000),
            ("bottleneck", "5"),
            ("bottleneck", None),
            ("bottleneck", -5),
            ("bottleneck", [5]),
            ("published", "no"),
            ("no_such_choice", 1),
        ]
    } | {
        f"config is {text[:12]}": file(text) for text in ("[1]", "3", "{", "null", "", '{"widths": [1e400, 2]}', "[" * 100_000)
    }
    # of what `made` holds, none of these is fatal to reading the file: they are to be refused, or not to matter
    odd = {
        key: file(made={key.split(" ")[0]: value})
        for key, value in {
            "box unknown": "cubic",
            "box list": ["monoclinic"],
            "box number": 3,
            "box null": None,
            "d_input text": "1.5",
            "d_input list": [1.5],
            "d_input nan": float("nan"),
            "d_input -1": -1,
            "d_input huge": 1e30,
            "d_target text": "low",
            "d_target list": [],
            "d_target 0": 0,
            "d_target null": None,
            "d_target 2": 2.0,
            "r_ext text": "good",
            "r_ext list": [0.5],
            "r_ext nan": float("nan"),
            "cc_ext text": "good",
            "cc_ext list": [1],
            "spread text": "wide",
            "spread list": [1, 2],
            "spread empty": [],
            "spread words": {"a": 1},
            "spread nan": [float("nan")] * 10,
            "d_min text": "1.5",
            "d_min number": 1.5,
            "d_min three": [1.3, 1.5, 1.7],
            "d_min words": ["a", "b"],
            "recipe list": [1],
            "crystals_seen text": "many",
            "minutes list": [1],
            "curve number": 5,
            "shell_mean_r_ext text": "x",
            "shell_mean_cc_ext list": [1],
        }.items()
    }
    cases |= {f"made {name}": make for name, make in odd.items()}
    cases |= {f"made is {text[:12]}": file(made=text) for text in ("[1]", "3", "{", "null", "", '"text"', "[" * 100_000)}
    cases |= {
        "no model": file(lacking=["model"]),
        "no config": file(lacking=["config"]),
        "no made": file(lacking=["made"]),
        "model of a path": file(model="../../evil.py:Net"),
        "model of a file": file(model="evil.py:Net"),
        "model os": file(model="os"),
        "model empty": file(model=""),
        "model in another case": file(model="UNet"),
        "another model": file(model="fft_unet"),
        "metadata of numbers": lambda p: p.write_bytes(safetensors({"model": 3, "config": 4}, {})),
        "no metadata": lambda p: p.write_bytes(safetensors(None, small_unet())),
        "shape that does not fit": file(header={"head.weight": {"shape": [10**6, 10**6]}}),
        "offsets beyond the end": file(header={"head.weight": {"data_offsets": [0, 10**12]}}),
        "negative shape": file(header={"head.weight": {"shape": [-1, 3]}}),
        "dtype of none": file(header={"head.weight": {"dtype": "F1"}}),
        "a tensor less": file(arrays=lambda a: {k: v for k, v in a.items() if k != "head.weight"}),
        "a tensor more": file(arrays=lambda a: a | {"x": np.zeros(3, np.float16)}),
        "another shape": file(arrays=lambda a: a | {"head.weight": a["head.weight"][:, :2]}),
        "no tensors": file(arrays=lambda a: {}),
        "NaN": file(arrays=lambda a: {k: np.full_like(v, np.nan) for k, v in a.items()}),
        "infinity": file(arrays=lambda a: {k: np.full_like(v, np.inf) for k, v in a.items()}),
        "a header of gigabytes": struct.pack("<Q", 2**40) + b"{}",
        "a header of 100 MB": struct.pack("<Q", 100_000_001) + b"{}",
        "empty": b"",
        "noise": GARBAGE,
        "eight bytes": b"\0" * 8,
        "a pickle": b"\x80\x04cos\nsystem\n(S'touch sprung'\ntR.",
        "a zip file": b"PK\x03\x04" + GARBAGE,
        "a page": b"<html>404</html>",
        "compressed": gzip.compress(b"x" * 99),
    }
    for name, content in cases.items():
        yield Case("weights", name, {"w.safetensors": content}, "w.safetensors")
    for share in (0.01, 0.5, 0.999):
        yield Case("weights", f"cut at {share}", {"w.safetensors": cut(file(), share)}, "w.safetensors")
    for name, make in devices(lambda make: make).items():
        yield Case("weights", f"is {name}", {"w.safetensors": make}, "w.safetensors")
    yield Case("weights", "odd: as it is", {"w.safetensors": file()}, reads=True, only=("extend", "solve", "evaluate"))
    yield Case(
        "weights", "odd: nothing said", {"w.safetensors": file(made="{}")}, reads=True, only=("extend", "solve", "evaluate")
    )
    yield Case("weights", "a great file", {"w.safetensors": lambda p: os.truncate(_touched(p), 2**34)}, "w.safetensors")


# --- what else is typed or named ---

MOL = """water

  1  0  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 O   0  0
M  END
"""
XYZ = "3\nwater\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"


def molecules():
    smiles = [
        "",
        " ",
        "C(",
        "C1CC",
        "Xx",
        "C" * 20_000,
        "[C@@@H]",
        "c1ccccc",
        "C)C",
        "0*C",
        "99999999999*C",
        "-1*C",
        "*",
        "[H][H]",
        "C%",
        "..",
        "C.C.C.",
        "\x00",
        "naïve",
        "C=C=C=C(=C)=C",
        "[Na+].[",
        "/etc/passwd",
        "$(touch sprung)",
        "H",
        "[Og]",
        "1*",
        "*C",
        "C*",
        "[*]",
        "C" + "(C" * 500 + ")" * 500,
    ]
    for text in smiles:
        name = text if len(text) < 25 else f"{text[:8]} and {len(text)} letters"
        yield Case("molecule", f"SMILES {name!r}", {}, "", handed=text)
    files = {
        f"a.{suffix}": {
            "empty": "",
            "noise": GARBAGE,
            "a page": "<html>404</html>",
            "a line of megabytes": "9" * 3_000_000,
            "zero bytes": MOL.replace("\n", "\0"),
        }
        for suffix in ("mol", "sdf", "mol2", "xyz", "cif")
    }
    files["a.mol"] |= {
        "cut": MOL[:40],
        "atoms of none": MOL.replace(" O ", " Xx"),
        "a million atoms": MOL.replace("  1  0", "999  0"),
        "x nan": MOL.replace("0.0000    0.0000    0.0000 O", "   nan       nan       nan O"),
    }
    files["a.xyz"] |= {
        "x nan": XYZ.replace("0.96", "nan"),
        "x 1e30": XYZ.replace("0.96", "1e30"),
        "a billion atoms": XYZ.replace("3\n", "1000000000\n", 1),
        "minus three atoms": XYZ.replace("3\n", "-3\n", 1),
        "no symbol": XYZ.replace("O 0", "Q 0"),
        "a word": XYZ.replace("0.96", "one"),
        "all on a spot": XYZ.replace("0.96", "0").replace("-0.24 0.93", "0 0"),
        "hydrogen alone": "1\n\nH 0 0 0\n",
        "inf": XYZ.replace("0.96", "inf"),
    }
    files["a.cif"] |= {
        "no atoms": "data_a\n",
        "x nan": cif(sites=["C7 C nan 0.1 0.2 0.04 1"]),
        "a 1e9": cif((1e9, 6.3, 9.2, 90, 104, 90)),
        "hydrogen alone": cif(sites=["H1 H 0.1 0.2 0.3 0.04 1"]),
    }
    for file, contents in files.items():
        for name, content in contents.items():
            yield Case("molecule", f"{file} {name}", {file: content}, file)
        for name, make in devices(lambda make: make).items():
            yield Case("molecule", f"{file} is {name}", {file: make}, file)


def configs():
    texts = {
        "a tag that runs code": "!!python/object/apply:os.system ['touch sprung']",
        "a tag in a value": "smoke:\n  02_train_unet:\n    epochs: !!python/object/apply:os.system ['touch sprung']",
        "a module": "!!python/module:os",
        "a billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9))
        + "smoke: *j\n",
        "empty": "",
        "a list": "- 1\n- 2\n",
        "a number": "3",
        "a word": "smoke",
        "noise": GARBAGE,
        "Latin-1": b"smoke:\n  # \xe9\xe8\n",
        "tabs": "smoke:\n\t02_train_unet: {}\n",
        "an open bracket": "smoke: {",
        "a key twice": "smoke: {}\nsmoke: {}\n",
        "no notebook": "smoke: {99_nothing: {}}",
        "no parameter": "smoke: {02_train_unet: {epoch: 1}}",
        "a text for a number": "smoke: {02_train_unet: {epochs: many}}",
        "nan": "smoke: {02_train_unet: {lr: .nan}}",
        "a profile that is a path": "../../evil: {}\nsmoke: {}",
        "deep": "[" * 5000,
        "a list as a key": "? [1, 2]\n: 3\n",
        "zero bytes": "smoke:\0 {}",
        "a line of megabytes": "a" * 3_000_000,
        "an anchor of itself": "smoke: &a\n  02_train_unet: *a\n",
        "no smoke": "quick: {}",
    }
    for name, text in texts.items():
        yield Case("config", name, {"config.yaml": text}, "config.yaml")
    for name, make in devices(lambda make: make).items():
        yield Case("config", f"is {name}", {"config.yaml": make}, "config.yaml")
    for text in (
        "02.epochs",
        "=",
        "02.epochs=!!python/object/apply:os.system['touch${IFS}sprung']",
        "02.epochs=many",
        "02.epochs=.nan",
        "02.epochs=[",
        "99.epochs=1",
        "..=1",
        "02.profile=../../evil",
        "02.epochs=" + "[" * 3000,
        "02.epochs=&a[*a]",
        "02.epochs={a:1}",
    ):
        yield Case("set", text[:40], {}, "--set", handed=text)


def outs():
    good = {"notes.txt": "mine", "folder/notes.txt": "mine"}
    for name, text, named in [
        ("a folder", "folder", "folder"),
        ("this folder", ".", ""),
        ("nothing", "", ""),
        ("the root", "/", "/"),
        ("below a file", "notes.txt/out", "notes.txt"),
        ("a name of 5000 letters", "a" * 5000, "aaa"),
        ("a device", "/dev/full", "/dev/full"),
        ("the proc file system", "/proc/out", "/proc"),
        ("a file of mine", "notes.txt", "notes.txt"),
    ]:
        only = tuple(COMMANDS["out"])
        if name in ("a folder", "this folder", "nothing"):  # where these write into a folder
            only = tuple(command for command in only if command not in ("extend", "solve"))
        if name in ("a file of mine", "the root"):
            only = tuple(command for command in only if command not in ("extend", "solve", "read-cifs", "evaluate"))
        yield Case("out", name, good, named, handed=text, only=only)


SURROUNDINGS = {
    "weights": {"job.hkl": HKL, "job.ins": INS, "cifs/b.cif": cif()},
    "molecule": {"job.hkl": HKL, "job.ins": INS},
    "out": {"job.hkl": HKL, "job.ins": INS, "cifs/b.cif": cif()},
    "crystals": {
        "xrd_transformer.safetensors": lambda path: path.symlink_to(
            Path(__file__).resolve().parents[2] / "weights" / "xrd_transformer.safetensors"
        )
    },
}


def _cases():
    for number, case in enumerate((*reflections(), *cifs(), *stored_crystals(), *weights(), *molecules(), *configs(), *outs())):
        long = case.kind == "reflections" and case.reads and number % 5  # a search takes seconds: one in five
        yield replace(case, only=("extend",)) if long else case


CASES: list[Case] = list(_cases())
"""All of them. Names are unique within a kind."""


# --- what became of a command ---


def present(folder) -> dict:
    """{path: what it holds} of what is in a folder, links and devices by their kind."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent, name)
            found[str(path.relative_to(folder))] = (
                path.read_bytes()
                if path.is_file() and not path.is_symlink() and (path.stat().st_size < 1e7)
                else str(path.lstat().st_mode)
            )
    return found


def complaint(case, code, out, err, seconds, gigabytes, before, after) -> str:
    """What is the matter with the outcome, in a few words; "" where it survived."""
    last = (err.strip().splitlines() or [""])[-1]
    new = sorted(name for name in after if name not in before)
    changed = [name for name in before if after.get(name) != before[name]]
    if "Traceback" in out + err:
        return f"traceback: {last[:150]}"
    if code is None:
        return "did not end"
    if code < 0:
        return f"ended by signal {-code}"
    if seconds > SECONDS or gigabytes > GIGABYTES:
        return f"{seconds:.0f} s, {gigabytes:.1f} GB"
    if any(Path(name).name.startswith(".") and Path(name).name != ".lock" or Path(name).name == "sprung" for name in new):
        return f"left behind: {new}"
    if changed:
        return f"changed: {changed}"
    if case.reads:
        return "" if code in (0, 1) else f"refused, though right: {last[:200]}"
    if code != 2:
        return f"exit code {code}: {(err or out).strip()[-150:]}"
    if not last.startswith(("xrd: ", "Error: ")) or len(last) > 600 or last.startswith("xrd: '") and len(last) < 20:
        return f"no sentence: {last[:150]!r}"
    if case.named not in last:
        return f"does not name the file: {last[:200]}"
    if unasked := [name for name in new if not name.endswith(".left_out.csv")]:
        return f"wrote {unasked}"
    return ""


def main():
    folder = Path(sys.argv[1])
    for case in CASES:
        if not case.big:
            case.write(folder / case.kind / case.name.replace("/", "_")[:60])
    print(f"{len(CASES)} cases, {sum(len(case.commands) for case in CASES)} commands")


if __name__ == "__main__":
    main()
