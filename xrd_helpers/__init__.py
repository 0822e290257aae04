"""XRD Phase: extend diffraction amplitudes from 1.5 to 0.8 Å and solve the structure."""

import os
from pathlib import Path

__version__ = "0.1.0"

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
