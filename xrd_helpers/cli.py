"""The command line, `xrd`. Each command imports what it needs, so that `xrd --help` answers at once."""

import os
import signal
import sys


def _leave(number, frame=None):
    """What Ctrl-C and SIGTERM do as long as nothing has begun: no traceback out of the middle of an import."""
    os.write(2, b"Stopped.\n")
    os._exit(128 + number)


PROGRAM = __name__ == "__main__" or os.path.basename(sys.argv[0]) in ("xrd", "xrd.exe")  # not a notebook, nor a test
if PROGRAM:
    # default_int_handler is what a shell that starts programs in the background, nohup and some CI runners have not
    signal.signal(signal.SIGINT, _leave)

from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from xrd_helpers import __version__
from xrd_helpers.config import UserError, locked, refuse_to_overwrite

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Network = Annotated[
    list[str], typer.Option(help="A network of your own that weights are of, as my_net.py:MyNet. May be given again.")
]
Elements = Annotated[str, typer.Option(help="As in 'C H N O', where no file states them; 'C8 H9 N O2' is a formula.")]
Formula = Annotated[str, typer.Option(help="Of one formula unit, as C8H9NO2, in place of that of the file.")]
Z = Annotated[int, typer.Option("--z", min=0, help="Formula units in the cell. Default: as many as fill it best.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files of these names, if there are any.")]

Molecules = Annotated[
    list[str], typer.Option(help="A molecule that is known: SMILES or .mol, .sdf, .mol2, .xyz, .cif; again for each "
                                 "component, with a count as in '2*O' for two of water.")
]


class _Stopped(KeyboardInterrupt):
    """SIGTERM, as of a scheduler whose time is up."""


def _terminate(number, frame):
    raise _Stopped


