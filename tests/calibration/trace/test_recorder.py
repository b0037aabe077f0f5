import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from calibration.trace.module_path import ModulePath
from calibration.trace.recorder import Recorder
from calibration.trace.step_trace import label_loaded, trace
from tests.calibration.traced_steps import FULL, LORA, QLORA, llama

pytestmark = pytest.mark.slow


class Layer(nn.Module):
    """Two products, so that both have a place of their own in the backward pass."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 32, bias=False)
        self.down = nn.Linear(32, 8, bias=False)

    def forward(self, x):
        return self.down(torch.sin(self.up(x)))


class Network(nn.Module):
    """Two layers, with or without a checkpoint around each."""

    def __init__(self, checkpoints=False):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self._checkpoints = checkpoints

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self._checkpoints else layer(x)
        return x


@contextlib.contextmanager
def recording(network=None, **options):
    """A recorder of a network of fake tensors, active."""
    with FakeTensorMode():
        network = (network or Network)() if not isinstance(network, nn.Module) else network
        with ModulePath({"": network}, ["layers.0", "layers.1"]) as path:
            recorder = Recorder(path, {}, **options)
            label_loaded(network, "", recorder)
            with recorder:
                recorder.begin("forward")
                yield SimpleNamespace(recorder=recorder, network=network, stream=recorder.stream, path=path)


def made(stream, phase):
    """Name, module and bytes of what was made in a phase."""
    return [(a.name, a.module, a.bytes) for a in stream.allocations if a.phase == phase]


def alive_bytes(stream):
    """Bytes that have begun and not ended."""
    return sum(stream.allocations[e].bytes if e >= 0 else -stream.allocations[~e].bytes for e in stream.events)


def test_views_are_no_new_memory():
    with recording() as run:
        x = torch.empty(4, 8)
        views = [x.view(8, 4), x[1:], x.t(), x.detach()]
        assert made(run.stream, "forward") == [("empty", "", 4 * 8 * 4)]
        del x
        assert run.stream.events[-1] >= 0
        views.clear()
        assert run.stream.events[-1] < 0


def test_weights_are_there_before_the_first_step_and_once_each():
    with recording() as run:
        assert [a.kind for a in run.stream.allocations] == ["weight"] * 4
        assert {a.phase for a in run.stream.allocations} == {"load"}
        assert alive_bytes(run.stream) == 4 * 8 * 32 * 4


def test_the_backward_pass_is_told_by_module():
    with recording() as run:
        run.network(torch.empty(4, 8)).sum().backward()
        modules = {module for name, module, _ in made(run.stream, "backward") if name == "mm"}
        assert modules == {"layers.0.up", "layers.0.down", "layers.1.up", "layers.1.down"}


@pytest.mark.parametrize("network", [Network, lambda: Network(checkpoints=True)])
def test_what_the_backward_pass_needs_is_saved(network):
    with recording(network) as run:
        run.network(torch.empty(4, 8)).sum().backward()
        saved = [(a.name, a.module, a.phase) for a in run.stream.allocations if a.kind == "saved tensor"]
    forward = [entry for entry in saved if entry[2] == "forward"]
    in_both_layers = {("sin", "layers.0", "forward"), ("sin", "layers.1", "forward")}
    assert in_both_layers <= set(forward) if not run.network._checkpoints else not in_both_layers & set(forward)


def test_a_recomputed_layer_belongs_to_the_backward_pass_and_to_itself():
    with recording(lambda: Network(checkpoints=True)) as run:
        run.network(torch.empty(4, 8)).sum().backward()
    again = [(name, module) for name, module, _ in made(run.stream, "backward") if name == "sin"]
    assert again == [("sin", "layers.1"), ("sin", "layers.0")]


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("operator", "select"),
    [
        ("scatter_add", lambda x, rows: x.gather(0, rows)),
        ("index_put", lambda x, rows: x[rows[:, 0]]),
        ("scatter", lambda x, rows: x.max(0).values),
    ],
)
def test_gradients_of_what_was_selected_are_written_in_place_too(operator, select, in_place):
    with recording(in_place=in_place) as run:
        x = torch.empty(4, 8, requires_grad=True)
        select(x, torch.empty(4, 8, dtype=torch.int64)).sum().backward()
    names = [allocation.name for allocation in run.stream.allocations if allocation.phase == "backward"]
    # Torch 2.11 calls it `zeros` where the largest values were selected.
    assert {"zeros", "new_zeros"}.intersection(names)
    assert (operator in names) == (not in_place)


@pytest.mark.parametrize(("in_place", "sums"), [(True, 0), (False, 1)])
def test_two_gradients_are_added_in_place_as_where_no_mode_looks_on(in_place, sums):
    with recording(in_place=in_place) as run:
        x = torch.empty(4, 8, requires_grad=True)
        y = x * 2.0
        (y * 3.0 + y * 4.0).sum().backward()
        assert [name for name, _, _ in made(run.stream, "backward")].count("add") == sums


def test_questions_about_values_are_answered_as_in_a_long_batch():
    with recording(all_true=True) as run:
        assert bool(torch.empty(4, dtype=torch.bool).all())
    with recording(all_true=False):
        assert not bool(torch.empty(4, dtype=torch.bool).all())
    assert run.stream.allocations


def test_each_thread_asks_for_one_workspace():
    with recording(workspace_bytes=1 << 20) as run:
        for _ in range(2):
            run.network(torch.empty(4, 8)).sum().backward()
    assert [(a.phase, a.bytes) for a in run.stream.allocations if a.kind == "workspace"] == [
        ("forward", 1 << 20),
        ("backward", 1 << 20),
    ]


def test_a_loss_over_all_layers_goes_from_layer_to_layer():
    class Routed(Network):
        """Keeps the output of each layer for a loss over them."""

        def forward(self, x, loss):
            outputs = [x := layer(x) for layer in self.layers]
            return x.sum() + loss(outputs)

    with recording(Routed) as run:
        loss = run.path.balancing(lambda outputs: sum(torch.tanh(output).sum() for output in outputs))
        run.network(torch.empty(4, 8), loss).backward()
    owners = zip(run.stream.allocations, run.recorder.allocation_layers, strict=True)
    assert [layer for a, layer in owners if a.name == "tanh"] == ["layers.0", "layers.1"]
    owners = zip(run.stream.allocations, run.recorder.allocation_layers, strict=True)
    assert [layer for a, layer in owners if a.name == "tanh_backward"] == ["layers.1", "layers.0"]


def test_a_step_has_every_kind_of_tensor():
    stream = trace(llama(3), QLORA, workspace_bytes=8 << 20)
    kinds = {a.kind for a in stream.allocations}
    assert kinds == {
        *("weight", "quantized weight", "adapter", "buffer", "batch", "workspace"),
        *("gradient", "optimizer state", "saved tensor", "temporary"),
    }
    packed = sum(a.bytes for a in stream.allocations if a.kind == "quantized weight" and a.name.endswith(".weight"))
    # Half a byte a weight: q and o, k and v, gate, up and down.
    assert packed == 3 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256) // 2


@pytest.mark.parametrize("step", [LORA, FULL], ids=["lora", "full"])
def test_what_learns_has_a_gradient_and_two_states_of_its_size(step):
    stream = trace(llama(3), step)
    learns = "weight" if step.adapter is None else "adapter"
    sizes = {a.name: a.bytes for a in stream.allocations if a.kind == learns}
    gradients = {a.name: a.bytes for a in stream.allocations if a.kind == "gradient"}
    states = {a.name: a.bytes for a in stream.allocations if a.kind == "optimizer state"}
    assert gradients == sizes
    assert states == {f"{name} step": 4 for name in sizes} | {
        f"{name} {key}": size for name, size in sizes.items() for key in ("exp_avg", "exp_avg_sq")
    }
