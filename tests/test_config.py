import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from makers import make_notebook
from xrd_helpers import config
from xrd_helpers.config import (
    ConfigError,
    UserError,
    atomic_path,
    get_profile,
    load_config,
    locked,
    read_parameters,
    run_folder,
    set_value,
    write_result,
)

TRAIN = {"epochs": 1, "learning_rate": 0.001}
DEFAULTS = {"seed": 0, "d_input": 1.5, "n_grid": [8, 8, 8], "device": "cpu", "cif_dirs": [], "shuffle": True}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with two notebooks and a valid config.yaml, which is also the working directory."""
    make_notebook(tmp_path / "notebooks", "01_generate")
    make_notebook(tmp_path / "notebooks", "02_train_unet", parameters="epochs = 1\nlearning_rate = 0.001")
    (tmp_path / "notebooks" / "scratch.ipynb").write_text("a user's own, not of the pipeline")
    monkeypatch.chdir(tmp_path)
    write_config({})
    return tmp_path


def write_config(changes, profile="quick"):
    with open("config.yaml", "w") as file:
        yaml.safe_dump({profile: changes}, file)


def load():
    return load_config("config.yaml", "notebooks")


# --- reading ---


def test_an_empty_profile_is_the_defaults_in_the_order_of_the_notebooks(project):
    assert load() == {"quick": {"01_generate": DEFAULTS, "02_train_unet": TRAIN}}
    assert list(load()["quick"]) == ["01_generate", "02_train_unet"]


def test_a_profile_changes_what_it_lists_and_nothing_else(project):
    write_config({"02_train_unet": {"epochs": 7}}, "full")
    assert load() == {"full": {"01_generate": DEFAULTS, "02_train_unet": {"epochs": 7, "learning_rate": 0.001}}}


def test_a_notebook_that_asks_for_its_profile_is_told(project):
    make_notebook(project / "notebooks", "02_train_unet", parameters='profile = "quick"\nepochs = 1')
    write_config({"02_train_unet": {"epochs": 7}}, "full")
    assert load()["full"]["02_train_unet"] == {"profile": "full", "epochs": 7}
    write_config({}, "full")
    assert load()["full"]["02_train_unet"] == {"profile": "full", "epochs": 1}
    assert "profile" not in load()["full"]["01_generate"], "it has no such parameter"


def test_a_profile_cannot_pass_for_another(project):
    make_notebook(project / "notebooks", "02_train_unet", parameters='profile = "quick"')
    write_config({"02_train_unet": {"profile": "full"}})
    with pytest.raises(ConfigError, match="quick.02_train_unet.profile is not set: it is the name of the block"):
        load()
    write_config({})
    with pytest.raises(ConfigError, match="the profile is chosen with --profile"):
        set_value(load()["quick"], "02.profile=full", "notebooks")


def test_int_stands_for_float_and_exponents_are_numbers(project):
    with open("config.yaml", "w") as file:
        file.write("full:\n  01_generate: {d_input: 2, cif_dirs: [a, b]}\n  02_train_unet: {learning_rate: 1e-4}\n")
    full = load()["full"]
    assert full["02_train_unet"]["learning_rate"] == 1e-4
    assert full["01_generate"]["d_input"] == 2 and isinstance(full["01_generate"]["d_input"], float)
    assert full["01_generate"]["cif_dirs"] == ["a", "b"]


def test_blocks_may_be_shared_by_yaml_anchors(project):
    with open("config.yaml", "w") as file:
        file.write("smoke: &all\n  02_train_unet: &train {epochs: 2, learning_rate: 0.1}\n  01_generate: &one {seed: 1}\n"
                   "quick:\n  <<: *all\n  02_train_unet: {<<: *train, epochs: 9}\n")  # fmt: skip
    assert load()["quick"] == {"01_generate": DEFAULTS | {"seed": 1}, "02_train_unet": {"epochs": 9, "learning_rate": 0.1}}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"02_train_unet": {"epoch": 1}},
         "config.yaml: quick.02_train_unet has no parameter 'epoch'; did you mean 'epochs'?"),
        ({"02_train_unet": {"xyz": 1}},
         "config.yaml: quick.02_train_unet has no parameter 'xyz'; its parameters are epochs, learning_rate"),
        ({"02_train_unet": {"profile": "quick"}},
         "config.yaml: quick.02_train_unet.profile is not set: it is the name of the block"),
        ({"02_train_unet": {"epochs": "three"}},
         "config.yaml: quick.02_train_unet.epochs must be a whole number, not 'three'"),
        ({"02_train_unet": {"epochs": 1.0}},
         "config.yaml: quick.02_train_unet.epochs must be a whole number, not 1.0"),
        ({"02_train_unet": {"epochs": True}},
         "config.yaml: quick.02_train_unet.epochs must be a whole number, not True"),
        ({"02_train_unet": {"learning_rate": float("nan")}},
         "config.yaml: quick.02_train_unet.learning_rate must be a number, not nan"),
        ({"01_generate": {"n_grid": [8, "8", 8]}},
         "config.yaml: item 2 of quick.01_generate.n_grid must be a whole number, not '8'"),
        ({"01_generate": {"cif_dirs": "mine"}},
         "config.yaml: quick.01_generate.cif_dirs must be a list in which each item is a text, not 'mine'"),
        ({"02_train_unet": [1]}, "config.yaml: quick.02_train_unet must hold parameters of the notebook, as in 'seed: 0'"),
        ({"02_train_unet": None}, "config.yaml: quick.02_train_unet must hold parameters of the notebook, as in 'seed: 0'"),
        ({"02_train_unett": {}}, "config.yaml: quick has no notebook '02_train_unett'; did you mean '02_train_unet'?"),
    ],
)  # fmt: skip
def test_every_mistake_gets_one_sentence(project, changes, message):
    write_config(changes)
    with pytest.raises(ConfigError) as caught:
        load()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text, message",
    [
        ("quick:\n  a: [1,\n", "config.yaml, line 3: "),
        ("quick:\n  a: {}\n  a: {}\n", "config.yaml, line 3: 'a' stands here a second time"),
        ("", "config.yaml must hold a block per profile"),
        ("quick: 3", "config.yaml: quick must hold a block per notebook, or {} for their defaults"),
        ("quick:", "config.yaml: quick must hold a block per notebook, or {} for their defaults"),
        ("../out: {}", "config.yaml: a profile is named with letters, digits, - and _ only, not '../out'"),
    ],
)
def test_broken_yaml_names_the_line(project, text, message):
    (project / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        load()


def test_missing_and_unreadable_files(project):
    with pytest.raises(ConfigError, match="^elsewhere.yaml cannot be read: No such file"):
        load_config("elsewhere.yaml", "notebooks")
    (project / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="^config.yaml is not text in UTF-8"):
        load()
    with pytest.raises(ConfigError, match="^empty has no notebook"):
        load_config("config.yaml", "empty")


def test_unknown_profile(project):
    with pytest.raises(ConfigError, match="^config.yaml has no profile 'quik'; did you mean 'quick'"):
        get_profile(load(), "quik", "config.yaml")


# --- the parameters cell ---


@pytest.mark.parametrize("line", ["a: int = 1", "a = 2 ** 3", "a = (1, 2)", "a = None", "a = [1, 'b']", "a = b = 1",
                                  "import os", "a[0] = 1", "a = [[1]]", "a += 1"])  # fmt: skip
def test_what_papermill_cannot_replace_is_refused(tmp_path, line):
    path = make_notebook(tmp_path, "01_x", parameters=f"seed = 0\n{line}")
    with pytest.raises(ConfigError, match="line 2 of the parameters cell must be `name = value`"):
        read_parameters(path)


def test_defaults_are_read_without_running_the_notebook(tmp_path):
    assert read_parameters(make_notebook(tmp_path, "01_x", "raise SystemExit")) == DEFAULTS
    path = make_notebook(tmp_path, "01_x", parameters="a = -1.5e-3\nb = [1, 2.0]")
    assert read_parameters(path) == {"a": -1.5e-3, "b": [1, 2.0]}


def test_bad_notebooks(tmp_path):
    path = make_notebook(tmp_path, "01_x", parameters="seed = ")
    with pytest.raises(ConfigError, match="line 1 of the parameters cell is not Python"):
        read_parameters(path)
    path.write_text('{"cells": [{}]}')
    with pytest.raises(ConfigError, match="is not a notebook"):
        read_parameters(path)
    path.write_text('{"cells": []}')
    with pytest.raises(ConfigError, match="needs exactly one cell tagged 'parameters', it has 0"):
        read_parameters(path)


# --- --set ---


def test_set_changes_one_value_of_a_copy(project):
    before = load()["quick"]
    after = set_value(set_value(before, "02_train_unet.epochs=3", "notebooks"), "01.n_grid = [4, 4, 4]", "notebooks")
    assert after["02_train_unet"] == {"epochs": 3, "learning_rate": 0.001} and after["01_generate"]["n_grid"] == [4, 4, 4]
    assert before == load()["quick"]
    assert set_value(before, "01.device=cuda:0", "notebooks")["01_generate"]["device"] == "cuda:0"
    assert set_value(before, "01.device=", "notebooks")["01_generate"]["device"] == ""


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("02_train_unet.epoch=3", "--set: 02_train_unet has no parameter 'epoch'; did you mean 'epochs'?"),
        ("02.epochs=x", "--set: 02_train_unet.epochs must be a whole number, not 'x'"),
        ("2_train.epochs=3", "--set: there is no notebook '2_train'; did you mean '02_train_unet'?"),
        ("07.epochs=3", "--set: there is no notebook '07'; the notebooks are 01_generate, 02_train_unet"),
        ("epochs=3", "--set 'epochs=3' must look like 02_train_unet.epochs=3"),
        ("02.epochs=[1", "--set '02.epochs=[1': the value is not YAML"),
    ],
)
def test_set_is_checked_like_the_file(project, assignment, message):
    with pytest.raises(ConfigError) as caught:
        set_value(load()["quick"], assignment, "notebooks")
    assert str(caught.value) == message


# --- writing ---


def test_atomic_path_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "deep" / "unet.safetensors"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".safetensors"
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_file_that_a_killed_process_left_is_taken_by_the_next(tmp_path):
    """And only one of them: a temporary file has one name, unless another process is writing it."""
    path = tmp_path / "c.csv"
    killed = ("import os, sys; from xrd_helpers.config import atomic_path\n"
              "with atomic_path(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), 9)")
    for _ in range(2):
        subprocess.run([sys.executable, "-c", killed, path], check=False)
        assert [p.name for p in tmp_path.iterdir()] == [".c.partial.csv"]
    with atomic_path(path) as first, atomic_path(path) as second:
        assert first.name == ".c.partial.csv" and second != first
        second.write_text("second")
        first.write_text("first")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_is_named_by_the_file(tmp_path):
    path = tmp_path / "c.csv"
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_path(path) as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", str(temporary))
    assert caught.value.filename == str(path) and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="is a folder: name a file"), atomic_path("/"):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a second process that shares nothing but the folder")
def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path):
    child = os.fork()
    if not child:
        with locked(tmp_path / "out", "a"):
            (tmp_path / "ready").touch()
            time.sleep(60)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process writes .*out/a now: wait for"), locked(tmp_path / "out", "a"):
        pass
    with locked(tmp_path / "out", "b"):  # other files of the folder
        assert (tmp_path / ".out.b.lock").exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path / "out", "a"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["ready"]


def test_results_are_plain_json_inside_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "RUNS", tmp_path)
    values = {"r": np.float32(0.5), "n": np.int64(3), "none": np.nan, "all": np.array([[1.0, np.inf]]), "ok": np.bool_(True)}
    path = write_result("quick", "05_infer", table=[values], figures=[run_folder("quick") / "a b.png", "c.png"])
    assert path == tmp_path / "quick" / "results" / "05_infer.json"
    assert json.loads(path.read_text()) == {
        "table": [{"r": 0.5, "n": 3, "none": None, "all": [[1.0, None]], "ok": True}],
        "figures": ["a b.png", "c.png"],
    }
