from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import ConfigError
from profiles.optimizer import OptimizerProfile, all_optimizers, find_optimizer

SHAPES = [(1,), (5000,), (64, 63), (64, 64), (33, 4096), (300, 1001)]

each_optimizer = pytest.mark.parametrize("optimizer", all_optimizers(), ids=lambda optimizer: optimizer.name)


# Bytes a parameter in the papers: AdamW 8, 8-bit AdamW a little more than 2 (https://arxiv.org/abs/2110.02861).
@pytest.mark.parametrize(
    ("name", "itemsize", "bytes_per_parameter"),
    [
        ("adamw_torch", 4, 8),
        ("adamw_torch", 2, 4),
        ("adamw_torch_fused", 4, 8),
        ("paged_adamw_32bit", 2, 8),
        ("adamw_8bit", 2, 2.03125),
        ("paged_adamw_8bit", 4, 2.03125),
        ("lion_32bit", 2, 4),
        ("lion_8bit", 2, 1.015625),
        ("sgd", 4, 0),
    ],
)
def test_states_take_the_published_bytes_a_parameter(name, itemsize, bytes_per_parameter):
    states = find_optimizer(name).state_bytes((4096, 4096), itemsize)
    assert states == pytest.approx(bytes_per_parameter * 4096 * 4096, abs=4)


def test_adafactor_keeps_the_sums_of_rows_and_columns():
    adafactor = find_optimizer("adafactor")
    assert adafactor.state_sizes((300, 1001), 2) == (4, 4 * 300, 4 * 1001)
    assert adafactor.state_sizes((300,), 2) == (4, 4 * 300)


def test_small_parameters_keep_float32_states():
    assert find_optimizer("adamw_8bit").state_sizes((4095,), 2) == (4 * 4095, 4 * 4095)


def test_embeddings_keep_float32_states():
    optimizer = find_optimizer("adamw_8bit")
    assert optimizer.state_bytes((1000, 64), 2, embedding=True) == 8 * 64000
    assert optimizer.state_bytes((1000, 64), 2) < 3 * 64000


def test_only_large_states_are_paged():
    assert not find_optimizer("paged_adamw_8bit").is_paged(99_999)
    assert find_optimizer("paged_adamw_8bit").is_paged(100_000)
    assert not find_optimizer("adamw_8bit").is_paged(100_000)


def test_foreach_copies_all_parameters_and_fused_none():
    assert find_optimizer("adamw_torch").scratch_bytes([10, 20], 2) == 60
    assert find_optimizer("adamw_torch_fused").scratch_bytes([10, 20], 2) == 0


def test_adafactor_works_on_one_parameter_at_a_time():
    assert find_optimizer("adafactor").scratch_bytes([10, 20], 4) == 20 * 12
    assert find_optimizer("adafactor").scratch_bytes([10, 20], 2) == 20 * 20


def test_no_parameter_needs_no_scratch():
    assert find_optimizer("adafactor").scratch_bytes([], 4) == 0


@each_optimizer
@given(rows=st.integers(1, 500), columns=st.integers(1, 500), itemsize=st.sampled_from([2, 4]))
def test_states_never_exceed_two_float32_copies(optimizer, rows, columns, itemsize):
    bound = 8 * rows * columns + 8
    assert 0 <= optimizer.state_bytes((rows, columns), itemsize) <= bound


@each_optimizer
def test_every_row_names_its_source(optimizer):
    assert any(library in optimizer.source for library in ("torch 2", "transformers 5", "bitsandbytes 0"))


def test_an_alias_is_the_same_optimizer():
    assert find_optimizer("adamw_8bit") is find_optimizer("adamw_bnb_8bit")


def test_an_unknown_optimizer_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean adamw_torch_fused"):
        find_optimizer("adamw_torch_fussed")


@pytest.mark.slow
@each_optimizer
def test_transformers_knows_the_names(optimizer):
    from transformers.training_args import OptimizerNames

    known = {name.value for name in OptimizerNames}
    assert {optimizer.name, *optimizer.aliases} <= known


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@each_optimizer
@pytest.mark.filterwarnings("ignore")
def test_states_are_those_of_the_library(optimizer, dtype):
    import torch

    parameters = [torch.nn.Parameter(torch.randn(shape).to(getattr(torch, dtype))) for shape in SHAPES]
    made = library_optimizer(optimizer, parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    made.step()
    for parameter, shape in zip(parameters, SHAPES, strict=True):
        tensors = {name: state for name, state in made.state[parameter].items() if torch.is_tensor(state)}
        if optimizer.name == "adamw_torch":  # its step counter stays on the CPU
            tensors.pop("step")
        held = [state.nbytes for name, state in tensors.items() if not name.startswith("qmap")]
        assert sorted(held) == sorted(optimizer.state_sizes(shape, parameter.itemsize))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
def test_scratch_is_that_of_the_library(name, dtype):
    import torch

    optimizer = find_optimizer(name)
    parameters = [torch.nn.Parameter(torch.randn(300, 200).to(getattr(torch, dtype))) for _ in range(4)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    made = library_optimizer(optimizer, parameters)
    made.step()
    measured = peak_of_new_storage(made.step)
    expected = optimizer.scratch_bytes([prod(p.shape) for p in parameters], parameters[0].itemsize)
    assert expected <= measured <= expected + 8192


def library_optimizer(optimizer: OptimizerProfile, parameters: list):
    import bitsandbytes
    import torch
    from transformers.optimization import Adafactor

    name = optimizer.name
    if name == "adafactor":
        return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=1e-3, foreach=True)
    if name.startswith("adamw_torch"):
        fused = name.endswith("fused")
        return torch.optim.AdamW(parameters, fused=fused, foreach=not fused)
    kind = bitsandbytes.optim.Lion if "lion" in name else bitsandbytes.optim.AdamW
    return kind(parameters, optim_bits=8 if "8bit" in name else 32, is_paged=optimizer.paged)


def peak_of_new_storage(step) -> int:
    """Most bytes alive at once of the tensors that `step` makes."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.alive: dict[int, int] = {}
            self.peak = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if not function._schema.is_mutable:
                for tensor in torch.utils._pytree.tree_leaves(result):
                    if torch.is_tensor(tensor):
                        self.count(tensor.untyped_storage())
            return result

        def count(self, storage):
            key = storage._cdata
            if key not in self.alive:
                self.alive[key] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, key)
                self.peak = max(self.peak, sum(self.alive.values()))

    with Counter() as counter:
        step()
    return counter.peak
