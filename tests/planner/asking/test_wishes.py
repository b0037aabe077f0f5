"""What can be asked is said once, and means the same wherever it is asked."""

from dataclasses import fields
from inspect import signature
from typing import get_args

import pytest
import typer
from pydantic.fields import FieldInfo

import planner
from planner.asking import wishes
from planner.asking.wishes import NUMBERS, Wishes, words
from planner.cli import application
from planner.serve.page_question import PageQuestion
from planner.serve.served_verbs import served_verbs
from planner.verbs import answers
from profiles.errors import ConfigError

VERBS = ("can", "plan", "estimate")
ON_THE_COMMAND_LINE = {"num_nodes": "nodes", "knobs": "settings"}
PARAMETERS = [type_ for type_ in vars(wishes).values() if any(isinstance(part, FieldInfo) for part in get_args(type_))]


def annotations(verb):
    return {name: given.annotation for name, given in signature(getattr(answers, verb)).parameters.items()}


def test_the_functions_take_each_wish_as_it_is_defined():
    wished = {field.name: field.type for field in fields(Wishes)} | {
        "data": wishes.DataFile,
        "knobs": wishes.Knobs,
    }
    assert {name: type_ for name, type_ in annotations("plan").items() if name in wished} == wished
    assert {name: type_ for name, type_ in annotations("can").items() if name in wished}.items() < wished.items()


@pytest.mark.parametrize("verb", VERBS)
def test_the_servers_and_the_command_line_say_of_each_parameter_what_is_defined(verb):
    command = typer.main.get_command(application([verb]))
    command = getattr(command, "commands", {verb: command})[verb]
    options = {option.name: option.help for option in command.params}
    served = served_verbs()[verb].question.model_json_schema()["properties"]
    said = {name: words(type_) for name, type_ in annotations(verb).items() if type_ in PARAMETERS}
    assert len(said) >= 9
    for name, meaning in said.items():
        if name != "knobs":
            assert options[ON_THE_COMMAND_LINE.get(name, name)] == meaning
        if name not in ("data", "exact"):
            assert served[name]["description"] == meaning


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_has_the_same_limits_in_python_and_on_the_page(name):
    for value in (0, -3):
        with pytest.raises(ConfigError, match=f"{name} is {value}, but it must be at least 1"):
            planner.can("7b", "t4", **{name: value})
        with pytest.raises(ConfigError, match=f"{name} is {value}, but it must be at least 1"):
            PageQuestion.of([("model", "7b"), (name, str(value))]).ask(None)
