import json

import pytest

import planner
from planner.config.run_config import RunConfig
from planner.config.run_file import parse_run_file
from planner.report.plan_document import plan_document, prediction_document
from planner.serve.served_verbs import served_verbs
from planner.verbs.facts import gpus


def as_json(document):
    return json.loads(json.dumps(document))


def test_can_answers_as_the_function_does(served):
    question = {"model": "8b", "gpu": "24GB", "max_length": 4096, "knobs": {"lora": {"r": 8}}}
    assert served.post("/api/can", question) == (200, as_json(plan_document(planner.can(**question))))


def test_a_plan_comes_with_its_run_file(served):
    status, answer = served.post("/api/plan", {"model": "7b", "gpu": "t4", "method": "qlora"})
    assert status == 200
    config = parse_run_file(answer["run_file"], "run.yaml")
    assert config.model_dump(mode="json") == answer["config"]
    assert "# fitune plan of" in answer["run_file"]


def test_a_configuration_is_estimated(served):
    config = planner.can("7b", "t4").config
    status, answer = served.post("/api/estimate", {"subject": config.model_dump(mode="json")})
    assert (status, answer) == (200, as_json(prediction_document(planner.estimate(config))))
    status, answer = served.post("/api/estimate", {"subject": "7b", "gpu": "t4", "method": "qlora", "trainer": "trl"})
    assert (status, answer["trainer"]) == (200, "trl")


def test_what_does_not_fit_is_an_answer(served):
    status, answer = served.post("/api/can", {"model": "70b", "gpu": "t4"})
    assert (status, answer["verdict"], answer["config"]) == (200, "no", None)
    assert answer["shortfall"]


def test_facts_are_served(served):
    assert served.post("/api/gpus", {"words": "ampere"}) == (200, as_json(gpus("ampere")))
    status, answer = served.post("/api/schema", {})
    assert (status, answer["schema"]) == (200, as_json(RunConfig.model_json_schema()))


@pytest.mark.parametrize(
    ("path", "question", "message", "hint"),
    [
        ("can", {"model": "7b", "gpu": "x9000"}, "no GPU is called 'x9000'", "fitune gpus"),
        ("can", {"gpu": "t4"}, "can has no model", "Hub id"),
        ("can", {"model": "7b", "colour": "red"}, "can has no colour", "its schema lists"),
        ("can", {"model": "7b", "gpu": "t4", "max_length": 0}, "max_length is 0, but it must be greater than 0", None),
        ("can", {"model": "7b", "data": "/etc/passwd"}, "can has no data", "its schema lists"),
        ("can", {"model": "/etc", "gpu": "t4"}, "folders of this machine are not read here", "name a model"),
        ("can", {"model": "~/model", "gpu": "t4"}, "folders of this machine are not read here", "name a model"),
        ("plan", {"model": "7b", "knobs": {"optim": "sgdd"}}, "sgdd", None),
        ("estimate", {"subject": "run.yaml"}, "files of this machine are not read here", None),
        ("estimate", {"subject": "7b", "exact": True}, "estimate has no exact", None),
        ("gpus", {"words": "voodoo"}, "no GPU has 'voodoo'", "fitune gpus"),
        ("can", b"{not json", "JSON", None),
        ("can", [1, 2], "can", None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input_is_told_in_a_sentence(served, path, question, message, hint):
    status, answer = served.post(f"/api/{path}", question)
    assert status == 422
    assert message in answer["error"]["message"]
    assert answer["error"]["exit_code"] == 2
    assert hint is None or hint in answer["error"]["hint"]


def test_a_folder_beside_the_server_is_not_read(served):
    (served.folder / "gpt2").mkdir(exist_ok=True)
    (served.folder / "gpt2" / "config.json").write_text('{"model_type": "nonsense"}')
    status, answer = served.post("/api/can", {"model": "gpt2", "gpu": "t4"})
    assert (status, answer["model"]) == (200, "openai-community/gpt2")


def test_openapi_describes_every_verb_and_field(served):
    status, text = served.get("/openapi.json")
    paths = json.loads(text)["paths"]
    assert status == 200
    assert {f"/api/{name}" for name in served_verbs()} == set(paths)
    for name, verb in served_verbs().items():
        operation = paths[f"/api/{name}"]["post"]
        assert operation["summary"]
        fields = verb.question.model_json_schema().get("properties", {})
        assert all(field["description"] for field in fields.values()), name


def test_a_name_of_another_host_is_refused(served):
    assert served.get("/", Host="evil.example")[0] == 400


def test_the_functions_and_the_verbs_have_the_same_parameters():
    for verb in (planner.can, planner.plan, planner.estimate):
        served_fields = set(served_verbs()[verb.__name__].question.model_fields)
        assert served_fields == set(verb.__annotations__) - {"return", "access", "data", "exact"}
