import pytest

from planner.config.run_config import LoraKnobs, RunConfig
from planner.config.settings import check_knobs, knobs_in, settings_of, with_knobs
from profiles.errors import ConfigError

CONFIG = RunConfig(model="llama2-7b", method="qlora", quantization="nf4", lora=LoraKnobs())


@pytest.mark.parametrize(
    ("setting", "knob", "value"),
    [
        ("max_length=1024", "max_length", 1024),
        ("gradient_checkpointing=false", "gradient_checkpointing", False),
        ("optim=adamw_8bit", "optim", "adamw_8bit"),
        ("learning_rate=2e-5", "learning_rate", 2e-5),
        ("eval_steps=none", "eval_steps", None),
        ("mixed_precision=no", "mixed_precision", "no"),
        ("output_dir=runs/a=b", "output_dir", "runs/a=b"),
        ("report_to=wandb", "report_to", ("wandb",)),
        ("report_to=wandb,mlflow", "report_to", ("wandb", "mlflow")),
        ("report_to=[wandb, mlflow]", "report_to", ("wandb", "mlflow")),
        ('report_to=["wandb"]', "report_to", ("wandb",)),
        ("report_to=[]", "report_to", ()),
    ],
)
def test_a_setting_replaces_its_knob(setting, knob, value):
    changed = with_knobs(CONFIG, knobs_in([setting]))
    assert getattr(changed, knob) == value
    assert changed == CONFIG.model_copy(update={knob: value})


def test_a_dotted_name_reaches_into_a_section():
    changed = with_knobs(CONFIG, knobs_in(["lora.r=64", "lora.target_modules=q_proj,v_proj"]))
    assert changed.lora == LoraKnobs(r=64, target_modules=("q_proj", "v_proj"))


def test_no_setting_changes_nothing():
    assert with_knobs(CONFIG, knobs_in([])) is CONFIG


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("max_length", r"--set is given 'max_length', but it takes KNOB=VALUE", "try --set"),
        ("=3", r"--set is given '=3', but it takes KNOB=VALUE", "try --set"),
        ("max_lenght=3", r"a key max_lenght, but there is no such knob", "did you mean max_length?"),
        ("lora.rank=3", r"a key lora.rank, but there is no such knob", "knobs here are r"),
        ("max_length=-5", r"max_length is -5, but it must be greater than 0", "Tokens a row is cut to"),
        ("report_to=3", r"report_to is 3, but it must be a list", "Where figures"),
        ("lora.r=0", r"lora.r is 0, but it must be greater than 0", "Rank"),
        ("dtype=float8", r"dtype is 'float8', but it must be 'float32', 'float16' or 'bfloat16'", "Dtype"),
        ("method=full", r"method is full, but quantization is nf4", None),
    ],
)
def test_a_bad_setting_is_told_with_its_value_and_the_rule(setting, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        with_knobs(CONFIG, knobs_in([setting]))
    assert (hint in caught.value.hint) if hint else caught.value.hint is None


def test_each_knob_is_checked_before_the_others_are_known():
    with pytest.raises(ConfigError, match="--set: max_length is 0, but it must be greater than 0"):
        check_knobs({"max_length": 0})


def test_a_rule_between_knobs_waits_for_the_others():
    check_knobs({"quantization": "nf4"})


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"max_length": 1024, "optim": "adamw_8bit", "gradient_checkpointing": False, "eval_steps": None},
        {"lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]}, "learning_rate": 2e-5},
        {"model": "7", "output_dir": "a,b", "gpu": "none", "data": {"path": "true"}},
    ],
)
def test_settings_are_read_back_as_the_knobs_that_they_were_written_from(knobs):
    assert knobs_in(settings_of(knobs)) == knobs
