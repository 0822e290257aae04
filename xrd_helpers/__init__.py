"""XRD Phase: extend diffraction amplitudes from 1.5 to 0.8 Å and solve the structure.

Which room answers which question, in the order in which data flow:

crystals, bonds, known_molecule       what is a crystal, which atoms are bonded, which molecule is in it?
cif, cif_folders, cod                 where do real ones come from: one CIF, thousands, the Open Database?
random_crystals, generate, storage    how are random ones drawn, how a million of them, how are they kept?
structure_factors, simulate           which amplitudes has a crystal, and what does a measurement make of them?
shelx, reflection_files, reflections  what was measured: how is it read, merged and written?
gridding, wilson                      how do amplitudes stand in the box, and how do they fall off?
models                                which networks are there, and how is each called?
sources, training, weights            which crystals does a network see, how does it learn, what is kept?
phasing                               from amplitudes to atoms: which engine, and is it the structure?
baselines, metrics, statistics        what does one know without a model, and how good is what it says?
inference                             how are measured data extended, by a network or by the atoms found?
evaluation                            which method is better, on which crystals, by how much?
phases                                can a network say phases from amplitudes alone?
plots, viewer                         what does it look like?
config, compiled, pipeline, summary, cli  what is run, with which parameters, and what came of it?
"""

import os
from pathlib import Path

__version__ = "0.3.0"

ROOT = Path(__file__).resolve().parents[1]
"""The repository: config.yaml, data/, notebooks/ and weights/ lie here."""

RUNS = Path(os.environ.get("XRD_RUNS", ROOT / "runs"))
"""What a run writes goes to RUNS / profile. The tests move it, so that they overwrite nobody's results."""


def locate(path) -> Path:
    """A path of config.yaml: relative ones start at the repository, those below runs/ wherever RUNS is."""
    path = Path(path).expanduser()
    if path.parts[:1] == ("runs",):
        return RUNS.joinpath(*path.parts[1:])
    return ROOT / path
