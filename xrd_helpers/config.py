"""What a run is set up with and where it writes: `config.yaml`, the run folder, safe writing."""

import json
import math
import os
import secrets
from contextlib import contextmanager
from pathlib import Path

from xrd_helpers import RUNS


class UserError(Exception):
    """An error whose one sentence is meant for the person who typed the command, without a traceback."""


class ConfigError(UserError):
    """config.yaml, or a value given with ``--set``, does not fit the notebooks."""


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`, renamed to `path` on success and removed on failure.

    An interrupted run thus leaves the old file or the new one, never half a file. The
    temporary name keeps the suffix, because savers choose their format by it.

    Parameters
    ----------
    path : str or Path
        The file to write; missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, content):
    """Write `content` as JSON to `path` in one step; arrays become lists, NaN and infinity become null."""
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def run_folder(profile):
    """The folder RUNS / `profile`, made if it does not exist."""
    folder = RUNS / profile
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_result(profile, notebook, **values):
    """Write what a notebook found to ``RUNS/<profile>/results/<notebook>.json``, for the summary of the run.

    Parameters
    ----------
    profile, notebook : str
        For example ``"quick"`` and ``"05_infer_amplitudes"``.
    **values
        Scores: numbers, strings, lists, dicts of them; numpy scalars and arrays are converted.
        Two names are special: ``table``, a list of dicts, one a row, and ``figures``, a list of
        PNG paths, absolute or relative to the run folder.

    Returns
    -------
    path : Path
        The file written.
    """
    folder = run_folder(profile)
    if "figures" in values:
        values["figures"] = [_inside(figure, folder) for figure in values["figures"]]
    path = folder / "results" / f"{notebook}.json"
    write_json(path, values)
    return path


def _inside(path, folder):
    """`path` relative to `folder`, with forward slashes, so that the run folder can be moved as a whole."""
    path = Path(path)
    return (path.relative_to(folder) if path.is_absolute() else path).as_posix()


def _plain(value):
    """`value` in JSON's own types. Arrays and tensors are known by their ``tolist``: no need to import either library."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
