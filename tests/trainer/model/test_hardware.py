import pytest

from planner.config.run_config import LoraKnobs, RunConfig
from profiles.errors import ConfigError, EnvironmentFault

pytestmark = pytest.mark.slow

P100, V100, T4, A100, L4, H100 = (6, 0), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0)


def config(**knobs: object) -> RunConfig:
    return RunConfig(**{"model": "m", "gpu": "card", "lora": LoraKnobs(), **knobs})


FP16 = {"dtype": "float16", "mixed_precision": "fp16"}
FP32 = {"dtype": "float32", "mixed_precision": "no"}


@pytest.mark.parametrize("capability", [P100, V100, T4])
def test_bfloat16_is_refused_before_ampere(capability):
    from trainer.model.hardware import check_config

    with pytest.raises(
        ConfigError, match=r"bfloat16 needs compute capability 8.0, but this card has .* \d.\d"
    ) as error:
        check_config(config(), capability)
    assert error.value.hint == "use dtype float16 with mixed_precision fp16"
    with pytest.raises(ConfigError, match="bfloat16 needs"):
        check_config(config(dtype="bfloat16", mixed_precision="no"), capability)
    check_config(config(**FP16), capability)


@pytest.mark.parametrize("capability", [A100, L4, H100])
def test_bfloat16_is_fine_from_ampere_on(capability):
    from trainer.model.hardware import check_config

    check_config(config(attn_implementation="flash_attention_2"), capability)


def test_flash_attention_is_refused_before_ampere():
    from trainer.model.hardware import check_config

    with pytest.raises(ConfigError, match=r"flash_attention_2 needs compute capability 8\.0"):
        check_config(config(**FP16, attn_implementation="flash_attention_2"), T4)


@pytest.mark.parametrize(("capability", "allowed"), [(P100, False), (V100, False), (T4, True), (A100, True)])
def test_int8_needs_turing(capability, allowed):
    from trainer.model.hardware import check_config

    int8 = config(**FP16, method="qlora", quantization="int8")
    if allowed:
        check_config(int8, capability)
    else:
        with pytest.raises(ConfigError, match=r"int8 needs compute capability 7\.5"):
            check_config(int8, capability)


@pytest.mark.parametrize("knobs", [{"method": "qlora", "quantization": "nf4"}, {"optim": "adamw_8bit"}])
def test_bitsandbytes_needs_pascal(knobs):
    from trainer.model.hardware import check_config

    check_config(config(**FP16, **knobs), P100)
    with pytest.raises(ConfigError, match=r"bitsandbytes has kernels from compute capability 6\.0 on"):
        check_config(config(**FP16, **knobs), (5, 2))
    check_config(config(**FP16), (5, 2))


def test_bounded_scores_are_refused_in_sdpa_only():
    from transformers import Gemma2Config, LlamaConfig

    from trainer.model.hardware import check_attention

    with pytest.raises(ConfigError, match="bounds its attention scores, which sdpa cannot") as refusal:
        check_attention(config(attn_implementation="sdpa"), Gemma2Config())
    assert refusal.value.hint.startswith("use eager")
    check_attention(config(attn_implementation="eager"), Gemma2Config())
    check_attention(config(attn_implementation="sdpa"), LlamaConfig())


@pytest.mark.parametrize("model_type", ["t5", "gemma3_text", "gpt_oss"])
def test_models_that_overflow_are_refused_in_fp16_only(model_type):
    from trainer.model.hardware import check_model_type

    with pytest.raises(ConfigError, match=f"is a {model_type} model, which overflows in float16"):
        check_model_type(config(**FP16), model_type)
    check_model_type(config(), model_type)
    check_model_type(config(**FP32), model_type)
    check_model_type(config(**FP16), "llama")


CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("archs", "capability"), [(CU126, V100), (CU126, (6, 1)), (CU126, L4), (CU130, T4), (CU130, L4), (CU130, (12, 1))]
)
def test_a_build_with_kernels_of_the_same_generation_runs(archs, capability):
    from trainer.model.hardware import check_kernels

    check_kernels(archs, capability, "card")