@contextmanager
def _interruptible(words):
    """Work that Ctrl-C and SIGTERM stop, with these words and exit code 130 or 143; files half written are removed."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except KeyboardInterrupt as stopped:
        for number in handlers:  # a second one shall not hit what is cleaned up
            signal.signal(number, signal.SIG_IGN)
        print(words() if callable(words) else words, file=sys.stderr)
        raise typer.Exit(143 if isinstance(stopped, _Stopped) else 130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


GOES_ON = "Stopped. The same command goes on from there."
NOTHING = "Stopped; nothing was written."


def _print_version(wanted: bool):
    if wanted:
        print(f"xrd {__version__}")
        raise typer.Exit()


@app.callback()
def xrd(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
):
    """Extend X-ray diffraction amplitudes from 1.5 to 0.8 Å, and solve the structure."""


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="Profile of config.yaml: smoke, quick or full.")] = "quick",
    only: Annotated[list[str], typer.Option(help="Notebooks to run, by number or name, as in 02,05.")] = [],
    set_: Annotated[list[str], typer.Option("--set", help="Change a parameter, as in 02_train_unet.epochs=3.")] = [],
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last notebook that finished.")] = False,
):
    """Run the notebooks in their order; results, pages and a summary go to runs/PROFILE."""
    from xrd_helpers import pipeline

    wanted = [name.strip() for text in only for name in text.split(",") if name.strip()]
    if only and not wanted:
        raise UserError("--only names no notebook: write it as in --only 02,05")
    with _interruptible("Stopped. The same command with --resume goes on from there."):
        try:
            pipeline.run(profile, only=wanted, overrides=set_, resume=resume)
        except pipeline.NotebookFailed as error:
            print(f"{error}\nOnce that is mended, the same command with --resume goes on from there.", file=sys.stderr)
            raise typer.Exit(1) from error


@app.command("read-cifs", epilog="Example: xrd read-cifs my_cifs cod/1 --out crystals.parquet --box monoclinic")
def read_cifs(
    folders: Annotated[list[str], typer.Argument(help="Folders with CIF files, in them or in folders below.")],
    out: Annotated[str, typer.Option(help="The crystals, as parquet; the list of what was left out is put beside it.")],
    box: Annotated[str, typer.Option(help="Keep what fits this box: monoclinic, orthorhombic, triclinic or any.")] = "any",
    d_target: Annotated[float, typer.Option(help="Resolution, in Å, to which reflections must fit the box.")] = 0.8,
    keep_disordered: Annotated[bool, typer.Option("--keep-disordered", help="Keep disordered crystals too.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0 reads in this one.")] = os.cpu_count() or 1,
):
    """Read CIF files by the thousand into one file, and say why each other one was left out."""
    from xrd_helpers.cif_folders import collect, write_left_out
    from xrd_helpers.gridding import BOXES
    from xrd_helpers.storage import write_crystals

    if box not in ("any", *BOXES):
        raise UserError(f"--box {box!r} is no box: choose any, {', '.join(BOXES)}")
    if not d_target > 0:
        raise UserError(f"--d-target must be a resolution above 0 Å, not {d_target:g}")
    out = _file_to_write(out)
    left_out = out.with_suffix(".left_out.csv")
    with _interruptible(NOTHING), locked(out):
        found = collect(folders, BOXES.get(box), d_target, keep_disordered, workers, progress=True)
        print("\n".join(f"{label:<48}{number:>8}" for label, number in found.rows))
        write_left_out(left_out, found.left_out)
        if not found.crystals:
            raise UserError(f"none of the {found.n_files} files gave a crystal that can be used: {left_out} says why")
        write_crystals(out, found.crystals)
    print(f"wrote {out} and {left_out}")


def _file_to_write(path):
    """The path of a file that is to be written, refused before the work if it is a folder or in none that can be written to."""
    from pathlib import Path

    path = Path(path)
    try:
        above = next((folder for folder in path.absolute().parents if folder.exists()), path)
        fits = path.name and not path.is_dir() and above.is_dir() and os.access(above, os.W_OK)
    except OSError:  # a name that is too long
        fits = False
    if not fits or path.exists() and not path.is_file():
        raise UserError(f"--out {str(path)[:300]} cannot be written: name a file in a folder that can be")
    return path


@app.command(epilog="Example: xrd generate --n 1000000 --recipe molecules --seed 7 --out crystals.parquet")
def generate(
    n: Annotated[int, typer.Option("--n", help="Number of crystals.")],
    out: Annotated[str, typer.Option(help="The file to write.")] = "crystals.parquet",
    recipe: Annotated[str, typer.Option(help="What the crystals are made of: atoms or molecules.")] = "atoms",
    seed: Annotated[int, typer.Option(help="The same seed gives the same crystals.")] = 0,
    spacegroup: Annotated[
        list[str], typer.Option(help="As in 'P 1 21/c 1'; given again, for several at equal odds. Default: the recipe's.")
    ] = [],
    scheduler: Annotated[str, typer.Option(help="Address of a dask scheduler. Default: that of config.yaml.")] = "",
    workers: Annotated[
        int | None, typer.Option(help="Processes on this machine, 0 for none beside this one. Default: one a core.")
    ] = None,
    profile: Annotated[str, typer.Option(help="Profile of config.yaml that names the scheduler.")] = "quick",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of other crystals.")] = False,
):
    """Write random crystals to a parquet file. The same command goes on where an interrupted one stopped."""
    from xrd_helpers import config
    from xrd_helpers.generate import generate

    if not scheduler and workers is None and config.CONFIG.exists():  # a package installed elsewhere has no config.yaml
        blocks = config.get_profile(config.load_config(), profile)
        scheduler = blocks["01_generate_crystals"]["scheduler"]
    with _interruptible(GOES_ON):
        _file_to_write(out)
        made = generate(out, n, seed, recipe, spacegroup or None, scheduler, workers, overwrite)
    print(f"{out}: {n} crystals, {os.path.getsize(out) / 1e6:.1f} MB" + ("" if made else ", complete before"))


@app.command(epilog="Example: xrd train --model fft_unet --minutes 120 --out weights/mine.safetensors")
def train(
    model: Annotated[str, typer.Option(help="unet, fft_unet, xrd_transformer, patterson_net, or your own: my_net.py:MyNet.")],
    out: Annotated[str, typer.Option(help="File for the weights (.safetensors); the log is put beside it, as CSV.")],
    minutes: Annotated[float, typer.Option(min=0, help="End after so many minutes; 0 is no limit.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="End after so many steps; 0 is no limit.")] = 0,
    n_crystals: Annotated[int, typer.Option(min=0, help="End after so many crystals; 0 is no limit.")] = 0,
    crystals: Annotated[str, typer.Option(help="File of crystals, of xrd generate. Default: made while training.")] = "",
    recipe: Annotated[str, typer.Option(help="Without a file, what crystals are made of: atoms or molecules.")] = "molecules",
    n_validation: Annotated[int, typer.Option(min=0, help="Crystals that are kept aside, to see how it goes.")] = 32,
    n_validations: Annotated[int, typer.Option(min=0, help="How often these are looked at.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Crystals a step, of each device.")] = 4,
    lr: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = 1e-3,
    start: Annotated[str, typer.Option(help="File of weights of the same model to begin with.")] = "",
    ema: Annotated[float, typer.Option(min=0, max=0.99999, help="Decay of the running mean of weights; 0 for none.")] = 0.999,
    box: Annotated[str, typer.Option(help="Amplitude box: monoclinic, orthorhombic, triclinic, or own: a box for each crystal.")
    ] = "monoclinic",
    d_input: Annotated[float, typer.Option(help="Resolution of the measured amplitudes, in Å.")] = 1.5,
    d_target: Annotated[float, typer.Option(help="Resolution to extend to, in Å.")] = 0.8,
    d_min: Annotated[
        tuple[float, float], typer.Option(help="Draw the resolution of each training crystal between two, as in 1.3 1.7.")
    ] = (0, 0),
    missing: Annotated[float, typer.Option(help="Hide up to this share of the measured reflections, as in 0.15.")] = 0,
    noise: Annotated[float, typer.Option(help="Errors of intensities: up to this share of the mean, and 2 % of each.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the start of the weights, and of all that is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="32-true, bf16-mixed, or auto: bf16-mixed where this model is faster in it.")
    ] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Devices of each node; on a CPU, processes.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes, as started by torchrun or SLURM.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make crystals; 0 for none beside this one.")] = 1,
    checkpoint_minutes: Annotated[float, typer.Option(min=0, help="Minutes that a killed run loses at most.")] = 5,
    published: Annotated[bool, typer.Option("--published", help="A UNet or transformer in its published form.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of weights.")] = False,
):
    """Train a model that extends amplitudes. The same command goes on where it was killed."""
    from xrd_helpers import training
    from xrd_helpers.gridding import find_box
    from xrd_helpers.simulate import Faults

    if not (minutes or steps or n_crystals):
        raise UserError("a training needs an end: give --minutes, --steps or --n-crystals")
    budget = training.Budget(steps, minutes, n_crystals=n_crystals)
    with _interruptible("Stopped. The same command goes on from the last checkpoint."):
        made = training.train(
            model, out, budget, training.Device(device, devices, nodes, precision), crystals=crystals, recipe=recipe,
            box=find_box(box), d_input=d_input, d_target=d_target, n_validation=n_validation, workers=workers, seed=seed,
            start=start, published=published, overwrite=overwrite,
            faults=Faults(tuple(d_min) if any(d_min) else None, missing, noise), n_validations=n_validations,
            batch_size=batch_size, lr=lr, ema=ema, checkpoint_minutes=checkpoint_minutes)
    if training.is_first_process():
        names = [name for name in ("r_ext", "cc_ext", "shell_mean_r_ext", "shell_mean_cc_ext") if name in made]
        scores = ", ".join(f"{name} {made[name]:.3f}" for name in names)
        print(f"{out}: {os.path.getsize(out) / 2**20:.1f} MB, {made['crystals_seen']} crystals in {made['minutes']} min"
              + (f", {scores}" if scores else ""))


@app.command(epilog="Example: xrd evaluate my_cifs --model all --solve 20 --out table.csv")
def evaluate(
    sources: Annotated[
        list[str], typer.Argument(help="Folders with CIF files, in them or in folders below; files of crystals (.parquet).")
    ],
    out: Annotated[str, typer.Option(help="The table, as CSV: a row a crystal and method.")],
    model: Annotated[
        list[str],
        typer.Option(help="A file in weights, as unet; a path to one; phase_first; or all. May be given again. molecule_first, "
                          "which all leaves out, knows the molecules besides, read by RDKit from the crystals themselves.")
    ] = ["all"],
    network: Network = [],
    solve: Annotated[int, typer.Option(min=0, help="Phase that many of the crystals from every method's amplitudes.")] = 0,
    trials: Annotated[int, typer.Option(min=0, help="Random starts of each crystal; 0: what half a minute allows.")] = 16,
    box: Annotated[
        str, typer.Option(help="Box of the models: monoclinic, orthorhombic, triclinic, or own: a box for each crystal.")
    ] = "monoclinic",
    d_input: Annotated[float, typer.Option(help="Resolution of the measured amplitudes, in Å.")] = 1.5,
    d_target: Annotated[float, typer.Option(help="Resolution to extend to, in Å.")] = 0.8,
    missing: Annotated[float, typer.Option(help="Hide up to this share of the measured reflections, as in 0.15.")] = 0,
    noise: Annotated[float, typer.Option(help="Errors of intensities: up to this share of the mean, and 2 % of each.")] = 0,
    curve: Annotated[int, typer.Option(min=20, help="Random crystals that the shell mean is taken from.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the choice of crystals to phase, of the starts and of the shuffling.")] = 0,
    keep_disordered: Annotated[bool, typer.Option("--keep-disordered", help="Keep disordered crystals too.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0 reads in this one.")] = os.cpu_count() or 1,
):
    """Score models on real crystals or generated ones, beside what can be said without having looked at them."""
    from xrd_helpers import evaluation as ev
    from xrd_helpers.baselines import shell_mean
    from xrd_helpers.cif_folders import collect
    from xrd_helpers.gridding import check_resolutions, find_box
    from xrd_helpers.known_molecule import drawn_molecules
    from xrd_helpers.simulate import Faults
    from xrd_helpers.weights import load_models
    from xrd_helpers.wilson import Spread

    amplitude_box, faults = find_box(box), Faults(None, missing, noise)
    settings = dict(box=amplitude_box, d_input=d_input, d_target=d_target)
    check_resolutions(d_input, d_target)  # all of this now, rather than after an hour
    faults.check(d_target)
    _file_to_write(out)
    _find_networks(network)
    models = load_models([name for name in model if name not in ("phase_first", "molecule_first")], amplitude_box)
    with _interruptible(NOTHING), locked(out):
        found = collect(sources, amplitude_box, d_target, keep_disordered, workers, progress=True)
        print("\n".join(f"{label:<48}{number:>8}" for label, number in found.rows))
        if not found.crystals:
            raise UserError(f"none of the {found.n_files} files gave a crystal that fits the {box} box to {d_target:g} Å")
        known = None
        if "molecule_first" in model:
            known = [drawn_molecules(crystal) for crystal in found.crystals]
            print(f"{'molecules known, for molecule_first':<48}{sum(map(bool, known)):>8}")
        methods = ev.methods_of(models, shell_mean(curve, **settings), bool({"all", "phase_first"} & set(model)), trials, seed,
                                "molecule_first" in model)
        spreads = {title: Spread(made["spread"]) for title, (_, made) in models.items() if made.get("spread")}
        result = ev.evaluate(found.crystals, methods, **settings, faults=faults, n_solve=solve, trials=trials, seed=seed,
                             progress=True, molecules=known, spreads=spreads)
        ev.write_evaluation(out, result, models=list(models), solve=solve, trials=trials, box=box, d_input=d_input,
                            d_target=d_target, missing=missing, noise=noise, curve=curve, seed=seed)
    print(ev.report(result))
    print(f"wrote {out}, and beside it with which options and on what it was made")


def _find_networks(names):
    """Make the networks of --network known to files of weights."""
    if names:
        from xrd_helpers.models import find_model

        for name in names:
            find_model(name)


@app.command(epilog="Example: xrd extend job.hkl --model fft_unet --d-target 0.8")
def extend(
    file: Annotated[str, typer.Argument(help="Measured reflections: .hkl or .ins of SHELX, .cif, .fcf or .mtz.")],
    model: Annotated[
        str, typer.Option(help="phase_first, by the atoms found in what was measured; a file in weights, as unet; a path; "
                               "shell_mean.")
    ] = "phase_first",
    network: Network = [],
    molecule: Molecules = [],
    about: Annotated[str, typer.Option(help="The .ins or .cif with cell and symmetry. Default: that beside the file.")] = "",
    out: Annotated[
        str, typer.Option(help="Path of what is written, without suffix, or a folder. Default: FILE with _extended.")
    ] = "",
    d_target: Annotated[float, typer.Option(help="Resolution to extend to, in Å.")] = 0.8,
    elements: Elements = "",
    formula: Formula = "",
    z: Z = 0,
    trials: Annotated[int, typer.Option(min=0, help="Random starts of phase_first; 0: what half a minute allows.")] = 0,
    seed: Annotated[int, typer.Option(help="Of these starts.")] = 0,
    csv: Annotated[bool, typer.Option("--csv", help="Write a merged table with d, F and sigma, too.")] = False,
    mtz: Annotated[bool, typer.Option("--mtz", help="Write a merged MTZ file, too: predicted F are FEXT.")] = False,
    cif: Annotated[bool, typer.Option("--cif", help="Write a merged CIF file, too.")] = False,
    overwrite: Overwrite = False,
):
    """Predict the reflections that were not measured. Measured ones stay as they are; predicted ones are batch 2."""
    from pathlib import Path

    from xrd_helpers import inference
    from xrd_helpers.known_molecule import read_molecules
    from xrd_helpers.phasing.job import MINUTES_KNOWN, with_contents
    from xrd_helpers.phasing.output import search_on_terminal
    from xrd_helpers.reflection_files import read_measured

    _find_networks(network)
    if molecule and model not in ("phase_first", "molecule_first"):
        raise UserError(f"--model {model} knows no molecules: leave out --molecule, or --model")
    known, measured, symbols = read_molecules(molecule), read_measured(file, about or None), []
    if not known:
        measured = with_contents(measured, formula, z, elements)
    stem = measured.files[0].with_name(measured.files[0].stem + "_extended")
    if out:
        stem = Path(out) / stem.name if Path(out).is_dir() else Path(out)
    refuse_to_overwrite(inference.extended_files(stem, measured, csv, cif, mtz).values(), overwrite)
    with _interruptible(NOTHING), locked(stem):
        if known:
            model = "molecule_first"
            print(_placing(known, MINUTES_KNOWN), flush=True)
            with search_on_terminal(MINUTES_KNOWN) as watch:
                result, trained, words = inference.extend_by(model, measured, symbols, d_target, seed=seed, molecules=known,
                                                             watch=watch)
        else:
            result, trained, words = inference.extend_by(model, measured, symbols, d_target, trials, seed)
        if not measured.elements:
            symbols = ["C", "H", "N", "O"]
            print("no file states the elements: C, H, N and O were taken; correct SFAC, or give --elements")
        paths = inference.write_extended(stem, result, symbols, csv, mtz, cif, model)
    print(inference.describe(result, d_target, trained))
    print(words)
    print("\n".join(f"Note: {note}." for note in measured.notes), end="\n" * bool(measured.notes))
    print("wrote " + ", ".join(map(str, paths)))


def _placing(known, minutes):
    """What happens next, for minutes of silence where there is no terminal for a bar."""
    names = " + ".join(f"{n} {part.formula}" if n > 1 else part.formula for part, n in known)
    return f"placing {names} until the answer is certain, {minutes:g} minutes at most"


@app.command(epilog="Example: xrd solve job.hkl --formula C8H9NO2 --z 4")
def solve(
    files: Annotated[list[str], typer.Argument(help="Measured reflections: .hkl or .ins of SHELX, .cif, .fcf or .mtz.")],
    about: Annotated[str, typer.Option(help="The .ins or .cif with cell and symmetry. Default: that beside the file.")] = "",
    elements: Elements = "",
    formula: Formula = "",
    z: Z = 0,
    spacegroup: Annotated[
        str, typer.Option(help="As in 'P 1 21/c 1'; or search, among those that the absences allow. Default: the file's.")
    ] = "",
    extend: Annotated[
        str, typer.Option(help="Predict what was not measured, before phasing: a file in weights, as unet; shell_mean.")
    ] = "",
    network: Network = [],
    engine: Annotated[str, typer.Option(help="auto (SHELXT where it is found), shelxt or charge_flipping.")] = "auto",
    shelxt: Annotated[str, typer.Option(help="Path of the SHELXT program. Default: look for it on PATH.")] = "",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that SHELXT may take.")] = 600,
    molecule: Molecules = [],
    or_: Annotated[
        list[str], typer.Option("--or", help="What the first --molecule may be instead, an isomer perhaps; may be given again. "
                                             "Each is placed, and those that the data do not tell apart are named.")
    ] = [],
    fragment: Annotated[list[str], typer.Option(help="The same for a part of the molecule; the rest is built.")] = [],
    trials: Annotated[int, typer.Option(min=0, help="Random starts of charge flipping, at most; 0: what the time allows.")] = 0,
    effort: Annotated[
        str, typer.Option(help="How long to search: quick, normal (half a minute) or thorough (ten).")
    ] = "normal",
    minutes: Annotated[float, typer.Option(min=0, help="Minutes of search, in place of --effort; for known molecules 5.")] = 0,
    seed: Annotated[int, typer.Option(help="Of these starts.")] = 0,
    d_min: Annotated[float, typer.Option(min=0, help="Leave out what was measured beyond, in Å.")] = 0,
    out: Annotated[str, typer.Option(help="Folder for what is written. Default: FILE with _xrd.")] = "",
    overwrite: Overwrite = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Of several files so many at once, each in a process; 0 takes them in this one. "
                                 "Default: one a core.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="Address of a dask scheduler whose workers solve them, and see the same folders.")
    ] = "",
    table: Annotated[str, typer.Option(help="What came of each of several files, as CSV.")] = "solved.csv",
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON a file; words go to stderr.")] = False,
):
    """From measured reflections to atoms. Writes .res, .ins, .hkl, .cif, .mtz, a map and a .log into a folder beside the file,
    and _b.res if there is a runner-up.

    Its verdict is solved, uncertain or not solved, and stands on the terminal, in .log, .res and .cif and in --json. The exit
    code is 0 if it is solved or uncertain: refine what is uncertain, and look at its bonds, before you believe it. It is 1 if
    there is no structure, and 2 if the file or an option is wrong; for several files it is 0 if there is a structure of each,
    else 1, and nothing that one holds stops the others.
    """
    options = {name: value for name, value in locals().items()
               if name not in ("files", "workers", "scheduler", "table", "as_json")}
    if len(files) > 1 or scheduler:
        raise typer.Exit(_solve_files(files, options, scheduler, workers, table, as_json))
    try:
        with _interruptible(NOTHING):
            row = _solve_file(files[0], _to_stderr if as_json else print, **options)
    except (UserError, ValueError, OSError) as error:
        if as_json:
            _print_json(_failed(files[0], _sentence(error)))
        raise
    if as_json:
        _print_json(row)
    raise typer.Exit(int(row["verdict"] == "not solved"))


def _to_stderr(text):
    print(text, file=sys.stderr)


def _print_json(row):
    import json

    print(json.dumps({name: None if value != value else value for name, value in row.items()}, ensure_ascii=False), flush=True)


def _failed(file, message):
    return {"file": str(file), "verdict": "error", "message": message}


def _solve_files(files, options, scheduler, workers, table, as_json):
    """Solve each of several files and write a table of what came of them; the exit code."""
    import csv
    from pathlib import Path

    from xrd_helpers.config import atomic_path
    from xrd_helpers.phasing.output import COLUMNS

    stems = [Path(file).stem for file in files]
    if scheduler and workers is not None:
        raise UserError("a scheduler has workers of its own: give their number or its address, not both")
    if options["out"] and len(set(stems)) < len(stems):
        raise UserError("several of the files have the same name: leave out --out, or solve them one by one")
    if not options["overwrite"] and Path(table).exists():
        raise UserError(f"{table} is there already: name another --table, or add --overwrite")
    folders = [str(Path(options["out"]) / f"{stem}_xrd") if options["out"] else "" for stem in stems]
    rows, code = {}, 0
    try:
        with _interruptible(lambda: f"Stopped after {len(rows)} of {len(files)} files; the table holds these."):
            for i, row in _solve_side_by_side(files, folders, options, scheduler, workers):
                rows[i] = row
                told = row.get("message") or f"R1 {row['R1']:.3f}, probability {row['probability']:.3f}, {row['atoms']} atoms"
                print(f"{len(rows)}/{len(files)} {row['file']}: {row['verdict']}: {told}", flush=True,
                      file=sys.stderr if as_json else sys.stdout)
                if as_json:
                    _print_json(row)
    except typer.Exit as stopped:
        code = stopped.exit_code
        for i in set(range(len(files))) - set(rows):  # locks of workers that were ended: taken and given back, they are gone
            folder = _folder_of(Path(files[i]), folders[i])
            if folder.parent.is_dir():
                with suppress(UserError), locked(folder, stems[i]):
                    pass
    with atomic_path(table) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[i] for i in sorted(rows))
    return code or int(any(row["verdict"] in ("error", "not solved") for row in rows.values()))


def _folder_of(file, out):
    """Where what comes of a file (Path) is written: ``out``, or a folder beside it."""
    from pathlib import Path

    return Path(out) if out else file.with_name(f"{file.stem}_xrd")


def _solve_side_by_side(files, folders, options, scheduler, workers):
    """Pairs of (number of the file, what came of it), those done first before the others."""
    from functools import partial

    from xrd_helpers.generate import cluster

    solve = partial(_solve_elsewhere, os.getcwd(), __version__, options) if workers != 0 else partial(_solve_row, options)
    tasks = [(i, files[i], folders[i]) for i in range(len(files))]
    workers = workers if scheduler or workers == 0 else min(workers or os.cpu_count() or 1, len(files))
    with cluster(scheduler, workers, deaths=0) as results:
        suspects = []
        for task, row in results(solve, tasks, lambda task, error: None):
            if row is None:
                suspects.append(task)
            else:
                yield task[0], row
        # a worker that dies, as one does that runs out of memory, does not say on which file: these are tried alone
        for task in suspects:
            for (i, file, _), row in results(solve, [task], lambda task, error: None):
                yield i, row or _failed(file, "the process that solved it ended: is there enough memory?")


def _solve_elsewhere(folder, version, options, task):
    """What a worker does: ``_solve_row`` in the folder of the command, without a bar among those of others."""
    from contextlib import redirect_stderr

    if version != __version__:
        raise UserError(f"a worker has xrd_helpers {__version__}, this process {version}: they must be the same")
    try:
        os.chdir(folder)
    except OSError as error:
        return _failed(task[1], f"a worker cannot see the folder {folder}: {error.strerror}")
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        return _solve_row(options, task)


def _solve_row(options, task):
    """What came of one file, of (its number, itself, folder for what is written); it may be an error of any kind."""
    _, file, folder = task
    try:
        return _solve_file(file, str, **{**options, "out": folder})
    except (UserError, ValueError, OSError) as error:
        return _failed(file, _sentence(error))
    except Exception as error:  # of ours: the other files are to be solved all the same
        return _failed(file, f"a mistake in the program: {type(error).__name__}: {' '.join(str(error).split())}")


def _solve_file(file, say, **options):
    """Solve one file with the options of ``solve``, and tell `say` in words; returns ``output.summary``."""
    from contextlib import ExitStack

    with ExitStack() as held:
        return _solve_held(held, file, say, **options)


def _solve_held(held, file, say, *, about, elements, formula, z, spacegroup, extend, network, engine, shelxt, timeout, molecule,
                or_, fragment, trials, effort, minutes, seed, d_min, out, overwrite):
    """``_solve_file``; what is to be locked is, by `held`."""
    from xrd_helpers.known_molecule import read_molecules
    from xrd_helpers.phasing import job, output
    from xrd_helpers.phasing.charge_flipping import minutes_of
    from xrd_helpers.phasing.placing import shelx_restraints
    from xrd_helpers.phasing.shelxt import find_shelxt
    from xrd_helpers.reflection_files import read_measured

    if engine not in ("auto", "shelxt", "charge_flipping"):
        raise UserError(f"--engine {engine!r} is none of auto, shelxt and charge_flipping")
    if molecule and fragment:
        raise UserError("give either --molecule, for all that is in the crystal, or --fragment, for a part of it")
    if fragment and spacegroup == "search":
        raise UserError("--fragment wants one space group: name it instead of search")
    if (molecule or fragment) and (extend or engine == "shelxt"):
        raise UserError(f"{'--extend' if extend else '--engine shelxt'} is for structures of which no molecule is known: "
                        f"leave it out, or leave out {'--molecule' if molecule else '--fragment'}")
    if or_ and not molecule:
        raise UserError("--or names what the first --molecule may be instead: give that, too")
    known = read_molecules(molecule or fragment)
    alternatives = {text: read_molecules([text, *molecule[1:]]) for text in [*molecule[:1], *or_]} if or_ else {}
    program = find_shelxt(shelxt) if engine != "charge_flipping" and not known else None
    if engine == "shelxt" and program is None:
        raise UserError("no SHELXT program was found: name it with --shelxt, or use --engine charge_flipping")
    minutes = minutes or (job.MINUTES_KNOWN if known else minutes_of(effort))
    search = spacegroup == "search"
    measured = job.prepared(read_measured(file, about or None), "" if search else spacegroup, d_min)
    if not molecule:
        measured = job.with_contents(measured, formula, z, elements)
    stem = measured.files[0].stem
    folder = _folder_of(measured.files[0], out)
    refuse_to_overwrite(output.may_be_written(folder / stem), overwrite)
    held.enter_context(locked(folder, stem))
    merged = measured.merge()
    say(output.describe_data(measured, merged))
    for molecules in alternatives.values() or ([known] if known else ()):
        say(_placing(molecules, minutes))
    extra = None
    if extend:
        from xrd_helpers.inference import extend_by

        _find_networks(network)
        extended, _, words = extend_by(extend, measured, (), 0.8, trials, seed)
        extra = extended.predicted
        say(f"{len(extra)} reflections predicted by {extend}. {words}")
    ranked = None
    if program:
        solved = job.solve_with_shelxt(measured, folder / "shelxt", program, extra, timeout, output.watch_on_terminal)
    else:
        with output.search_on_terminal(minutes) as watch:
            if alternatives:
                ranked = job.solve_with_alternatives(measured, alternatives, search, minutes, seed, watch)
                solved = ranked[0].solved
            elif molecule:
                solved = job.solve_with_molecules(measured, known, search, minutes, seed, watch, job.SEVERAL)
            elif fragment:
                solved = job.solve_with_fragment(measured, known, minutes, seed, watch)
            else:
                solved = job.solve_measured(measured, extra, search, trials, seed, effort, minutes, watch, job.SEVERAL)
    words = (f"{job.compared(ranked)}\n" if ranked else "") + output.verdict(solved.solution, solved.tried)
    say(words)
    paths = [output.write_listing(folder / stem, measured, solved, words)]
    if solved.solution is not None:
        names = output.labels(solved.solution.elements)
        lines = shelx_restraints(solved.solution, names, merged.d_min) if molecule else ()
        paths += output.write_solution(folder / stem, solved.solution, measured, names, lines)
    if overwrite and folder / f"{stem}.res" in paths and (second := folder / f"{stem}{output.SECOND}.res") not in paths:
        second.unlink(missing_ok=True)  # that of a run before would pass for the runner-up of this one
    say(f"wrote {', '.join(path.name for path in paths)} into {folder}")
    return {"file": str(file), **output.summary(measured, solved.solution), "folder": str(folder)}


@app.command("fetch-cod", epilog="Example: xrd fetch-cod --spacegroup 'P 1 21/c 1' --max 2000 --out cod")
def fetch_cod(
    out: Annotated[str, typer.Option(help="Folder for the CIF files; what is there already is not asked for again.")],
    spacegroup: Annotated[str, typer.Option(help="Hermann-Mauguin symbol; the setting counts: P 1 21/n 1 is another.")] = "",
    ids: Annotated[str, typer.Option(help="A list of COD numbers instead, or a CSV with columns cod and sha256.")] = "",
    limit: Annotated[int, typer.Option("--max", min=1, help="Entries to have in the end.")] = 1000,
    max_volume: Annotated[float, typer.Option(min=0, help="Largest unit cell in Å³; 0 is no limit.")] = 0,
    pause: Annotated[float, typer.Option(min=0.01, help="Seconds between two requests.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without an answer until a request is given up.")] = 60.0,
    server: Annotated[str, typer.Option(help="COD or a mirror.")] = "https://www.crystallography.net/cod",
):
    """Fetch CIF files from the Crystallography Open Database; the same command goes on where it stopped."""
    from xrd_helpers import cod

    if bool(spacegroup) == bool(ids):
        raise UserError("say what to fetch: --spacegroup 'P 1 21/c 1', or --ids FILE with COD numbers, and not both")
    with _interruptible(GOES_ON), locked(out):
        done = cod.fetch_cod(out, spacegroup, limit, max_volume or None, server, pause, timeout,
                             cod.read_ids(ids) if ids else None)
    print(f"{done.found} found, {len(done.fetched)} fetched, {len(done.present)} there already, {len(done.failed)} failed")
    for message in done.failed.values():
        print(f"  {message}")
    for number in done.other:
        print(f"  {number} is there, but is not the file of the list: COD has revised it, or it was changed here")
    if not done.fetched and not done.present:
        raise UserError(f"no entry could be fetched from {server}")


def main():
    """Run the command line; a mistake of the user gets one sentence, and XRD_TRACEBACK=1 shows where it arose."""
    try:
        app()
    except (UserError, ValueError, OSError) as error:
        if os.environ.get("XRD_TRACEBACK"):
            raise
        print(f"xrd: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as left:
        if PROGRAM and left.code in (130, 143):  # nothing that was started is waited for: it leaves with this process
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(left.code)
        raise


def _sentence(error):
    if isinstance(error, OSError) and error.strerror:
        return f"{str(error.filename or 'a file')[:300]}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    main()
