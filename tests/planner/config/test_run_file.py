import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.config.run_config import DataKnobs, LoraKnobs, RunConfig, SampleKnobs
from planner.config.run_file import SECTIONS, parse_run_file, read_run_file, write_run_file
from profiles.errors import ConfigError

RUN = Path("run.yaml")


def configs() -> st.SearchStrategy[RunConfig]:
    """Any valid RunConfig."""
    words = st.text(min_size=1, max_size=20)
    counts = st.integers(1, 10**6)
    rates = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
    lora = st.builds(
        LoraKnobs,
        r=counts,
        lora_alpha=counts,
        lora_dropout=st.floats(0, 1, exclude_max=True),
        target_modules=st.just("all-linear") | st.lists(words, min_size=1, max_size=3).map(tuple),
    )
    data = st.builds(DataKnobs, path=words, eval_fraction=st.floats(0, 1, exclude_max=True))
    methods = st.one_of(
        st.fixed_dictionaries({"method": st.just("full")}),
        st.fixed_dictionaries({"method": st.just("lora"), "lora": lora}),
        st.fixed_dictionaries(
            {"method": st.just("qlora"), "lora": lora, "quantization": st.sampled_from(["nf4", "fp4", "int8"])}
        ),
    )
    precisions = st.sampled_from([("bfloat16", "bf16"), ("float32", "no"), ("float32", "fp16"), ("float32", "bf16")])
    knobs = st.fixed_dictionaries(
        {"model": words, "output_dir": words},
        optional={
            "gpu": st.none() | words,
            "data": st.none() | data,
            "trust_remote_code": st.booleans(),
            "max_length": counts,
            "packing": st.booleans(),
            "gradient_accumulation_steps": counts,
            "checkpoint_every_n_layers": counts,
            "checkpoint_offload": st.booleans(),
            "learning_rate": rates,
            "weight_decay": rates,
            "max_steps": st.none() | counts,
            "eval_steps": st.none() | counts,
            "samples": st.none() | st.builds(SampleKnobs, prompts=st.tuples(words), steps=counts),
            "report_to": st.lists(st.sampled_from(["tensorboard", "wandb"])).map(tuple),
            "num_gpus": counts,
            "num_nodes": counts,
            "seed": st.integers(0, 2**63),
        },
    )
    return st.builds(
        lambda method, precision, others: RunConfig(
            **method, dtype=precision[0], mixed_precision=precision[1], **others
        ),
        methods,
        precisions,
        knobs,
    )


@given(config=configs(), comment=st.text(alphabet=st.characters(categories=["L", "N", "P", "Zs"]), max_size=40))
@settings(deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, config: RunConfig, comment: str):
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    write_run_file(config, path, [comment])
    assert read_run_file(path) == config


def test_every_knob_is_in_one_section():
    assert sorted(name for _, names in SECTIONS for name in names) == sorted(RunConfig.model_fields)


def test_the_header_says_what_was_predicted(tmp_path: Path):
    path = tmp_path / "run.yaml"
    write_run_file(RunConfig(model="m", lora=LoraKnobs()), path, ["predicted 13.5 GiB", "on a T4"])
    assert path.read_text().startswith("# predicted 13.5 GiB\n# on a T4\n\n")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "run.yaml"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_run_file(RunConfig(model="m", lora=LoraKnobs()), path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("run.yaml", "old")]


REFUSED = {
    "modl: x": r"run.yaml has a key modl, but there is no such knob.*did you mean model\?",
    "model: x\nlora: {rank: 3, lora_alfa: 1}": r"has a key lora.rank, but there is no such knob.*r, lora_alpha",
    "model: x\nlora: {lora_alfa: 3}": r"has a key lora.lora_alfa, .*did you mean lora_alpha\?",
    "model: x\ndata: {file: 3}": r"has a key data.file, .*path, format",
    "lora: {}": r"has no model.*Hub id",
    "model: x\nlora: {}\nmax_length: -5": r"max_length is -5, but it must be greater than 0.*Tokens a row",
    "model: x\nlora: {r: 0}": r"lora.r is 0, but it must be greater than 0.*Rank",
    "model: x\nlora: 3": r"lora is 3, but it must be a section",
    "model: x\nlora: {}\ndtype: int3": r"dtype is 'int3', but it must be 'float32', 'float16' or 'bfloat16'",
    "model: x\nlora: {target_modules: []}": r"target_modules is empty",
    "model: x\nmethod: qlora\nlora: {}": r"quantization is none; qlora needs nf4",
    "model: x\nmodel: y": r"line 2: model is given twice",
    "model: [": r"line 1: expected",
    "- model": r"holds no `key: value` lines",
    "": r"is empty.*fitune plan",
    "# only a comment": r"is empty",
    "version: 2\nnew_knob: 1": r"version 2, but this fitune reads up to version 1.*update",
    "model: !!python/object/apply:os.getcwd []": r"could not determine a constructor",
    "model: \x01": r"not YAML",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text.replace("\n", ", ")[:40] or "empty")
def test_a_run_file_that_breaks_a_rule_is_refused_in_one_sentence(text: str):
    with pytest.raises(ConfigError) as refusal:
        parse_run_file(text, RUN)
    sentence = f"{refusal.value.message} {refusal.value.hint}"
    assert "\n" not in sentence
    assert re.search(REFUSED[text], sentence), sentence


def test_no_is_a_word_and_an_exponent_needs_no_point():
    config = parse_run_file("model: x\nlora: {}\ndtype: float32\nmixed_precision: no\nlearning_rate: 2e-5", RUN)
    assert (config.mixed_precision, config.learning_rate) == ("no", 2e-5)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path):
    with pytest.raises(ConfigError, match="there is no run file"):
        read_run_file(tmp_path / "none.yaml")


def test_a_folder_and_bytes_are_not_run_files(tmp_path: Path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_run_file(path)
