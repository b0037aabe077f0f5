import io
import json
import os
import signal
import sys

import pytest

from planner.cli import main as fitune
from trainer.finish.talk import main

# PEFT still asks Transformers by a name that it will drop.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")]

GREEDY = ["--temperature", "0", "--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter with random weights, the tokenizer with a chat template beside it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.data.chat import give_template

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny / "model")
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(base, lora).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    give_template(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def greedy_answer(folder, text):
    """What Transformers' own generation says after `text`, token by token of highest probability."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    length = tokens.shape[1]
    with torch.no_grad():
        for _ in range(6):
            following = model(tokens).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, following], dim=1)
            if following.item() == tokenizer.eos_token_id:
                break
    return tokenizer.decode(tokens[0, length:], skip_special_tokens=True)


def test_a_question_is_put_in_the_chat_template_and_answered(adapter, capsys):
    assert main([str(adapter), "--prompt", "What is 2 plus 2?", *GREEDY]) == 0
    expected = greedy_answer(adapter, "<s><|user|>\nWhat is 2 plus 2?\n<|assistant|>\n")
    assert expected.strip()
    assert capsys.readouterr().out == f"{expected}\n"


def test_a_system_message_comes_first(adapter, capsys):
    assert main([str(adapter), "--prompt", "Hi", "--system", "Be short.", *GREEDY]) == 0
    expected = greedy_answer(adapter, "<s><|system|>\nBe short.\n<|user|>\nHi\n<|assistant|>\n")
    assert capsys.readouterr().out == f"{expected}\n"


def test_json_has_the_answer(adapter, capsys):
    assert main([str(adapter), "--prompt", "Hi", "--json", *GREEDY]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompt"] == "Hi"
    assert document["answer"] == greedy_answer(adapter, "<s><|user|>\nHi\n<|assistant|>\n")
    assert document["num_tokens"] <= 6


def test_each_line_is_a_turn_of_one_conversation(adapter, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n\nAnd then?\n"))
    assert main([str(adapter), *GREEDY]) == 0
    first = greedy_answer(adapter, "<s><|user|>\nHi\n<|assistant|>\n")
    so_far = f"<s><|user|>\nHi\n<|assistant|>\n{first}</s>\n<|user|>\nAnd then?\n<|assistant|>\n"
    assert capsys.readouterr().out == f"{first}\n{greedy_answer(adapter, so_far)}\n"


def test_a_conversation_that_is_too_long_begins_anew(adapter, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 600 + "\nHi\n"))
    assert main([str(adapter), *GREEDY]) == 0
    out, err = capsys.readouterr()
    assert "but the model reads at most 512; it is forgotten" in err
    assert out == greedy_answer(adapter, "<s><|user|>\nHi\n<|assistant|>\n") + "\n"


def test_a_question_that_is_too_long_is_bad_input(adapter, capsys):
    assert main([str(adapter), "--prompt", "word " * 600]) == 2
    assert "the model reads at most 512" in capsys.readouterr().err


def test_without_a_template_the_text_goes_on(tiny, capsys):
    assert main([str(tiny / "model"), "--prompt", "What is", *GREEDY]) == 0
    out, err = capsys.readouterr()
    assert out
    assert "note: the model has no chat template, so it goes on with the text" in err


def test_ctrl_c_ends_an_answer_early(adapter, monkeypatch, capsys):
    from transformers import TextIteratorStreamer

    def be_interrupted(self):
        yield "begun"
        os.kill(os.getpid(), signal.SIGINT)
        yield from ()

    monkeypatch.setattr(TextIteratorStreamer, "__iter__", be_interrupted)
    assert main([str(adapter), "--prompt", "Hi", "--temperature", "0"]) == 128 + signal.SIGINT
    assert capsys.readouterr().out == "begun\n"


def test_an_answer_that_is_stopped_writes_no_more(adapter):
    from trainer.finish.answers import Sampling, load_answers
    from trainer.run_folder.finished_run import find_finished_run

    answers = load_answers(find_finished_run(adapter))
    pieces = []
    for piece in answers.stream([{"role": "user", "content": "Hi"}], Sampling(400, 1.0)):
        pieces.append(piece)
        answers.stop()
    assert len(answers.tokenizer("".join(pieces))["input_ids"]) < 100


def test_a_failure_while_it_writes_is_not_swallowed(adapter, monkeypatch):
    from trainer.finish.answers import Sampling, load_answers
    from trainer.run_folder.finished_run import find_finished_run

    answers = load_answers(find_finished_run(adapter))
    monkeypatch.setattr(answers._model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(answers.stream([{"role": "user", "content": "Hi"}], Sampling(5, 0)))


def test_an_encoder_decoder_answers(tmp_path, capsys):
    from trainer.tiny_model import write_tiny_model

    write_tiny_model(tmp_path, "t5")
    assert main([str(tmp_path), "--prompt", "What is 2 plus 2?", *GREEDY]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_reward_model_does_not_talk(tiny, tmp_path, capsys):
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(tiny / "model", num_labels=1).save_pretrained(tmp_path)
    assert main([str(tmp_path), "--prompt", "Hi"]) == 2
    assert capsys.readouterr().err == f"error: the model in {tmp_path} scores answers and writes none\n"


def test_a_base_that_is_gone_is_told(adapter, tmp_path, capsys):
    import shutil

    shutil.copytree(adapter, tmp_path / "lost")
    config = tmp_path / "lost" / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "base_model_name_or_path": str(tmp_path / "gone")}))
    assert main([str(tmp_path / "lost"), "--prompt", "Hi"]) == 2
    assert f"{tmp_path}/gone cannot be loaded" in capsys.readouterr().err


def test_json_needs_a_question(adapter, capsys):
    assert main([str(adapter), "--json"]) == 2
    assert "--json prints one answer, so it needs a question" in capsys.readouterr().err


def test_the_base_is_quantized_as_it_was_for_the_adapter(adapter, tmp_path, tiny):
    import shutil

    import bitsandbytes

    from planner.config.run_config import LoraKnobs, RunConfig
    from planner.config.run_file import write_run_file
    from trainer.finish.answers import load_answers
    from trainer.run_folder.finished_run import find_finished_run

    shutil.copytree(adapter, tmp_path / "final")
    config = RunConfig(model=str(tiny / "model"), method="qlora", quantization="nf4", lora=LoraKnobs())
    write_run_file(config, tmp_path / "run.yaml")
    model = load_answers(find_finished_run(tmp_path))._model
    assert sum(isinstance(module, bitsandbytes.nn.Linear4bit) for module in model.modules()) == 6 * 7


def test_the_verb_becomes_the_conversation(monkeypatch):
    from planner.commands import chat

    calls = []
    monkeypatch.setattr(chat.os, "execv", lambda path, argv: calls.append((path, argv)))
    assert fitune(["chat", "runs/a", "-p", "-- hi", "--max-new-tokens", "9"]) == 0
    options = ["--prompt=-- hi", "--max-new-tokens=9", "--temperature=0.7"]
    assert calls == [(sys.executable, [sys.executable, "-m", "trainer.finish.talk", "runs/a", *options])]
