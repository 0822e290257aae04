"""What a run is set up with and where it writes: `config.yaml`, the run folder, safe writing."""

import ast
import difflib
import json
import math
import multiprocessing
import os
import re
import secrets
import signal
import stat
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no lock, two runs at once are the user's own care
    fcntl = None

import pydantic
import yaml

from xrd_helpers import ROOT, RUNS

CONFIG = ROOT / "config.yaml"
NOTEBOOKS = ROOT / "notebooks"


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
    if not path.name:
        raise UserError(f"{path} is a folder: name a file")
    temporary = path.with_name(f".{path.stem[:200]}.{secrets.token_hex(4)}{path.suffix}")
    # of one name, so that a killed run leaves one such file at most, which the next takes; another if somebody has that
    common, lock = path.with_name(f".{path.stem[:200]}.partial{path.suffix}"), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(BlockingIOError):
            if lock := _flock(common):
                temporary = common
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.strerror and error.filename in (None, str(temporary), str(common)):
            raise type(error)(error.errno, error.strerror, str(path)) from error  # as of a disk that is full
        raise
    finally:
        if lock:
            lock.close()


def _flock(path):
    """The file, made and locked until it is closed; None if the system knows no locks. BlockingIOError if a process has it."""
    if not fcntl:
        return None
    while True:
        file = open(path, "a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise
        except OSError:
            file.close()
            return None
        file.close()  # removed by the one that had it, after we opened it


def refuse_devices(path, error=UserError, largest=None) -> None:
    """`error`, in a sentence, if there is no file at the path, or a folder, a pipe or a device, which might never end; or one
    of more bytes than `largest`."""
    try:
        state = Path(path).stat()
    except (OSError, ValueError) as problem:
        raise error(f"{str(path)[:300]} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if not stat.S_ISREG(state.st_mode):
        raise error(f"{path} is a folder or a device, and no file")
    if largest and state.st_size > largest:
        raise error(f"{path} holds {state.st_size / 2**30:.1f} GB, which is too large")


def refuse_to_overwrite(paths, overwrite=False):
    """UserError if there is one of these files already; asked before the work, so that none of it is lost."""
    there = [] if overwrite else [path for path in paths if Path(path).exists()]
    if there:
        raise UserError(f"{shown(there[0])} is there already: add --overwrite, or choose another --out")


@contextmanager
def locked(path, part=""):
    """Keep a second process from writing to the path, a file or a folder, or to its files called `part` alone.

    The lock is a hidden file beside the path. The system drops it with the process, however that ends.
    """
    path = Path(path).absolute()
    beside = path.with_name(f".{path.name}{'.' * bool(part)}{part}.lock") if path.name else path / ".lock"
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        lock = _flock(beside)
    except BlockingIOError:
        raise UserError(f"another process writes {shown(path / part)} now: wait for it or stop it") from None
    except OSError as error:
        raise UserError(f"{shown(path)[:300]} cannot be written: {error.strerror}") from None
    try:
        yield  # without a lock on a file system that has none: better to run than to refuse
    finally:
        if lock:
            with suppress(OSError):
                beside.unlink()
            lock.close()


@contextmanager
def no_interrupt(*others):
    """Keep Ctrl-C, and `others`, waiting until the end of the block, and for good from the threads and processes begun in it.

    Else each worker would print a traceback, half a cluster could not be closed, and a process whose parent ends between
    starting it and telling it what to do would say so with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its start, by the first process, would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *others})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_with_parent(ctrl_c=signal.SIG_DFL):
    """For a process that works for another: it ends when that one is killed; Ctrl-C ends it at once, without a word, unless
    it is to be left to the other (SIG_IGN)."""
    signal.signal(signal.SIGINT, ctrl_c)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):  # begun within ``no_interrupt``, so that its imports were not interrupted
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


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
        For example ``"quick"`` and ``"06_infer_amplitudes"``.
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
    return Path(os.path.relpath(path, folder) if path.is_absolute() else path).as_posix()


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


# --- The notebooks' parameters: each notebook's `parameters` cell is the one place that declares them ---


def list_notebooks(folder=NOTEBOOKS):
    """Notebooks that belong to the pipeline, ``NN_name.ipynb``, in order: dict of name to path."""
    paths = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise ConfigError(f"{shown(folder)} has no notebook named like 02_train_unet.ipynb")
    return {path.stem: path for path in paths}


def find_notebook(wanted, names, source):
    """The one of `names` that `wanted` means: a whole name, or its number. `source` begins the error."""
    matches = [name for name in names if wanted == name or wanted.zfill(2) == name[:2]]
    if len(matches) == 1:
        return matches[0]
    raise ConfigError(f"{source}: there is no notebook {wanted!r}; {_nearest(wanted, names, 'the notebooks are')}")


def read_cells(path):
    """The cells of a notebook, read as plain JSON: importing nbformat takes seconds, and a typo deserves a quick answer.

    Returns
    -------
    cells : list of (str, list of str, str)
        Cell type, tags and source.
    """
    try:
        cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
        return [(cell["cell_type"], cell.get("metadata", {}).get("tags", []), "".join(cell["source"])) for cell in cells]
    except OSError as error:
        raise ConfigError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{shown(path)} is not a notebook of format 4") from error


def read_parameters(path):
    """Names and default values that the notebook at `path` declares in its cell tagged `parameters`.

    Only what papermill can replace is allowed: ``name = literal`` on a line. An annotated
    name is overlooked by papermill's own check, a derived value would keep the default.
    """
    sources = [source for kind, tags, source in read_cells(path) if kind == "code" and "parameters" in tags]
    if len(sources) != 1:
        raise ConfigError(f"{shown(path)} needs exactly one cell tagged 'parameters', it has {len(sources)}")
    try:
        statements = ast.parse(sources[0]).body
    except SyntaxError as error:
        raise ConfigError(f"{shown(path)}: line {error.lineno} of the parameters cell is not Python") from error
    defaults = {}
    for statement in statements:
        try:
            (target,) = statement.targets  # AttributeError: not a plain assignment; ValueError: a = b = 1
            defaults[target.id] = ast.literal_eval(statement.value)
            _type_of(defaults[target.id])
        except (AttributeError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{shown(path)}: line {statement.lineno} of the parameters cell must be `name = value` with a "
                f"number, a text, True, False or a list of one of these: {ast.unparse(statement)}"
            ) from error
    return defaults


def _type_of(value):
    """The type that replaces `value` must have; a tuple or None has none, because papermill would not pass it on."""
    if isinstance(value, list):
        kinds = {type(item) for item in value} or {str}
        kinds = {float} if kinds == {int, float} else kinds
        if len(kinds) > 1 or not kinds <= {int, float, str, bool}:
            raise TypeError("a list of mixed types, or of lists")
        return list[kinds.pop()]
    if type(value) not in (int, float, str, bool):
        raise TypeError(f"{type(value).__name__} is no type of a parameter")
    return type(value)


def _model(name, defaults):
    """A pydantic model with the parameters of one notebook and their defaults, none converted but int to float."""
    rules = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    fields = {key: (_type_of(value), value) for key, value in defaults.items()}
    return pydantic.create_model(name, __config__=rules, **fields)


# --- config.yaml ---


def load_config(path=CONFIG, notebooks=NOTEBOOKS):
    """Read and check `config.yaml`, and fill it up with the defaults of the notebooks.

    Parameters
    ----------
    path : str or Path
        The file: a block per profile, in it a block per notebook with what differs from the notebook's defaults.
    notebooks : str or Path
        Folder of the notebooks, whose `parameters` cells say what is allowed, and what holds where the file is silent.

    Returns
    -------
    config : dict
        ``config[profile][notebook][key]``, every notebook in its order with every parameter; a parameter named
        `profile` is the name of the block.

    Raises
    ------
    ConfigError
        With one sentence that names the file, the place in it and the nearest valid name.
    """
    defaults = {name: read_parameters(notebook) for name, notebook in list_notebooks(notebooks).items()}
    content = _read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{shown(path)} must hold a block per profile, such as 'quick:'")
    return {profile: _check_profile(shown(path), profile, blocks, defaults) for profile, blocks in content.items()}


def get_profile(config, profile, path=CONFIG):
    """The block of one profile of `config`; an unknown name is an error that names the nearest one."""
    if profile not in config:
        raise ConfigError(f"{shown(path)} has no profile {profile!r}; {_nearest(profile, config, 'it has')}")
    return config[profile]


def set_value(blocks, assignment, notebooks=NOTEBOOKS):
    """Apply one ``--set 02_train_unet.epochs=3`` to the blocks of a profile, with the checks of `load_config`.

    Parameters
    ----------
    blocks : dict
        ``blocks[notebook][key]``, as `get_profile` returns it; not changed.
    assignment : str
        ``notebook.key=value``; the notebook by name or number, the value as in YAML.

    Returns
    -------
    blocks : dict
        A copy with the value replaced.
    """
    source = "--set"
    match = re.fullmatch(r"\s*([^.=\s]+)\.([^.=\s]+)\s*=(.*)", assignment, re.DOTALL)
    if not match:
        raise ConfigError(f"{source} {assignment!r} must look like 02_train_unet.epochs=3")
    wanted, key, text = match.groups()
    name = find_notebook(wanted, blocks, source)
    if key == "profile":
        raise ConfigError(f"{source} {assignment!r}: the profile is chosen with --profile")
    try:
        value = yaml.load(text, _Loader) if text.strip() else ""  # an empty text, where YAML would have null
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{source} {assignment[:100]!r}: the value is not YAML") from error
    defaults = read_parameters(list_notebooks(notebooks)[name])
    return blocks | {name: _check_block(source, name, name, blocks[name] | {key: value}, defaults)}


class _Loader(yaml.SafeLoader):
    """YAML without two traps: `1e-3` would be a text, and of two equal keys the first would be forgotten."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands here a second time", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _read_yaml(path):
    try:
        refuse_devices(path, ConfigError, largest=10**7)
        return yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{shown(path)} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(path)} is not text in UTF-8") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{shown(path)}{line}: {what[:200]}") from error


