"""JupyterLab as `make lab` starts it, in a real browser: what a user clicks, and what is seen then. Run by `make test-browser`.

``make test-browser PICTURES=notebooks/figures`` makes the two pictures of the README, too.
"""

import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import numpy as np
import pytest
from PIL import Image

from xrd_helpers import ROOT
from xrd_helpers.pipeline import write_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser installs it")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed (Debian: apt-get install chromium)")

# no sandbox, which root has not, and nothing that chromium looks up for itself
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
ANSWER, RUN = 120_000, 600_000  # ms at most: for a page, a kernel, a click; for a notebook
playwright.expect.set_options(timeout=ANSWER)
PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
WIDTH, HEIGHT = 1280, 900


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What a user sees in JupyterLab, as a copy: it saves what it opens."""
    folder = tmp_path_factory.mktemp("lab") / "repository"
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("README.md", ".jupyter"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def lab(repository):
    """The address of a JupyterLab with the settings of `make lab`, on a free port and with a token."""
    told = subprocess.run(["make", "-n", "lab", f"CURDIR={repository}"], cwd=ROOT, capture_output=True, text=True, check=True)
    (command,) = [shlex.split(line) for line in told.stdout.splitlines() if "jupyter lab" in line]
    program = next(i for i, word in enumerate(command) if word.endswith("/jupyter"))
    settings = dict(word.split("=", 1) for word in command[:program])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, home = secrets.token_hex(16), repository.parent
    home_of = {name: str(home / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XRD_RUNS")}
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # Agg, from conftest.py
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *command[program + 2:], "--no-browser", "--allow-root",
             "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=inherited | settings | home_of | {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_TOKEN": token})
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{address}/api?token={token}"), server, home / "server.log")
        yield f"{address}/{{}}?token={token}"
    finally:
        server.terminate()  # and with it its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(address):
    try:
        return urlopen(address, timeout=5).status == 200
    except (URLError, OSError):
        return False


def wait_for(true, server, log):
    start = time.monotonic()
    while not true():
        assert server.poll() is None and time.monotonic() - start < ANSWER / 1000, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """An empty page; the test fails if it asked another machine for something, or a script of it ended with an error."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    page = context.new_page()
    page.set_default_timeout(ANSWER)
    strangers, errors = [], []
    ours = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(ours) else strangers.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not strangers and not errors


def picture(locator):
    """What is seen of an element: (height, width, 3) uint8."""
    return np.asarray(Image.open(BytesIO(locator.screenshot(animations="disabled"))).convert("RGB"))


def assert_not_empty(seen, colours=30, most=0.97):
    """Enough colours, and no one of them nearly everywhere: text in a frame has few, an empty cell has one."""
    _, counts = np.unique(seen.reshape(-1, 3), axis=0, return_counts=True)
    assert len(counts) >= colours and counts.max() < most * counts.sum(), f"{len(counts)} colours, {counts.max()} pixels of one"


def changed(before, after):
    """The share of pixels that differ."""
    return 1.0 if before.shape != after.shape else (before != after).any(axis=2).mean()


def run_all(page, address, repository, name):
    """Open a notebook, choose Run All Cells in the menu, wait for the last cell, save; the panel, and what was saved."""
    page.goto(address.format(f"lab/tree/notebooks/{name}.ipynb") + "&reset")  # no other document, from an earlier test
    panel = page.locator(PANEL)
    panel.locator(".jp-Cell").first.wait_for()
    page.get_by_text("| Idle").wait_for()  # the status bar: the kernel is connected
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    path = repository / "notebooks" / f"{name}.ipynb"
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    numbered = panel.locator(".jp-CodeCell .jp-InputPrompt").last  # where JupyterLab scrolls to
    playwright.expect(numbered).to_have_text(f"[{len(cells)}]:", timeout=RUN)
    page.keyboard.press("Control+s")
    page.locator(".jp-mod-dirty").wait_for(state="detached")
    return panel, nbformat.read(path, as_version=4)


def assert_it_ran(saved, figures):
    """Every cell was run, once and in order, none with an error, and there are so many pictures at least."""
    cells = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    said = [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not said, said
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= figures


def keep(panel, what, name):
    """The picture of the README, if it was asked for, from the cell of what it shows: 128 colours are enough."""
    if folder := os.environ.get("PICTURES"):
        what.evaluate("element => element.closest('.jp-Cell').scrollIntoView()")
        Image.fromarray(picture(panel)).quantize(128).save(Path(ROOT, folder) / f"{name}.png", optimize=True)


def test_the_start_page_is_the_readme(page, lab):
    page.goto(lab.format(""))
    shown = page.locator(".jp-MarkdownViewer")
    playwright.expect(shown.get_by_role("heading", name="XRD Phase")).to_be_visible()
    first = shown.locator("img").first
    first.wait_for()
    page.wait_for_function("image => image.complete && image.naturalWidth > 300", arg=first.element_handle())
    assert_not_empty(picture(shown))
    shown.get_by_role("link", name="00_the_phase_problem").first.click()
    playwright.expect(page.locator(PANEL).get_by_role("heading", name="00 The phase problem")).to_be_visible()


def test_resolution_is_a_slider(page, lab, repository):
    panel, saved = run_all(page, lab, repository, "00_the_phase_problem")
    assert_it_ran(saved, figures=7)
    slider, drawn = panel.locator(".widget-slider"), panel.locator("img.widget-image")
    slider.scroll_into_view_if_needed()
    handle, before, source = slider.locator(".noUi-handle"), picture(drawn), drawn.get_attribute("src")
    assert_not_empty(before)
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=6)
    page.mouse.up()
    playwright.expect(drawn).not_to_have_attribute("src", source)
    assert float(slider.locator(".widget-readout").inner_text()) > 2
    page.wait_for_function("image => image.complete && image.naturalWidth > 300", arg=drawn.element_handle())
    after = picture(drawn)
    assert_not_empty(after)
    assert changed(before, after) > 0.02
    keep(panel, slider, "browser_resolution")


def turn(page, place):
    """Drag over the molecule that is in a place; what was seen before and after."""
    frame = place.locator("iframe[title=molecule]")
    frame.scroll_into_view_if_needed()  # before its inside is asked for: a page draws no frame that is not seen
    canvas = frame.content_frame.locator("canvas")
    before, box = picture(canvas), canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 50, steps=6)
    page.mouse.up()
    return before, picture(canvas)


def test_own_data_end_in_a_molecule_that_turns_and_in_a_page_that_shows_it(page, lab, repository, browser):
    panel, saved = run_all(page, lab, repository, "11_your_own_data")
    assert_it_ran(saved, figures=3)
    before, after = turn(page, panel)
    assert_not_empty(before)
    assert_not_empty(after)
    assert changed(before, after) > 0.02
    keep(panel, panel.locator("iframe[title=molecule]"), "browser_molecule")

    still = write_page(repository / "notebooks" / "11_your_own_data.ipynb")
    page = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, offline=True).new_page()
    page.goto(still.as_uri(), wait_until="domcontentloaded")
    before, after = turn(page, page)
    assert_not_empty(before)
    assert changed(before, after) > 0.02
    pictures = page.locator(".jp-OutputArea img")
    assert pictures.count() == 3, "molecule, density, and in place of the slider the section that it began with"
    for i in range(pictures.count()):
        assert_not_empty(picture(pictures.nth(i)))
    assert "widget" not in "".join(page.locator(".jp-OutputArea-output").all_inner_texts()).lower()
