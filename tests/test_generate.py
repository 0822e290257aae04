"""Crystals by the million: the same file in one process, in several, on a cluster, and after any accident."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from xrd_helpers import generate as module
from xrd_helpers.config import UserError
from xrd_helpers.generate import generate
from xrd_helpers.random_crystals import random_crystals
from xrd_helpers.storage import parts_folder, read_crystals, read_metadata, write_crystals

GROUPS = ["P -1", "P 1 21/c 1", "C 1 2 1"]
ORDER = {"n": 300, "seed": 7, "spacegroups": GROUPS, "rows": 64}  # five row groups, the last of 44


@pytest.fixture(autouse=True)
def one_commit(monkeypatch):
    """The file states the commit, which is the only thing that may differ."""
    monkeypatch.setattr(module, "git_state", lambda: "abc")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The file that ORDER makes without any accident, in this process."""
    path = tmp_path_factory.mktemp("whole") / "c.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "git_state", lambda: "abc")
        assert generate(path, workers=0, **ORDER) is True
    return path.read_bytes()


@pytest.fixture(scope="module")
def all_parts(tmp_path_factory):
    """The folder of a run that was interrupted when it had all parts."""
    def stop(*args):
        raise KeyboardInterrupt

    path = tmp_path_factory.mktemp("parts") / "c.parquet"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "git_state", lambda: "abc")
        patch.setattr(module, "join_parts", stop)
        generate(path, workers=0, **ORDER)
    return parts_folder(path)


def parts_without(all_parts, tmp_path, *missing):
    """A copy of that folder in tmp_path, with some parts taken away."""
    folder = shutil.copytree(all_parts, parts_folder(tmp_path / "c.parquet"))
    for first in missing:
        (folder / f"{first:09d}.parquet").unlink()
    return folder


@pytest.fixture(scope="module")
def cluster():
    """A scheduler at an address, with two worker processes, that gives a task up after its second worker has died."""
    import dask
    from distributed import LocalCluster

    with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
                          silence_logs=logging.CRITICAL) as made:
            yield made


@pytest.fixture
def made_numbers(monkeypatch):
    """The numbers of the crystals that are made in this process from now on."""
    numbers = []

    def counting(n, seed, first=0, **options):
        numbers.extend(range(first, first + n))
        return random_crystals(n, seed, first=first, **options)

    monkeypatch.setattr(module, "random_crystals", counting)
    return numbers


def test_the_file_holds_the_crystals_in_their_order(tmp_path, content):
    path = tmp_path / "c.parquet"
    path.write_bytes(content)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [64, 64, 64, 64, 44]
    rows = file.read().to_pylist()
    crystals = random_crystals(300, 7, spacegroups=GROUPS)
    assert {crystal.spacegroup.xhm() for crystal in crystals} == set(GROUPS)
    for row, crystal in zip(rows, crystals, strict=True):
        assert (row["name"], row["spacegroup"]) == (crystal.name, crystal.spacegroup.xhm())
        assert tuple(row["cell"]) == crystal.cell.parameters and tuple(row["elements"]) == crystal.elements
        np.testing.assert_allclose(row["fract"], crystal.fract.ravel(), rtol=1e-7)
        np.testing.assert_allclose(row["u_iso"], crystal.u_iso, rtol=1e-7)
    assert read_metadata(path) == ORDER | {"recipe": "atoms", "version": module.__version__, "commit": "abc"}


@pytest.mark.slow
def test_two_worker_processes_make_the_same_file(tmp_path, content, capfd):
    before = set(Path.cwd().iterdir())
    assert generate(tmp_path / "c.parquet", workers=2, **ORDER) is True
    assert (tmp_path / "c.parquet").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["c.parquet"] and set(Path.cwd().iterdir()) == before
    progress, _, rest = capfd.readouterr().err.rpartition("\r")[2].partition("\n")
    assert "300/300" in progress and "crystals/s" in progress and not rest  # the cluster has left without a word


def test_a_scheduler_elsewhere_makes_the_same_file(tmp_path, content, cluster, made_numbers):
    generate(tmp_path / "c.parquet", scheduler=cluster.scheduler_address, **ORDER)
    assert (tmp_path / "c.parquet").read_bytes() == content and not made_numbers


def test_a_worker_killed_in_the_middle_loses_nothing(tmp_path, content, cluster, monkeypatch):
    """The worker dies with a part under way, once; without a second try, that part would be an error."""
    died = tmp_path / "died"

    def dying_once(order, first, original=module.make_part):
        if first == 128 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(order, first)

    monkeypatch.setattr(module, "make_part", dying_once)
    generate(tmp_path / "c.parquet", scheduler=cluster.scheduler_address, **ORDER)
    assert died.exists() and (tmp_path / "c.parquet").read_bytes() == content


