import json
import signal
import subprocess
import sys
import time

import pytest

from xrd_helpers import ROOT, __version__, cli, pipeline
from xrd_helpers.config import UserError


@pytest.fixture
def xrd(monkeypatch):
    """Call the command line with these arguments in this process; `pipeline.run` is `action`. Returns the exit code."""

    def call(*arguments, action=lambda *args, **options: None):
        monkeypatch.setattr(pipeline, "run", action)
        monkeypatch.setattr(sys, "argv", ["xrd", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code

    return call


def raising(error):
    def action(*args, **options):
        raise error

    return action


def test_options_reach_the_pipeline(xrd):
    calls = []
    arguments = "run --profile smoke --only 02,05 --only 06_x --set 02.a=1 --set 05.b=[1,2] --resume".split()
    assert xrd(*arguments, action=lambda *args, **options: calls.append((args, options))) == 0
    options = {"only": ["02", "05", "06_x"], "overrides": ["02.a=1", "05.b=[1,2]"], "resume": True}
    assert calls == [(("smoke",), options)]


def test_nothing_to_run_is_a_mistake(xrd, capsys):
    assert xrd("run", "--only", ",") == 2
    assert capsys.readouterr().err == "xrd: --only names no notebook: write it as in --only 02,05\n"


@pytest.mark.parametrize(
    "error, message",
    [
        (UserError("one sentence"), "xrd: one sentence\n"),
        (ValueError("d_min must be positive"), "xrd: d_min must be positive\n"),
        (FileNotFoundError(2, "No such file or directory", "job.hkl"), "xrd: job.hkl: No such file or directory\n"),
        (FileNotFoundError("no CIF folder mine/"), "xrd: no CIF folder mine/\n"),
    ],
)
def test_a_mistake_of_the_user_is_one_sentence_and_code_2(xrd, capsys, error, message):
    assert xrd("run", action=raising(error)) == 2
    assert capsys.readouterr().err == message


def test_a_failing_notebook_is_code_1_and_an_interrupt_130(xrd, capsys):
    assert xrd("run", action=raising(pipeline.NotebookFailed("02 failed in cell In [3]: ValueError: x"))) == 1
    assert capsys.readouterr().err == (
        "02 failed in cell In [3]: ValueError: x\nOnce that is mended, the same command with --resume goes on from there.\n"
    )
    assert xrd("run", action=raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "Stopped. The same command with --resume goes on from there.\n"


def test_the_installed_command_shows_no_traceback():
    done = subprocess.run([sys.executable, "-m", "xrd_helpers.cli", "run", "--only", ","], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("xrd: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("wait", [0.5, 1.0])
def test_ctrl_c_during_the_imports_is_no_traceback(tmp_path, wait):
    run = subprocess.Popen([sys.executable, "-m", "xrd_helpers.cli", "train", "--model", "unet", "--steps", "1", "--out",
                            str(tmp_path / "w.safetensors")], stderr=subprocess.PIPE, text=True)
    time.sleep(wait)
    run.send_signal(signal.SIGINT)
    said = run.communicate(timeout=60)[1]
    assert "Traceback" not in said and run.returncode in (130, -2)


def test_version_and_help(xrd, capsys):
    assert xrd("--version") == 0
    assert capsys.readouterr().out == f"xrd {__version__}\n"
    assert xrd("run", "--help") == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--profile", "--only", "--set", "--resume"))


def test_start_up_imports_nothing_slow():
    code = "import sys, xrd_helpers.cli; print([m for m in ('torch', 'numpy', 'papermill', 'nbformat') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# --- read-cifs ---

MADE_CIF = """data_made
_cell_length_a 12.1
_cell_length_b 6.3
_cell_length_c 9.2
_cell_angle_alpha 90
_cell_angle_beta 104
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 21/c'
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_U_iso_or_equiv
C1 0.11 0.22 0.33 0.04
O1 0.41 0.27 0.68 ?
"""


def test_read_cifs_reads_a_folder_and_lists_what_it_left_out(xrd, capsys, tmp_path):
    from xrd_helpers.storage import read_crystals

    (tmp_path / "cifs" / "below").mkdir(parents=True)
    (tmp_path / "cifs" / "b.cif").write_text(MADE_CIF)
    (tmp_path / "cifs" / "a.cif").write_text(MADE_CIF.replace("O1", "N1"))
    (tmp_path / "cifs" / "again.CIF").write_text(MADE_CIF.replace("O1", "N1"))
    (tmp_path / "cifs" / "below" / "half.cif").write_text(MADE_CIF[:-4])
    out = tmp_path / "crystals.parquet"
    assert xrd("read-cifs", str(tmp_path / "cifs"), "--out", str(out), "--workers", "2") == 0
    printed = capsys.readouterr().out
    rows = dict(line.rsplit(maxsplit=1) for line in printed.splitlines()[:-1])
    assert {label.strip(): int(n) for label, n in rows.items()} == {
        "files": 4, "structures in them": 4, "read": 2, "left out: does not parse": 1, "left out: duplicate": 1,
        "read, with sites that got U = 0.05 Å²": 2, "such sites": 2, "read, with a symbol of another space group": 0,
        "read, fit the monoclinic box to 0.8 Å": 2, "read, fit the orthorhombic box to 0.8 Å": 0,
        "read, fit the triclinic box to 0.8 Å": 0}
    assert [crystal.name for crystal in read_crystals(out)] == ["a", "b"]
    listed = (tmp_path / "crystals.left_out.csv").read_text(encoding="utf-8").splitlines()
    assert listed[0] == "path,name,reason,message" and len(listed) == 3
    assert "again,duplicate" in listed[1] and "half,does not parse" in listed[2]


def test_read_cifs_without_a_crystal_or_a_folder_is_a_mistake(xrd, capsys, tmp_path):
    (tmp_path / "half.cif").write_text(MADE_CIF[:-4])
    out = tmp_path / "crystals.parquet"
    arguments = ["read-cifs", str(tmp_path), "--out", str(out), "--workers", "0"]
    assert xrd(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1] == (
        f"xrd: none of the 1 files gave a crystal that can be used: {tmp_path / 'crystals.left_out.csv'} says why")
    assert not out.exists() and (tmp_path / "crystals.left_out.csv").exists()
    assert xrd("read-cifs", str(tmp_path / "absent"), "--out", str(out)) == 2
    assert "absent, which should hold CIF files, is no folder" in capsys.readouterr().err
    assert xrd(*arguments, "--box", "cubic") == 2
    assert capsys.readouterr().err == (
        "xrd: --box 'cubic' is no box: choose any, monoclinic, orthorhombic, triclinic\n")


# --- fetch-cod ---


def test_fetch_cod_hands_on_its_options_and_says_how_to_go_on(xrd, capsys, monkeypatch):
    from xrd_helpers import cod

    calls = []
    monkeypatch.setattr(cod, "fetch_cod", lambda *arguments: calls.append(arguments) or cod.Fetched(7, ["4000001"]))
    arguments = ["fetch-cod", "--spacegroup", "C 1 2 1", "--out", "cifs"]
    assert xrd(*arguments, "--max", "20", "--max-volume", "1500", "--pause", "2", "--server", "https://x.org/cod") == 0
    assert xrd(*arguments) == 0
    assert calls == [("cifs", "C 1 2 1", 20, 1500, "https://x.org/cod", 2, 60, None),
                     ("cifs", "C 1 2 1", 1000, None, cod.COD, 1, 60, None)]
    assert capsys.readouterr().out.startswith("7 found, 1 fetched, 0 there already, 0 failed\n")
    monkeypatch.setattr(cod, "fetch_cod", lambda *arguments: cod.Fetched(1, failed={"4000001": "4000001: gone"}))
    assert xrd(*arguments) == 2
    assert capsys.readouterr() == ("1 found, 0 fetched, 0 there already, 1 failed\n  4000001: gone\n",
                                   f"xrd: no entry could be fetched from {cod.COD}\n")
    assert xrd(*arguments, "--ids", "list.txt") == xrd("fetch-cod", "--out", "cifs") == 2
    assert capsys.readouterr().err.count("xrd: say what to fetch: --spacegroup") == 2
    monkeypatch.setattr(cod, "fetch_cod", raising(KeyboardInterrupt()))
    assert xrd(*arguments) == 130
    assert capsys.readouterr().err == "Stopped. The same command goes on from there.\n"


# --- generate ---


def test_generate_takes_the_scheduler_of_the_profile_unless_told_otherwise(xrd, capsys, monkeypatch, tmp_path):
    from xrd_helpers import config, generate

    (tmp_path / "c.parquet").write_bytes(bytes(2_500_000))
    monkeypatch.chdir(tmp_path)
    blocks = {name: {"01_generate_crystals": {"scheduler": f"tcp://{name}:8786"}} for name in ("quick", "full")}
    monkeypatch.setattr(config, "load_config", lambda: blocks)
    calls = []
    monkeypatch.setattr(generate, "generate", lambda *arguments: calls.append(arguments) or len(calls) > 1)
    short = ["generate", "--n", "9", "--out", "c.parquet"]
    assert xrd(*short) == 0
    assert capsys.readouterr().out == "c.parquet: 9 crystals, 2.5 MB, complete before\n"
    assert xrd(*short, "--recipe", "molecules", "--seed", "7", "--spacegroup", "P -1", "--spacegroup", "P 1 c 1",
               "--profile", "full") == 0
    assert capsys.readouterr().out == "c.parquet: 9 crystals, 2.5 MB\n"
    assert xrd(*short, "--workers", "0") == 0
    assert xrd(*short, "--scheduler", "tcp://me:1", "--overwrite") == 0
    assert calls == [("c.parquet", 9, 0, "atoms", None, "tcp://quick:8786", None, False),
                     ("c.parquet", 9, 7, "molecules", ["P -1", "P 1 c 1"], "tcp://full:8786", None, False),
                     ("c.parquet", 9, 0, "atoms", None, "", 0, False),
                     ("c.parquet", 9, 0, "atoms", None, "tcp://me:1", None, True)]
    assert xrd(*short, "--profile", "qick") == 2
    assert capsys.readouterr().err.endswith("has no profile 'qick'; did you mean 'quick'?\n")
    monkeypatch.setattr(generate, "generate", raising(KeyboardInterrupt()))
    assert xrd(*short) == 130
    assert capsys.readouterr().err == "Stopped. The same command goes on from there.\n"


# --- train ---


@pytest.mark.slow
def test_train_writes_weights_that_load_and_its_second_call_touches_nothing(xrd, capsys, tmp_path):
    from xrd_helpers.random_crystals import random_crystals
    from xrd_helpers.storage import write_crystals
    from xrd_helpers.weights import load_model

    file, out = tmp_path / "c.parquet", tmp_path / "w.safetensors"
    write_crystals(file, random_crystals(16, 0))
    arguments = ["train", "--model", "xrd_transformer", "--crystals", str(file), "--n-validation", "2", "--steps", "2",
                 "--batch-size", "1", "--device", "cpu", "--missing", "0.1", "--d-min", "1.4", "1.6", "--out", str(out)]
    assert xrd(*arguments) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 0.0 MB, 2 crystals in 0.")
    model, made = load_model(out)
    assert type(model).__name__ == "XRDTransformer"
    assert made["recipe"] == "atoms" and made["n_validation"] == 2 and made["missing"] == 0.1 and made["d_min"] == [1.4, 1.6]
    assert 0 < made["r_ext"] and 0 < made["shell_mean_r_ext"] < 1
    assert len((tmp_path / "w.csv").read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.parquet", "w.csv", "w.safetensors"]
    before = out.stat().st_mtime_ns
    assert xrd(*arguments) == 2
    assert "is there already: choose another name, or add --overwrite" in capsys.readouterr().err
    assert out.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("arguments, message", [
    ([], "a training needs an end: give --minutes, --steps or --n-crystals"),
    (["--steps", "1", "--model", "vnet"], "there is no model 'vnet': the models are unet, fft_unet, xrd_transformer, "
                                            "patterson_net, or your own"),
    (["--steps", "1", "--recipe", "salts"], "there is no recipe 'salts': the recipes are atoms and molecules"),
    (["--steps", "1", "--box", "cubic"], "there is no box 'cubic': the boxes are monoclinic, orthorhombic, triclinic"),
    (["--steps", "1", "--device", "tpu"], "there is no device 'tpu': choose auto, cpu, cuda"),
    (["--steps", "1", "--crystals", "none.parquet"], "none.parquet does not exist: run notebook 01_generate_crystals first"),
    (["--steps", "1", "--out", "w.pt"], "weights are written as safetensors: name the file w.safetensors, not w.pt"),
    (["--steps", "1", "--d-target", "1.5"], "d_target must be above 0 and below d_input, else nothing is left to predict: "
                                            "d_target is 1.5 Å and d_input 1.5 Å"),
    (["--steps", "1", "--missing", "1"], "missing must be a share from 0 to below 1 and noise not below 0, not 1 and 0"),
])
def test_a_mistake_in_train_is_one_sentence(xrd, capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert xrd("train", "--model", "unet", "--out", "w.safetensors", "--n-validation", "1", *arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith(f"xrd: {message}") and not list(tmp_path.iterdir())


def test_an_interrupted_train_says_how_to_go_on(xrd, capsys, monkeypatch):
    from xrd_helpers import training

    monkeypatch.setattr(training, "train", raising(KeyboardInterrupt()))
    assert xrd("train", "--model", "unet", "--steps", "1", "--out", "w.safetensors") == 130
    assert capsys.readouterr().err == "Stopped. The same command goes on from the last checkpoint.\n"


# --- evaluate ---


@pytest.fixture(scope="module")
def small_unet(tmp_path_factory):
    """A file of weights of an untrained UNet of four channels, that says how it scored."""
    from xrd_helpers.models import UNet
    from xrd_helpers.weights import save_model

    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(path, "unet", UNet(UNet.Config((3, 4), 5)), box="monoclinic", d_input=1.5, d_target=0.8, r_ext=0.6,
               cc_ext=0.45, shell_mean_r_ext=0.55, shell_mean_cc_ext=0.5, recipe="atoms")
    return path


def test_evaluate_writes_a_row_a_crystal_and_method(xrd, capsys, tmp_path, small_unet):
    import pandas as pd

    (tmp_path / "cifs").mkdir()
    (tmp_path / "cifs" / "a.cif").write_text(MADE_CIF)
    (tmp_path / "cifs" / "b.cif").write_text(MADE_CIF.replace("O1 0.41", "S1 0.45"))
    (tmp_path / "cifs" / "big.cif").write_text(MADE_CIF.replace("length_b 6.3", "length_b 26.3"))
    out = tmp_path / "table.csv"
    arguments = ["evaluate", str(tmp_path / "cifs"), "--out", str(out), "--workers", "0", "--curve", "20"]
    assert xrd(*arguments, "--model", str(small_unet)) == 0
    printed = capsys.readouterr().out
    table = pd.read_csv(out)
    assert list(table["name"]) == ["a"] * 4 + ["b"] * 4
    assert list(table["method"][:4]) == ["small", "shell mean", "shell permuted", "zero fill"]
    assert list(table["light"]) == [True] * 4 + [False] * 4
    how = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert how["options"]["seed"] == 0 and how["options"]["models"] == ["small"] and {"commit", "machine"} <= set(how)
    assert "left out: too big for the box" in printed and "all: 2 crystals" in printed
    assert "light (C, H, N, O, F, B only): 1 crystals" in printed and "Wilcoxon" in printed


def test_evaluate_phase_first(xrd, capsys, tmp_path):
    import pandas as pd

    (tmp_path / "a.cif").write_bytes((ROOT / "data" / "molecules" / "glycine_alpha_high_pressure.cif").read_bytes())
    out = tmp_path / "table.csv"
    assert xrd("evaluate", str(tmp_path), "--out", str(out), "--workers", "0", "--curve", "20", "--model", "phase_first",
               "--trials", "4", "--d-input", "1.0") == 0
    table = pd.read_csv(out).set_index("method")
    assert list(table.index) == ["phase first", "shell mean", "shell permuted", "zero fill"]
    assert table.loc["phase first", "cc_ext"] > 0.9, "the five atoms are found from data to 1.0 Å"


def test_evaluate_molecule_first_says_what_it_knew(xrd, capsys, tmp_path):
    import pandas as pd

    (tmp_path / "a.cif").write_bytes((ROOT / "data" / "molecules" / "glycine_alpha_high_pressure.cif").read_bytes())
    out = tmp_path / "table.csv"
    assert xrd("evaluate", str(tmp_path), "--out", str(out), "--workers", "0", "--curve", "20", "--model", "molecule_first",
               "--d-input", "2.0") == 0
    table = pd.read_csv(out).set_index("method")
    assert list(table.index) == ["molecule first (molecule known)", "shell mean", "shell permuted", "zero fill"]
    assert table["cc_ext"].iloc[0] > 0.9 and table["cc_ext"].iloc[1] < 0.6
    assert "molecules known, for molecule_first" in capsys.readouterr().out


def test_evaluate_takes_generated_crystals_too(xrd, capsys, tmp_path):
    import pandas as pd

    from xrd_helpers.cif import read_cif
    from xrd_helpers.gridding import BOXES, select_fitting
    from xrd_helpers.storage import read_crystals

    made, out = tmp_path / "made.parquet", tmp_path / "table.csv"
    assert xrd("generate", "--n", "6", "--out", str(made), "--workers", "0", "--spacegroup", "P 1 21/c 1") == 0
    (tmp_path / "cifs").mkdir()
    (tmp_path / "cifs" / "a.cif").write_text(MADE_CIF)
    assert xrd("evaluate", str(made), str(tmp_path / "cifs"), "--out", str(out), "--workers", "0", "--curve", "20",
               "--model", "phase_first", "--trials", "1", "--noise", "0.05") == 0
    table, printed = pd.read_csv(out), capsys.readouterr().out
    fitting, _ = select_fitting([*read_crystals(made), read_cif(tmp_path / "cifs" / "a.cif")], BOXES["monoclinic"], 0.8)
    assert f"all: {len(fitting)} crystals" in printed and len(fitting) > 3 and len(table) == 4 * len(fitting)
    assert list(table["name"][::4]) == [fitting[-1].name, *(crystal.name for crystal in fitting[:-1])]


def test_evaluate_refuses_in_a_sentence(xrd, capsys, tmp_path, small_unet):
    (tmp_path / "big.cif").write_text(MADE_CIF.replace("length_b 6.3", "length_b 26.3"))
    out = tmp_path / "table.csv"
    arguments = ["evaluate", str(tmp_path), "--out", str(out), "--workers", "0"]

    def message(*more):
        assert xrd(*arguments, *more) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert message("--model", "unett").startswith("xrd: there are no weights ")
    assert message("--model", str(small_unet)) == (
        "xrd: none of the 1 files gave a crystal that fits the monoclinic box to 0.8 Å")
    assert message("--model", str(small_unet), "--box", "triclinic").endswith(
        "small.safetensors was trained for the monoclinic box, not the triclinic one")
    assert message("--box", "cubic").startswith("xrd: there is no box 'cubic': the boxes are monoclinic, ")
    assert "cannot be written: name a file" in message("--out", str(tmp_path))
    assert message("--noise", "-1").startswith("xrd: missing must be a share from 0 to below 1 and noise not below 0")
    assert "d_target is 1.6 Å and d_input 1.5 Å" in message("--d-target", "1.6")
    (tmp_path / "big.cif").unlink()
    assert message("--model", str(small_unet)).endswith("holds no .cif file")
    assert not out.exists()


# --- extend ---

EXTEND_INS = """TITL a
CELL 0.71073 9.4 6.1 7.3 90 99 90
LATT 1
SYMM -X+1/2, Y+1/2, -Z
SFAC C O
UNIT 16 4
HKLF 4
"""


@pytest.fixture
def job(tmp_path):
    """job.hkl and job.ins: 200 reflections in P2₁/a, a setting that the box holds with a and c exchanged only."""
    rows = [(h, k, l) for h in range(-6, 7) for k in range(5) for l in range(1, 5)]
    text = "".join("%4d%4d%4d%8.2f%8.2f   1\n" % (*row, 100 + 7 * i, 1.5) for i, row in enumerate(rows))
    (tmp_path / "job.hkl").write_text(text)
    (tmp_path / "job.ins").write_text(EXTEND_INS)
    return tmp_path / "job.hkl"


def test_extend_writes_beside_the_file_and_says_what_the_model_is_worth(xrd, capsys, job, small_unet):
    before = job.read_text()
    assert xrd("extend", str(job), "--model", str(small_unet), "--csv", "--mtz") == 0
    printed = capsys.readouterr().out
    assert sorted(p.name for p in job.parent.iterdir()) == [
        "job.hkl", "job.ins", "job_extended.csv", "job_extended.hkl", "job_extended.ins", "job_extended.mtz"]
    lines = (job.parent / "job_extended.hkl").read_text().splitlines()
    assert [line[:28] for line in lines[:260]] == [line[:28] for line in before.splitlines()], "measured ones are untouched"
    assert {line[28:] for line in lines[260:-1]} == {"   2"} and len(lines) > 700
    assert job.read_text() == before and (job.parent / "job.ins").read_text() == EXTEND_INS
    assert "260 measurements of" in printed and "P 1 21/a 1" in printed and "reflections predicted to 0.8 Å" in printed
    assert "r_ext 0.600, cc_ext 0.450" in printed and "nothing beyond the fall-off" in printed
    assert "SYMM -X+1/2, Y+1/2, -Z" in (job.parent / "job_extended.ins").read_text()


def test_extend_replaces_nothing_unasked(xrd, capsys, job, small_unet):
    extend = ["extend", str(job), "--model", str(small_unet)]
    (job.parent / "job_extended.ins").write_text("edited")
    assert xrd(*extend) == 2
    assert capsys.readouterr().err.endswith("job_extended.ins is there already: add --overwrite, or choose another --out\n")
    assert (job.parent / "job_extended.ins").read_text() == "edited" and not (job.parent / "job_extended.hkl").exists()
    (job.parent / "folder").mkdir()
    assert xrd(*extend, "--out", str(job.parent / "folder")) == 0 and (job.parent / "folder" / "job_extended.hkl").exists()
    assert xrd(*extend, "--overwrite") == 0 and "REM EXTENDED: 260 measured" in (job.parent / "job_extended.ins").read_text()


def test_extend_looks_for_atoms_unless_told_otherwise(xrd, capsys, job):
    assert xrd("extend", str(job), "--trials", "1", "--out", str(job.parent / "mine")) == 0  # amplitudes of no crystal
    printed = capsys.readouterr().out
    assert "no structure was found in the measured part" in printed and "Instead: PattersonNet, on crystals of its" in printed
    assert (job.parent / "mine.hkl").read_text().count("   2\n") > 400


def test_extend_refuses_in_a_sentence(xrd, capsys, job, small_unet):
    def message(*arguments):
        assert xrd("extend", *map(str, arguments)) == 2
        return capsys.readouterr().err

    model = ["--model", small_unet]
    assert message(job, "--model", "unett").startswith("xrd: there are no weights ")
    assert "job.hkl is a file that was read, and is not overwritten" in message(job, *model, "--out", job.with_suffix(""))
    assert "is not between the 0.8 and 1.5 Å that small was trained for" in message(job, *model, "--d-target", "0.7")
    assert message(job, *model, "--elements", "C Qq") == "xrd: --elements: 'Qq' is no element\n"
    (job.parent / "job.ins").write_text(EXTEND_INS.replace("6.1", "16.1"))
    assert "the box holds 0..17: b is too long" in message(job, *model)
    (job.parent / "job.ins").unlink()
    assert "job.hkl holds no cell or no symmetry" in message(job, *model)
    job.write_text("no reflections here\n")
    (job.parent / "job.ins").write_text(EXTEND_INS)
    assert "job.hkl, line 1" in message(job, *model)
    assert sorted(p.name for p in job.parent.iterdir()) == ["job.hkl", "job.ins"]


@pytest.mark.parametrize("command", ["evaluate", "extend", "read-cifs", "fetch-cod", "generate", "train"])
def test_help_shows_an_example(xrd, capsys, command):
    assert xrd(command, "--help") == 0
    assert f"Example: xrd {command} " in capsys.readouterr().out
