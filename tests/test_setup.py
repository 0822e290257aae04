"""The files that set the project up agree with each other."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from xrd_helpers import ROOT, __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def canonical(requirement):
    """The name a requirement such as 'PyYAML>=6 ; python_version' is known by to pip."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement).group()).lower()


DIRECT = {canonical(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]}


def test_conda_and_pip_install_the_same_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert environment["name"] == "xrd-phase" and environment["channels"] == ["conda-forge"]
    assert conda == [f"python {PROJECT['requires-python']}", "pip"]
    options = [line for line in pip["pip"] if line.startswith("-")]
    assert options == ["-c constraints.txt", "-e ."], "the versions of constraints.txt, and the package itself"
    assert {canonical(line) for line in pip["pip"] if line not in options} == DIRECT


def test_every_direct_dependency_is_pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", line) for line in lines), "no local builds such as +cpu"
    assert "torch==2.13.0" in lines
    pinned = [canonical(line) for line in lines]
    assert len(set(pinned)) == len(pinned)
    wanted = DIRECT | {canonical(text) for extra in PROJECT["optional-dependencies"].values() for text in extra}
    assert wanted <= set(pinned), f"not pinned: {sorted(wanted - set(pinned))}"


def test_one_version_number():
    assert PROJECT["version"] == __version__


def test_both_checks_begin_with_ruff():
    recipes = dict(re.findall(r"^(\w+): .*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE))
    assert all(recipes[name].startswith("\t$(BIN)/ruff check\n") for name in ("check", "test"))
    assert '-m "not slow"' in recipes["check"] and "slow" not in recipes["test"]


def test_make_has_the_promised_targets_and_ci_calls_make_test():
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    assert {"run", "check", "test", "test-browser", "lab", "docs", "bench", "clean"} <= targets
    phony = set(re.search(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE).group(1).split())
    assert phony == targets, "a file named like a target must not stop make"
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("\nmake test")
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_citation_is_of_this_version_and_licence():
    """What CFF 1.2.0 requires, and where it repeats what pyproject.toml says."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited["cff-version"] == "1.2.0"
    assert str(cited["version"]) == __version__ and cited["license"] == PROJECT["license"]
    for entry in (cited, *cited["references"]):
        assert all("name" in author or "family-names" in author for author in entry["authors"])
        assert re.fullmatch(r"10\.\d{4,}/\S+", entry.get("doi", "10.1107/x"))


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_installs_once_and_again_when_the_packages_change(tmp_path):
    """`make -n` in a copy of the set-up files: it prints what it would do and does nothing."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def installs():
        done = subprocess.run(["make", "-n", "run"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "xrd run --profile quick" in done.stdout
        return "pip install" in done.stdout

    mark = tmp_path / ".venv" / ".installed"
    mark.parent.mkdir()
    assert installs(), "a fresh clone, or an installation that was interrupted"
    mark.touch()
    os.utime(mark, (4e9, 4e9))
    assert not installs()
    os.utime(tmp_path / "constraints.txt", (4.1e9, 4.1e9))
    assert installs()
