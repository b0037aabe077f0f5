import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A package imports only from itself and from those before it.
PACKAGES = ("profiles", "planner", "trainer", "calibration")

# The same for the packages and modules of planner; those of one row may import each other.
PLANNER_LAYERS = (
    ("units", "version", "whole_file"),
    ("config",),
    ("step",),
    ("memory",),
    ("picture",),
    ("speed",),
    ("data", "records", "search"),
    ("predict",),
    ("explore",),
    ("jobs",),
    ("machine",),
    ("asking",),
    ("peers",),
    ("verbs",),
    ("report",),
    ("scale_study",),
    ("serve",),
    ("commands",),
    ("cli",),
    ("preflight",),
)

HEAVY = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")
GRAB_BAGS = {"base", "common", "core", "helper", "helpers", "misc", "shared", "tools", "util", "utils"}
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports anywhere, also inside its functions."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in names)


def own_imports_of(path: Path) -> Iterator[str]:
    return (name for name in imports_of(path) if name.partition(".")[0] in PACKAGES)


def planner_part(module: str) -> str:
    """The name under planner/: planner.memory.layer belongs to `memory`."""
    return module.split(".")[1]


def planner_layer(module: str) -> int:
    part = planner_part(module)
    return next(number for number, parts in enumerate(PLANNER_LAYERS) if part in parts)


def test_packages_import_only_to_the_left():
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in FILES
        for name in own_imports_of(path)
        if PACKAGES.index(name.partition(".")[0]) > PACKAGES.index(path.relative_to(ROOT).parts[0])
    ]
    assert wrong == []


def test_modules_of_planner_import_only_to_the_left():
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in FILES
        for name in own_imports_of(path)
        if name_of(path).startswith("planner.") and name.startswith("planner.")
        if planner_layer(name) > planner_layer(name_of(path))
    ]
    assert wrong == []


def test_each_module_of_planner_has_a_layer():
    parts = {planner_part(module) for module in MODULES if module.startswith("planner.")}
    assert parts == {part for layer in PLANNER_LAYERS for part in layer}


def test_no_two_modules_import_each_other():
    TopologicalSorter({name_of(path): set(own_imports_of(path)) for path in FILES}).prepare()


def test_planning_code_names_no_training_library():
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] in ("profiles", "planner")
        for name in imports_of(path)
        if name.partition(".")[0] in HEAVY
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "command",
    [
        ["can", "7b", "--gpu", "t4"],
        ["plan", "7b", "--gpu", "t4", "--json"],
        ["estimate", "7b", "--gpu", "t4", "--json"],
        ["gpus"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_planning_loads_no_training_library(command, tmp_path):
    script = (
        "import sys; from planner.cli import main; code = main(sys.argv[1:]); "
        f"loaded = sys.modules.keys() & set({(*HEAVY, 'huggingface_hub')}); sys.exit(str(loaded) if loaded else code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_each_module_says_what_it_is():
    silent = [name_of(path) for path in FILES if path.stat().st_size and not ast.get_docstring(parsed(path))]
    assert silent == []


def test_no_file_is_a_grab_bag():
    assert [name for name in MODULES if name.rpartition(".")[2] in GRAB_BAGS] == []


def test_files_are_short():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FILE} == {}


def test_functions_are_short():
    lengths = {
        f"{name_of(path)}.{node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES_OF_A_FUNCTION} == {}
