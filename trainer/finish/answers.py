"""A trained model that answers token by token: an adapter on its base, quantized as it learned, or a whole model."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TextIteratorStreamer,
)

from profiles.errors import InputError, UnknownModelError
from trainer.data.formats import Message
from trainer.data.stop_tokens import stop_token_ids
from trainer.model.model_name import weights_name
from trainer.run_folder.finished_run import FinishedRun

SCORES = "ForSequenceClassification"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen: at most `max_new_tokens`; with temperature 0 the likeliest, else by chance."""

    max_new_tokens: int
    temperature: float


class Answers:
    """A model with its tokenizer; `stop` ends the answer that is being written."""

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._model = model.eval()
        self._stop = threading.Event()
        self._stop_ids = stop_token_ids(tokenizer, model.generation_config)

    @property
    def has_template(self) -> bool:
        """Whether the model knows turns of a conversation; if not, it goes on with the text it is given."""
        return self.tokenizer.chat_template is not None

    def stop(self) -> None:
        """End the answer that is being written, at its next token."""
        self._stop.set()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        """The answer to the last of `messages`, piece by piece. Raises InputError if they are too long to read."""
        inputs = self._encode(messages)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failures: list[Exception] = []
        arguments = {**inputs, **self._generation(inputs, sampling), "streamer": streamer}
        self._stop.clear()
        thread = threading.Thread(target=self._generate, args=(arguments, failures), daemon=True)
        thread.start()
        yield from streamer
        thread.join()
        if failures:
            raise failures[0]

    def _generate(self, arguments: dict[str, Any], failures: list[Exception]) -> None:
        try:
            # The stopping criterion is this object: a thread cannot be ended from outside.
            self._model.generate(**arguments, stopping_criteria=[_Until(self._stop)])
        except Exception as error:  # noqa: BLE001  # told by the thread that reads, which would wait forever
            failures.append(error)
            arguments["streamer"].end()

    def _encode(self, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        """The conversation as tokens `(1, length)`, up to where the answer begins."""
        if self.has_template:
            try:
                text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            except TemplateError as error:
                raise InputError(f"the model's chat template refuses the conversation: {error}") from error
            # The template has written the tokens that begin a text.
            encoded = self.tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)
        else:
            encoded = self.tokenizer(messages[-1]["content"], return_tensors="pt", verbose=False)
        names = ("input_ids", "attention_mask")
        return {name: encoded[name].to(self._model.device) for name in names}

    def _generation(self, inputs: dict[str, torch.Tensor], sampling: Sampling) -> dict[str, Any]:
        """Settings of `generate`, with as many new tokens as the model has positions for."""
        length = inputs["input_ids"].shape[1]
        config = self._model.config.get_text_config()
        positions = None if config.is_encoder_decoder else getattr(config, "max_position_embeddings", None)
        room = sampling.max_new_tokens if positions is None else min(sampling.max_new_tokens, positions - length)
        if room < 1:
            raise InputError(
                f"the conversation has {length} tokens, but the model reads at most {positions}",
                hint="begin a new one",
            )
        pad = self.tokenizer.pad_token_id
        settings: dict[str, Any] = {
            "max_new_tokens": room,
            "do_sample": sampling.temperature > 0,
            "eos_token_id": self._stop_ids,
            "pad_token_id": self._stop_ids[0] if pad is None and self._stop_ids else pad,
        }
        return settings | ({"temperature": sampling.temperature} if sampling.temperature > 0 else {})


class _Until(StoppingCriteria):  # type: ignore[misc]
    """True for every row once `event` is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)


def load_answers(finished: FinishedRun) -> Answers:
    """The model of a run, an adapter or a model folder, on this machine's card or on its CPU.

    Raises UnknownModelError if a base cannot be loaded, and InputError for a model that only scores answers.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    adapter, trust = finished.adapter, finished.trust_remote_code
    name = weights_name(finished.base) if adapter else str(finished.folder)
    with _loading(name):
        architecture = AutoConfig.from_pretrained(name, trust_remote_code=trust)
    _check_that_it_writes(finished, architecture)
    model_class = AutoModelForSeq2SeqLM if architecture.is_encoder_decoder else AutoModelForCausalLM
    with _loading(name):
        model = model_class.from_pretrained(
            name,
            dtype=_dtype(finished, device),
            quantization_config=_quantization(finished),
            device_map={"": device},
            trust_remote_code=trust,
            use_safetensors=True,
        )
        has_tokenizer = (finished.folder / "tokenizer_config.json").exists()
        tokenizer = AutoTokenizer.from_pretrained(finished.folder if has_tokenizer else name, trust_remote_code=trust)
    return Answers(PeftModel.from_pretrained(model, finished.folder) if adapter else model, tokenizer)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Say in a sentence that there is no such model, or that it cannot be read."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UnknownModelError(f"{name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error


def _check_that_it_writes(finished: FinishedRun, architecture: Any) -> None:  # noqa: ANN401  # a type that mypy does not see
    """Raise InputError for a reward model."""
    scores = any(SCORES in name for name in architecture.architectures or ())
    if scores or (finished.adapter or {}).get("task_type") == "SEQ_CLS":
        raise InputError(f"the model in {finished.folder} scores answers and writes none")


def _dtype(finished: FinishedRun, device: torch.device) -> torch.dtype | str:
    """The dtype in which the adapter learned; that of the weights' own files where no run is known.

    Few CPUs multiply in float16; bfloat16 takes the same memory.
    """
    if finished.config is None or finished.adapter is None:
        return "auto"
    dtype: torch.dtype = getattr(torch, finished.config.dtype)
    return torch.bfloat16 if device.type == "cpu" and dtype is torch.float16 else dtype


def _quantization(finished: FinishedRun) -> Any:  # noqa: ANN401  # a type that mypy does not see
    """How the base was quantized when the adapter learned; None if it was not."""
    if finished.adapter is None or finished.config is None or finished.config.quantization is None:
        return None
    # It imports TRL, which takes seconds.
    from trainer.model.build import quantization_config

    return quantization_config(finished.config)