def test_workers_that_keep_dying_are_one_sentence(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(module, "make_part", lambda order, first: os._exit(1))
    with pytest.raises(UserError, match="the cluster failed, finished row groups are kept: KilledWorker"):
        generate(tmp_path / "c.parquet", scheduler=cluster.scheduler_address, **ORDER | {"n": 64})
    assert not list(tmp_path.iterdir())


def test_a_worker_of_another_version_is_refused(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(module, "__version__", "99.0")  # here, not in the workers
    with pytest.raises(UserError, match=r"a worker has xrd_helpers \d[\d.]*, this process 99.0: they must be the same"):
        generate(tmp_path / "c.parquet", scheduler=cluster.scheduler_address, **ORDER)


SCRIPT = """
import sys
from xrd_helpers import generate as module
module.git_state = lambda: "abc"
module.generate(sys.argv[1], 300, 7, spacegroups=["P -1", "P 1 21/c 1", "C 1 2 1"], rows=64, workers=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_parts, delay", [(1, 0), (3, 0.03), (5, 0)])
def test_a_killed_run_goes_on_and_repeats_nothing(tmp_path, content, made_numbers, n_parts, delay):
    """Killed for good a moment after it has finished so many parts: in between, and while they are joined."""
    path, folder = tmp_path / "c.parquet", parts_folder(tmp_path / "c.parquet")
    run = subprocess.Popen([sys.executable, "-c", SCRIPT, path], stderr=subprocess.DEVNULL)
    while len(list(folder.glob("[0-9]*.parquet"))) < n_parts and run.poll() is None:
        time.sleep(0.001)
    time.sleep(delay)
    run.kill()
    run.wait()
    n_finished = 300
    if not path.exists():  # it may have been quicker
        finished = read_crystals(folder)
        n_finished = len(finished)
        assert n_finished >= 44 + 64 * (n_parts - 1)
        assert [number_of(crystal) for crystal in finished] == list(range(n_finished))
    generate(path, workers=0, **ORDER)
    assert made_numbers == list(range(n_finished, 300))
    # killed with all done, it left its lock, which holds nobody up
    left = {".c.parquet.parts.lock"} if n_finished == 300 else set()
    assert path.read_bytes() == content and {p.name for p in tmp_path.iterdir()} - left == {"c.parquet"}


def number_of(crystal):
    return int(crystal.name.rpartition("_")[2])


def damage_byte(content):
    return content[:1000] + bytes([content[1000] ^ 255]) + content[1001:]


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:-1], lambda c: bytes(len(c)), damage_byte])
def test_damaged_parts_are_made_again_and_no_others(tmp_path, content, all_parts, made_numbers, damage):
    folder = parts_without(all_parts, tmp_path, 192)
    part = folder / "000000064.parquet"
    part.write_bytes(damage(part.read_bytes()))
    (folder / ".000000192.1a2b.parquet").write_bytes(b"half a file")
    assert generate(tmp_path / "c.parquet", workers=0, **ORDER) is True
    assert made_numbers == [*range(64, 128), *range(192, 256)]
    assert (tmp_path / "c.parquet").read_bytes() == content and not folder.exists()


def test_the_file_states_every_commit_that_made_it(tmp_path, all_parts, monkeypatch):
    parts_without(all_parts, tmp_path, 0)
    monkeypatch.setattr(module, "git_state", lambda: "def")
    generate(tmp_path / "c.parquet", workers=0, **ORDER)
    assert read_metadata(tmp_path / "c.parquet")["commit"] == "abc, def"


OTHERS = [{"seed": 8}, {"n": 20}, {"n": 301}, {"spacegroups": None}, {"spacegroups": GROUPS[::-1]}, {"recipe": "molecules"}]


@pytest.mark.parametrize("other", OTHERS)
def test_an_unfinished_file_of_other_crystals_is_refused(tmp_path, all_parts, other):
    folder = parts_without(all_parts, tmp_path, 0, 64)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (key, value), = other.items()
    with pytest.raises(UserError, match=f"c.parquet.parts was made with {key} .*, not .*: finish it with that, or add"):
        generate(tmp_path / "c.parquet", workers=0, **ORDER | other)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_finished_file_is_left_alone(tmp_path, content, made_numbers):
    path = tmp_path / "c.parquet"
    path.write_bytes(content)
    parts_folder(path).mkdir()  # of a run that was killed in its last moment
    assert generate(path, workers=2, **ORDER) is False and not made_numbers and not parts_folder(path).exists()
    for other in OTHERS:
        with pytest.raises(UserError, match="c.parquet was made with .*: name another file, or add --overwrite"):
            generate(path, workers=0, **ORDER | other)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]
    write_crystals(path, random_crystals(3, 1))
    with pytest.raises(UserError, match="c.parquet was not made by xrd generate"):
        generate(path, workers=0, **ORDER)
    path.write_text("my notes")
    with pytest.raises(UserError, match="c.parquet is damaged or no crystal file"):
        generate(path, workers=0, **ORDER)
    assert path.read_text() == "my notes"


def test_overwriting_keeps_the_old_file_until_the_new_one_is_complete(tmp_path, content, all_parts, monkeypatch):
    path = tmp_path / "c.parquet"
    folder = parts_without(all_parts, tmp_path, 0, 128)  # of another file that was never finished
    path.write_bytes(content)
    monkeypatch.setattr(module, "join_parts", None)
    with pytest.raises(TypeError):
        generate(path, workers=0, overwrite=True, **ORDER | {"seed": 8, "n": 65})
    assert path.read_bytes() == content and [crystal.name for crystal in read_crystals(folder)] == names(8, 65)
    monkeypatch.undo()
    assert generate(path, workers=0, overwrite=True, **ORDER | {"seed": 8, "n": 65}) is True
    assert [crystal.name for crystal in read_crystals(path)] == names(8, 65) and list(tmp_path.iterdir()) == [path]
    (tmp_path / "notes").write_text("my notes")
    with pytest.raises(UserError, match="notes is damaged or no crystal file"):
        generate(tmp_path / "notes", workers=0, overwrite=True, **ORDER)


def names(seed, n):
    return [crystal.name for crystal in random_crystals(n, seed)]


def test_a_second_process_is_kept_out(tmp_path, made_numbers):
    path = tmp_path / "c.parquet"
    with module.locked(parts_folder(path)):
        with pytest.raises(UserError, match="another process writes .*c.parquet.parts"):
            generate(path, workers=0, **ORDER)
    assert not path.exists() and not made_numbers


@pytest.mark.parametrize("wrong, words", [
    ({"n": 0}, "n must be at least 1, not 0"),
    ({"seed": -1}, "the seed must be at least 0, not -1"),
    ({"workers": -2}, "the number of workers must be at least 0, not -2"),
    ({"recipe": "cake"}, "no recipe 'cake'"),
    ({"spacegroups": ["P 99"]}, "'P 99' is no space group"),
    ({"workers": 1, "scheduler": "tcp://127.0.0.1:1"}, "not both"),
    ({"workers": None, "scheduler": "post://here"}, "no dask scheduler answers at post://here"),
])
def test_a_mistake_is_told_and_leaves_nothing(tmp_path, wrong, words):
    with pytest.raises(UserError, match=words):
        generate(tmp_path / "c.parquet", **ORDER | {"workers": 0} | wrong)
    with pytest.raises(UserError, match="is a folder"):
        generate(tmp_path, workers=0, **ORDER)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("parent", [signal.SIG_DFL, signal.SIG_IGN], ids=["shell", "nohup"])
def test_ctrl_c_in_a_terminal_is_one_sentence(tmp_path, parent):
    """The terminal sends it to every process of the command, the workers included; a parent that ignores it changes nothing."""
    command = [sys.executable, "-m", "xrd_helpers.cli", "generate", "--n", "50000", "--workers", "2"]
    run = subprocess.Popen([*command, "--out", tmp_path / "c.parquet"], stderr=subprocess.PIPE, text=True,
                           start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, parent))
    while len(list(tmp_path.glob("*/[0-9]*.parquet"))) < 1 and run.poll() is None:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)
    *progress, last = [line for line in run.communicate(timeout=30)[1].splitlines() if line]
    assert run.returncode == 130 and last == "Stopped. The same command goes on from there."
    assert progress and all(line.startswith("c.parquet:") for line in progress)
    assert len(read_crystals(tmp_path / "c.parquet.parts")) % 512 == 0


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_command_alone_ends_its_workers(tmp_path, number, code):
    """At a moment when the cluster is just being set up, which used to hang now and then."""
    command = [sys.executable, "-m", "xrd_helpers.cli", "generate", "--n", "50000", "--workers", "2", "--out", "c.parquet"]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("c.parquet.parts")) and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(number)
    assert "Traceback" not in run.communicate(timeout=60)[1] and run.returncode == code
    with pytest.raises(ProcessLookupError):  # in ten seconds nobody is left in its session
        for _ in range(200):
            os.killpg(run.pid, 0)
            time.sleep(0.05)
