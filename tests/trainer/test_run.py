import csv
import json
from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs, LoraKnobs
from planner.records.experience import Experience
from planner.records.run_record import Prediction
from planner.records.run_store import recall
from profiles.errors import ConfigError, DataError, UnknownModelError
from trainer.run_folder.checkpoints import last_checkpoint
from trainer.run_folder.record import read_records

pytestmark = pytest.mark.slow


def losses(output_dir):
    """The loss of each step, as the last checkpoint has it."""
    state = json.loads((last_checkpoint(Path(output_dir)) / "trainer_state.json").read_text())
    return {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}


METHODS = {
    "full": {"method": "full", "gradient_accumulation_steps": 2, "checkpoint_every_n_layers": 2},
    "lora": {"method": "lora", "loss": "full"},
    "qlora nf4": {"method": "qlora", "quantization": "nf4", "optim": "paged_adamw_8bit"},
}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_and_keeps_a_record(tiny_config, train, method):
    config = tiny_config(**METHODS[method], max_steps=6)
    record = train(config, prediction=Prediction(allocated_bytes=10**8))
    steps = losses(config.output_dir)
    assert min(steps[5], steps[6]) < steps[1] - 0.3
    assert (record.result.status, record.result.steps, record.result.loss) == ("completed", 6, steps[6])
    assert record.measured.allocated_bytes > record.measured.phases["load"] > 5_000_000
    assert record.measured.tokens_per_second > 0
    assert read_records(Path(config.output_dir)) == [record]


def test_runs_teach_the_next_plan(tiny_config, train, tmp_path, monkeypatch):
    monkeypatch.setenv("FITUNE_STORE", str(tmp_path / "store.db"))
    config = tiny_config(max_steps=2)
    for number in range(2):
        train(config.model_copy(update={"output_dir": str(tmp_path / str(number))}))
    runs = recall(tmp_path / "store.db")
    assert [Path(run.folder).name for run in runs] == ["0", "1"]
    lesson = Experience(runs).lesson(None, config)
    assert lesson.num_runs == 2
    assert lesson.memory_factor == pytest.approx(1, abs=0.03)


def test_a_store_that_cannot_be_written_stops_no_run(tiny_config, train, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FITUNE_STORE", str(tmp_path / "file" / "store.db"))
    record = train(tiny_config(max_steps=1))
    assert record.result.status == "completed"
    assert "the store of runs" in capsys.readouterr().err


def test_full_and_fused_loss_are_the_same_number(tiny_config, train, tmp_path):
    found = {}
    for loss in ("full", "fused"):
        train(tiny_config(loss=loss, output_dir=str(tmp_path / loss), gradient_accumulation_steps=2))
        found[loss] = losses(tmp_path / loss)
    assert found["full"] == pytest.approx(found["fused"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_that_is_saved_gives_the_logits_that_were_trained(tiny_config, train):
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = tiny_config(learning_rate=1e-2)
    train(config)
    final = Path(config.output_dir) / "final"
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert "generation" in tokenizer.chat_template
    ids = tokenizer("What is 3 plus 4?", return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    adapted = AutoPeftModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    checkpoint = AutoPeftModelForCausalLM.from_pretrained(last_checkpoint(final.parent), dtype=torch.float32)
    assert torch.equal(adapted(ids).logits, checkpoint(ids).logits)
    assert not torch.allclose(adapted(ids).logits, base(ids).logits, atol=1e-3)
    assert {file.suffix for file in final.iterdir()} <= {".safetensors", ".json", ".jinja", ".md"}


def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(tiny_config, train, tmp_path):
    knobs = {"max_steps": 6, "save_steps": 3, "lora": LoraKnobs(r=4, lora_dropout=0.1)}
    whole = tiny_config(**knobs, output_dir=str(tmp_path / "whole"))
    train(whole)
    expected = losses(whole.output_dir)
    later = Path(whole.output_dir) / "checkpoint-6"
    later.joinpath("trainer_state.json").unlink()
    record = train(whole, resume=True)
    assert losses(whole.output_dir) == expected
    assert record.result.steps == 6


def test_the_same_seed_gives_the_same_losses_and_another_one_does_not(tiny_config, train, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tiny_config(seed=seed, output_dir=str(tmp_path / name)))
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")


def test_rows_that_are_held_out_are_evaluated_at_the_end_and_in_between(tiny_config, train, tiny):
    data = DataKnobs(path=str(tiny / "data.jsonl"), eval_fraction=0.1)
    record = train(tiny_config(data=data, eval_steps=2))
    state = json.loads((Path(record.config.output_dir) / "checkpoint-3/trainer_state.json").read_text())
    evaluated = [entry["step"] for entry in state["log_history"] if "eval_loss" in entry]
    assert 2 in evaluated
    assert 5 < record.result.eval_loss < 9


FORMATS = {
    "text.jsonl": [{"text": f"Number {n} is followed by {n + 1}."} for n in range(8)],
    "pairs.csv": [{"prompt": f"After {n} comes ", "completion": f"{n + 1}."} for n in range(8)],
    "alpaca.json": [{"instruction": "Add one.", "input": str(n), "output": str(n + 1)} for n in range(8)],
    "sharegpt.jsonl": [
        {"conversations": [{"from": "human", "value": f"After {n}?"}, {"from": "gpt", "value": f"{n + 1}."}]}
        for n in range(8)
    ],
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_trains(tiny_config, train, tmp_path, name):
    path = tmp_path / name
    rows = FORMATS[name]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(r) + "\n" for r in rows))
    record = train(tiny_config(data=DataKnobs(path=str(path)), max_steps=1))
    assert record.result.steps == 1


def test_a_packed_run_trains(tiny_config, train):
    assert train(tiny_config(packing=True)).result.steps == 3


def test_epochs_decide_where_no_number_of_steps_is_given(tiny_config, train):
    record = train(tiny_config(max_steps=None, num_train_epochs=0.25))
    assert record.result.steps == record.result.max_steps == 6


@pytest.mark.parametrize(
    ("knobs", "kind", "sentence"),
    [
        ({"data": None}, ConfigError, "no data section"),
        ({"lora": LoraKnobs(target_modules=("query",))}, ConfigError, r"Target modules \{'query'\} not found"),
        ({"optim": "adamw_8bits"}, ConfigError, "optim is adamw_8bits, but Transformers has no such"),
        ({"max_length": 4096}, ConfigError, "max_length is 4096, but .* reads at most 512 tokens"),
        ({"max_length": 2}, DataError, "no train row has a token to learn within max_length 2"),
        ({"dtype": "float16", "mixed_precision": "fp16"}, ConfigError, "a CPU cannot train in float16"),
        ({"checkpoint_offload": True}, ConfigError, "checkpoint_offload has no effect on a CPU"),
        ({"model": "./nowhere/model"}, UnknownModelError, "nowhere/model cannot be loaded"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_sentence(tiny_config, train, knobs, kind, sentence):
    with pytest.raises(kind, match=sentence):
        train(tiny_config(**knobs))


def test_a_folder_without_weights_is_refused(tiny_config, train, tiny, tmp_path):
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bare" / name).write_bytes((tiny / "model" / name).read_bytes())
    with pytest.raises(UnknownModelError, match="holds no weights"):
        train(tiny_config(model=str(tmp_path / "bare")))