@pytest.mark.parametrize(
    ("archs", "capability", "command"),
    [
        (CU130, V100, "pip install 'torch<2.15' --index-url https://download.pytorch.org/whl/cu126"),
        (CU126, (10, 0), "pip install --upgrade torch"),
    ],
)
def test_a_build_without_kernels_is_told_with_the_command_that_cures_it(archs, capability, command):
    from trainer.model.hardware import check_kernels

    with pytest.raises(EnvironmentFault, match=r"has no kernels for the card, compute capability \d+\.0") as fault:
        check_kernels(archs, capability, "card")
    assert fault.value.hint == command


@pytest.mark.parametrize(("capability", "repeated"), [(T4, True), (A100, False)])
def test_shared_heads_are_repeated_before_ampere_only(monkeypatch, tiny_config, capability, repeated):
    import torch
    from transformers.integrations import sdpa_attention

    from trainer.model.build import empty_model, load_architecture
    from trainer.model.hardware import expand_shared_heads

    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **options):
        calls.append((key.shape[1], options.get("enable_gqa", False)))
        return attention(query, key, value, **options)

    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    expand_shared_heads(capability)
    model = empty_model(tiny_config(), load_architecture(tiny_config()))
    model(torch.zeros((1, 8), dtype=torch.long))
    assert set(calls) == {(8, False) if repeated else (4, True)}


@pytest.mark.parametrize("base", ["bfloat16", "float32"])
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_adapters_are_float32_whatever_trl_makes_of_them(tiny_config, tiny, base, quantization):
    import torch
    from transformers import AutoTokenizer

    from trainer.data.examples import load_examples
    from trainer.model.build import load_architecture, load_model, wrap_with_adapter
    from trainer.objectives.objective import make_trainer
    from trainer.run import quiet_libraries

    run = tiny_config(method="qlora" if quantization else "lora", quantization=quantization, dtype=base)
    with quiet_libraries():
        model = load_model(run, load_architecture(run), torch.device("cpu"))
        tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
        examples = load_examples(run.data, tokenizer, run.seed)
        trained = make_trainer(run, wrap_with_adapter(model, run), tokenizer, examples).model
    weights = list(trained.parameters())
    assert {weight.dtype for weight in weights if weight.requires_grad} == {torch.float32}
    frozen = {weight.dtype for weight in weights if not weight.requires_grad}
    assert frozen == {getattr(torch, base)} | ({torch.uint8} if quantization else set())


@pytest.fixture
def t4_trainer():
    """Makes the trainer of a run with QLoRA as a T4 would have it, without its card."""
    import torch
    from rich.console import Console

    from tests.trainer.objective_runs import run_config
    from trainer.run import prepare, quiet_libraries

    def make(row):
        run = run_config(row, "qlora nf4", **FP16, gpu="T4")
        with quiet_libraries():
            return prepare(run, torch.device("cpu"), Console(quiet=True))

    return make


@pytest.mark.parametrize("row", ["sft", "dpo", "kto", "orpo", "reward"])
def test_a_t4_learns_in_float32_on_a_base_in_float16(t4_trainer, row):
    import torch

    trainer = t4_trainer(row)
    assert (trainer.args.fp16, trainer.args.bf16) == (True, False)
    weights = list(trainer.model.parameters())
    assert {weight.dtype for weight in weights if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in weights if not weight.requires_grad} == {torch.float16, torch.uint8}


@pytest.mark.parametrize("row", ["sft", "dpo", "kto", "orpo", "reward", "sft of an encoder-decoder"])
def test_no_kernel_is_chosen_that_a_card_may_lack_or_that_takes_minutes_to_begin(row):
    import torch
    from rich.console import Console

    from tests.trainer.objective_runs import run_config
    from trainer.run import prepare, quiet_libraries

    with quiet_libraries():
        settings = prepare(run_config(row, "lora"), torch.device("cpu"), Console(quiet=True)).args
    # TensorFloat-32 stays as torch has it, which is off.
    assert settings.tf32 is None
    assert not torch.backends.cuda.matmul.allow_tf32
    assert settings.use_liger_kernel is False
    assert settings.torch_compile is False


