"""The commands of README.md do what stands there."""

from pathlib import Path

import pytest

from tests.console_examples import examples, run_as_shown, sections_with_examples

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", list(sections_with_examples(README)))
def test_commands_print_what_the_readme_shows(section, tmp_path):
    run_as_shown(section, tmp_path)


def test_the_readme_shows_the_way_to_a_run():
    commands = [example.command for example in examples(README)]
    for verb in ("can", "plan", "estimate", "launch"):
        assert any(command.startswith(f"fitune {verb} ") for command in commands)


@pytest.mark.parametrize("folder", ["profiles", "planner", "trainer", "calibration"])
def test_every_module_is_in_a_map(folder):
    own = ROOT / folder / "README.md"
    text = README + (own.read_text(encoding="utf-8") if own.exists() else "")
    names = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert {name for name in names if f"`{name}`" not in text} == set()
