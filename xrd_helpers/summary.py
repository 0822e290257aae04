"""What a run found, on one page: summary.json for programs, summary.md for people."""

import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import quote

from xrd_helpers import ROOT
from xrd_helpers.config import atomic_path, write_json


def write_summary(folder, profile, finished, run, failure=None):
    """Write `folder`/summary.json and `folder`/summary.md.

    Parameters
    ----------
    folder : Path
        The run folder, with the notebooks' results in ``results/``.
    profile : str
        Name of the profile.
    finished : dict
        Notebook to what is recorded of it: ``parameters``, ``seconds``, ``time``, ``run``, ``git``.
    run : str
        Mark of the present run; notebooks that bear another one are shown as older.
    failure : str, optional
        Why the run stopped early.

    Returns
    -------
    path : Path
        The file summary.md.
    """
    summary = {
        "profile": profile,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "machine": machine(),
        "failure": failure,
        "notebooks": {
            name: {
                "parameters": entry.get("parameters", {}),
                "seconds": entry.get("seconds"),
                "date": entry["time"],
                "git": entry.get("git"),
                "earlier_run": entry.get("run") != run,
                "results": _read_results(folder / "results" / f"{name}.json"),
            }
            for name, entry in sorted(finished.items())
        },
    }
    write_json(folder / "summary.json", summary)
    with atomic_path(folder / "summary.md") as temporary:
        temporary.write_text(render(summary), encoding="utf-8")
    return folder / "summary.md"


def _read_results(path):
    """The results a notebook wrote, or {} if it wrote none."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"error": f"{path.name} is not JSON"}
    return results if isinstance(results, dict) else {"result": results}


# --- where and with what ---


def git_state(root=ROOT):
    """The commit of the repository at `root`, with ' + changes' if files differ from it; 'unknown' outside git."""

    def git(*arguments):
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != Path(root).resolve():
            return "unknown"  # unpacked inside somebody else's repository
        return git("rev-parse", "HEAD") + (" + changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine():
    """Kind of machine and versions, for the reader of a time or a score; nothing that names the machine itself."""
    try:
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        memory = "unknown"
    try:
        torch = version("torch")  # without the import, which takes seconds
    except PackageNotFoundError:
        torch = "none"
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": memory,
        "gpu": _first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "none",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch,
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return _first_line("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or "unknown"


def _first_line(program, *arguments):
    """First line that a program prints, '' if it is missing or fails."""
    if not shutil.which(program):
        return ""
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else ""


# --- Markdown ---


def render(summary):
    """The summary as Markdown text."""
    here = summary["machine"]
    lines = [
        f"# Results of the profile {summary['profile']}",
        "",
        f"- **Date** {_day(summary['date'])}, **commit** {summary['git']}",
        f"- **Machine** {here['processor']}, {here['cores']} cores, {here['memory']}, GPU {here['gpu']}, {here['system']}",
        f"- **Versions** Python {here['python']}, torch {here['torch']}",
    ]
    if summary["failure"]:
        lines += ["", f"**The run stopped early.** {summary['failure'].splitlines()[0]}"]
    notebooks = summary["notebooks"]
    rows = [
        {
            "notebook": f"[{name}](notebooks/{name}.html)",
            "seconds": entry["seconds"],
            "seed": entry["parameters"].get("seed"),
            "run": _origin(entry),
        }
        for name, entry in notebooks.items()
    ]
    lines += ["", *_table(rows)] if rows else ["", "No notebook is finished."]
    for name, entry in notebooks.items():
        lines += ["", f"## {name}", ""]
        if entry["earlier_run"]:
            lines += [f"*From an {_origin(entry)}, commit {entry['git']}.*", ""]
        lines += ["Parameters: " + ", ".join(f"`{key} = {value!r}`" for key, value in entry["parameters"].items())]
        lines += _render_results(entry["results"])
    return "\n".join(lines) + "\n"


def _origin(entry):
    return f"earlier run of {_day(entry['date'])}" if entry["earlier_run"] else "this run"


def _day(date):
    return date[:16].replace("T", " ") + " UTC"


def _render_results(results):
    """Scores as a table of name and value, every list of dicts as a table of its own, figures as images."""
    results = dict(results)
    figures = results.pop("figures", None) or []
    scores, tables = [], []
    for name, value in _flat(results):
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            tables += [""] + ([] if name == "table" else [f"{name}:", ""]) + _table(value)
        else:
            scores.append({"score": name, "value": value})
    lines = (["", *_table(scores)] if scores else []) + tables
    for figure in figures:
        lines += ["", f"![{Path(figure).stem}]({quote(figure)})"]
    return lines


def _flat(values, prefix=""):
    """Pairs of a dotted name and a value, of a nested dict."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _table(rows):
    """Lines of a Markdown table; `rows` is a list of dicts, a key that a row lacks is left empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(_text(column) for column in columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(_text(row.get(column)) for column in columns) + " |" for row in rows]


def _text(value):
    """A value as the text of a table cell: four digits, no line breaks, nothing that ends the cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return " ".join(str(value).split()).replace("|", "\\|")