@pytest.mark.parametrize("row", ["sft", "dpo"])
def test_the_scaled_loss_of_a_t4_moves_its_adapters(t4_trainer, row):
    import torch

    from trainer.run import quiet_libraries

    trainer = t4_trainer(row)
    rows = trainer.train_dataset
    weights = [weight for weight in trainer.model.train().parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    # What CUDA's autocast and scaler do, on the CPU; the scaler refuses gradients in float16.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for _step in range(2):
        with quiet_libraries(), torch.autocast("cpu", dtype=torch.float16):
            loss = trainer.compute_loss(trainer.model, trainer.data_collator([rows[index] for index in (0, 1)]))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 2.0**12
    assert not any(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_a_fully_trained_model_keeps_its_dtype(tiny_config):
    import torch

    from trainer.model.build import load_architecture, load_model, wrap_with_adapter

    run = tiny_config(method="full", dtype="bfloat16", mixed_precision="bf16")
    model = wrap_with_adapter(load_model(run, load_architecture(run), torch.device("cpu")), run)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    ("precision", "computed"),
    [(FP16, "float16"), ({"dtype": "bfloat16", "mixed_precision": "bf16"}, "bfloat16"), (FP32, "float32")],
)
def test_4_bit_weights_are_computed_in_the_dtype_of_the_run(precision, computed):
    import torch

    from trainer.model.build import quantization_config

    made = quantization_config(config(method="qlora", quantization="nf4", **precision))
    assert made.bnb_4bit_compute_dtype == getattr(torch, computed)
    assert (made.bnb_4bit_quant_type, made.bnb_4bit_use_double_quant) == ("nf4", True)


def test_an_evaluation_on_a_cpu_leaves_4_bit_weights_as_they_are(tiny_config):
    import torch

    from trainer.model.build import load_architecture, load_model

    run = tiny_config(method="qlora", quantization="nf4")
    model = load_model(run, load_architecture(run), torch.device("cpu")).train()
    tokens = torch.arange(16).reshape(1, 16)
    with torch.no_grad():
        before = model(tokens).logits
        model.eval()(tokens)
        assert torch.equal(model.train()(tokens).logits, before)


def test_each_process_takes_the_card_of_its_number(monkeypatch):
    import torch

    from trainer import run

    taken = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: A100)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CU130)
    assert run.find_device(config(gpu="A100-SXM4-80GB", num_gpus=2)) == torch.device("cuda", 1)
    assert taken == [torch.device("cuda", 1)]


def test_paged_states_are_refused_under_windows(monkeypatch):
    from trainer.model.hardware import check_config

    paged = config(optim="paged_adamw_8bit")
    check_config(paged, A100)
    monkeypatch.setattr("trainer.model.hardware.platform.release", lambda: "5.15.153.1-microsoft-standard-WSL2")
    with pytest.raises(ConfigError, match="optim is paged_adamw_8bit, but under WSL") as refusal:
        check_config(paged, A100)
    assert refusal.value.hint == "use optim adamw_8bit"
    check_config(config(), A100)


def test_what_an_int8_layer_returns_may_be_written_into(monkeypatch):
    import torch
    from bitsandbytes.nn import Linear8bitLt

    from trainer.model.hardware import return_copies

    # On a GPU it returns a view that an autograd function made.
    monkeypatch.setattr(Linear8bitLt, "forward", lambda _layer, x: x.view(x.shape))
    model = torch.nn.Sequential(Linear8bitLt(8, 8, has_fp16_weights=False))
    x = torch.ones(2, 8)
    assert model(x)._is_view()
    return_copies(model)
    assert not model(x)._is_view()
