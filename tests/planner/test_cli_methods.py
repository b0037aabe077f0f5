import json

import pytest

from planner.cli import main
from profiles.peft_method import peft_facts


def test_methods_lists_each_method_once(capsys):
    assert main(["methods"]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "method"
    assert [row.split()[0] for row in rows] == list(peft_facts().methods)


def test_methods_takes_part_of_a_name(capsys):
    assert main(["methods", "tuning"]) == 0
    names = [row.split()[0] for row in capsys.readouterr().out.splitlines()[1:]]
    assert "PREFIX_TUNING" in names
    assert all("TUNING" in name for name in names)


def test_a_method_alone_is_shown_with_its_bases_and_options(capsys):
    assert main(["methods", "prefix_tuning"]) == 0
    shown = capsys.readouterr().out
    assert "trains, with gradient_checkpointing: false" in shown
    assert "  peft:\n    type: PREFIX_TUNING\n    num_virtual_tokens: 8\n" in shown
    assert "prefix_projection" in shown


def test_a_method_tells_why_a_base_does_not_work(capsys):
    assert main(["methods", "hra"]) == 0
    assert "int8    it reads the packed numbers of the base as if they were its weights" in capsys.readouterr().out


def test_a_method_that_cannot_be_continued_says_so(capsys):
    assert main(["methods", "adalora"]) == 0
    assert "cannot go on from a checkpoint" in capsys.readouterr().out


def test_methods_json_has_every_fact(capsys):
    assert main(["methods", "oft", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    [oft] = document["methods"]
    assert document["peft_version"] == peft_facts().peft_version
    assert (oft["name"], oft["bases"]["nf4"]["works"]) == ("OFT", True)
    assert oft["options"]["coft"] == {"type": "bool", "default": False}


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_the_table_fits_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["methods"]) == 0
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= width


def test_an_unknown_method_is_bad_input(capsys):
    assert main(["methods", "lohaa"]) == 2
    assert "did you mean LOHA?" in capsys.readouterr().err
