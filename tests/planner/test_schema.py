import json

import jsonschema
import pytest
import yaml

import planner
from planner.cli import main
from planner.config.run_config import RunConfig
from planner.config.run_file import SCHEMA_FILE, SCHEMA_LINE, read_run_file, run_file_text


def schema_of(capsys):
    assert main(["schema"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_schema_accepts_what_plans_write(capsys):
    schema = schema_of(capsys)
    jsonschema.Draft202012Validator.check_schema(schema)
    for plan in (planner.plan("7b", "t4"), planner.plan(recipe="phi-2-dpo"), planner.plan("8b", "h100", method="full")):
        jsonschema.validate(yaml.safe_load(run_file_text(plan.config)), schema)


@pytest.mark.parametrize("change", [{"optimm": "adamw"}, {"max_length": 0}, {"method": "magic"}, {"lora": {"rank": 8}}])
def test_the_schema_refuses_what_a_run_file_may_not_have(change, capsys):
    values = planner.plan("7b", "t4").config.model_dump(mode="json") | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, schema_of(capsys))


def test_every_knob_says_what_it_is(capsys):
    properties = schema_of(capsys)["properties"]
    assert set(properties) == set(RunConfig.model_fields)
    assert [name for name, field in properties.items() if not field.get("description") and name != "version"] == []


def test_a_run_file_beside_the_schema_names_it(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    assert main(["plan", "7b", "--gpu", "t4", "-o", str(path)]) == 0
    assert SCHEMA_LINE not in path.read_text()
    assert main(["schema", "-o", str(tmp_path / SCHEMA_FILE)]) == 0
    assert main(["plan", "7b", "--gpu", "t4", "-o", str(path), "--force"]) == 0
    assert path.read_text().splitlines()[0] == f"# {SCHEMA_LINE}"
    assert read_run_file(path) == planner.plan("7b", "t4").config


def test_a_schema_that_cannot_be_written_is_told(tmp_path, capsys):
    assert main(["schema", "-o", str(tmp_path / "no" / "run.schema.json")]) == 2
    assert "cannot be written: No such file" in capsys.readouterr().err
