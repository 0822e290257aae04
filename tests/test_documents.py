"""README, RESULTS and CONTRIBUTING say what is there: rooms, commands, files, numbers."""

import re

import pytest
import typer

import xrd_helpers
from test_own_network import MY_NET
from xrd_helpers import ROOT
from xrd_helpers.cli import app

DOCUMENTS = ["README.md", "RESULTS.md", "CONTRIBUTING.md", "data/README.md", "weights/README.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rooms_of(text):
    """{room: question} of the map in a text, in its order."""
    lines = re.findall(r"^([a-z_]+(?:, [a-z_]+)*)  +(\S.*\?)$", text, re.MULTILINE)
    return {room: question for rooms, question in lines for room in rooms.split(", ")}


def test_the_map_is_the_same_in_the_package_and_in_the_readme():
    written = re.search(r"## The map[^\n]*\n.*?```\n(.*?)```", README, re.DOTALL).group(1)
    assert written in xrd_helpers.__doc__ and len(written.splitlines()) == 15


def test_the_map_has_every_room_and_no_other():
    folder = ROOT / "xrd_helpers"
    there = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert set(rooms_of(xrd_helpers.__doc__)) == there - {"__init__"}


def test_the_network_of_the_readme_is_the_one_that_is_tested():
    assert f"```python\n{MY_NET}```" in README


def test_the_readme_is_three_screens():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_headings(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md", "CONTRIBUTING.md"])
def test_commands_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", code, re.MULTILINE)) <= targets
    commands = typer.main.get_command(app).commands
    for command, arguments in re.findall(r"^xrd ([a-z-]+)(.*)$", code, re.MULTILINE):
        known = {option for parameter in commands[command].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", arguments)) <= known, f"xrd {command}{arguments}"
    for script in re.findall(r"benchmarks/\w+\.py|tests/\w+\.py", code):
        assert (ROOT / script).is_file(), script


def test_numbers_of_the_readme_stand_in_the_results():
    table = re.search(r"## Five results\n(.*?)\n\n\*", README, re.DOTALL).group(1)
    numbers = re.findall(r"\d+\.\d+|\d+ of \d+", table)
    results = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert len(numbers) > 8 and [number for number in numbers if number not in results] == []


def test_the_recipes_name_lists_and_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    recipes = text.split("## Recipes")[1]
    assert len(re.findall(r"^\*\*.*\*\*", recipes, re.MULTILINE)) == 8
    for room in re.findall(r"`(\w+\.py)`", recipes):
        assert (ROOT / "xrd_helpers" / room).is_file(), room
    for room, name in re.findall(r"`(\w+)\.([A-Z_]+)`", recipes):
        module = __import__(f"xrd_helpers.{room}", fromlist=[name])
        assert hasattr(module, name), f"{room}.{name}"