def _check_profile(source, profile, blocks, defaults):
    """Check every notebook's block of one profile; `defaults` holds the parameters of every notebook."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", str(profile)):
        raise ConfigError(f"{source}: a profile is named with letters, digits, - and _ only, not {profile!r}")
    if not isinstance(blocks, dict):
        raise ConfigError(f"{source}: {profile} must hold a block per notebook, or {{}} for their defaults")
    for name, block in blocks.items():
        if name not in defaults:
            nearest = _nearest(name, defaults, "the notebooks are")
            raise ConfigError(f"{source}: {profile} has no notebook {str(name)!r}; {nearest}")
        if isinstance(block, dict) and "profile" in block:
            # a notebook told another profile would write its results into that one's folder
            raise ConfigError(f"{source}: {profile}.{name}.profile is not set: it is the name of the block")
    checked = {}
    for name, known in defaults.items():
        injected = {"profile": profile} if "profile" in known else {}
        checked[name] = _check_block(source, f"{profile}.{name}", name, blocks.get(name, {}), known | injected)
    return checked


def _check_block(source, where, name, block, defaults):
    """The parameters of one notebook, those that `block` lacks from `defaults`; `source` and `where` begin the error."""
    if not isinstance(block, dict):
        raise ConfigError(f"{source}: {where} must hold parameters of the notebook, as in 'seed: 0'")
    for key in block:
        if key not in defaults:
            nearest = _nearest(key, defaults, "its parameters are")
            raise ConfigError(f"{source}: {where} has no parameter {str(key)!r}; {nearest}")
    try:
        checked = _model(name, defaults)(**block)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key, *item = first["loc"]
        place = f"item {item[0] + 1} of {where}.{key}" if item else f"{where}.{key}"
        kind = _type_of(defaults[key]).__args__[0] if item else _type_of(defaults[key])
        raise ConfigError(f"{source}: {place} must be {_describe(kind)}, not {first['input']!r}") from error
    return {key: getattr(checked, key) for key in defaults}


def _describe(kind):
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return words.get(kind) or f"a list in which each item is {words[kind.__args__[0]]}"


def _nearest(wanted, valid, otherwise):
    """The second half of an error: the valid name most like `wanted`, or all of them."""
    close = difflib.get_close_matches(str(wanted), [str(name) for name in valid], n=1)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} {', '.join(map(str, valid)) or 'none'}"


def shown(path):
    """`path` as a person would type it: relative where it lies below the working directory."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
