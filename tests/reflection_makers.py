"""Reflections made up for the tests: a few of one crystal, and the SHELX files that hold them."""

CELLS = {"P 1": (6.1, 8.3, 11.7, 81, 95, 104), "P -1": (6.1, 8.3, 11.7, 81, 95, 104),
         "P 1 21 1": (7.1, 9.3, 6.2, 90, 103, 90), "C 1 2 1": (12.1, 6.3, 7.2, 90, 108, 90),
         "P 1 21/c 1": (7.3, 9.1, 8.4, 90, 111, 90), "P 1 21/n 1": (7.3, 9.1, 8.4, 90, 99, 90),
         "I 1 2/a 1": (11.3, 5.1, 9.4, 90, 97, 90), "C 1 2/c 1": (12.3, 6.1, 9.4, 90, 107, 90)}

CELL = "10.1 6.2 8.3 90 99 90"
INS = f"""TITL made
CELL 1.54178 {CELL}
ZERR 4 0.001 0.001 0.001 0 0.01 0
LATT 1
SYMM 0.5-X, 0.5+Y, 0.5-Z
SFAC C H N =
  O
UNIT 16 20 4 8
REM SYMM is what this line does not mean
HKLF 4
END
SYMM x, y, z
"""
# equivalents: (1 2 3) and (-1 2 -3), and Friedel's mate; a negative one, and a zero with its uncertainty
ROWS = [(1, 2, 3, 121.0, 2.0), (-1, 2, -3, 100.0, 4.0), (2, 0, 0, 49.0, 1.0), (0, 1, 1, -0.5, 0.4), (3, 1, -1, 16.0, 0.5)]


def shelx_text(rows=ROWS):
    return "".join("%4d%4d%4d%8.2f%8.2f   1\n" % row for row in rows) + "   0   0   0    0.00    0.00   0\n"
