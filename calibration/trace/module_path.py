"""Which module of a network is at work, in the forward pass and, through autograd's nodes, in the backward pass."""

import bisect
import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

BALANCE = "load_balancing_loss"
"""Path of Transformers' loss over the routers of all layers, which is a function and no module."""


class ModulePath:
    """While active, knows the path of the innermost module at work, and its layer.

    Every autograd node has a sequence number, given in the order of the forward pass; noting the number at each change
    of module tells in the backward pass where a node was made. `layer` is the path of a decoder or encoder layer; it
    lasts until the next layer begins, so that what happens between two layers belongs to the first. `networks` are the
    models of a step by what their paths begin with.
    """

    def __init__(self, networks: Mapping[str, nn.Module], layers: list[str]) -> None:
        self._paths: dict[int, str] = {}
        self._parameters: dict[int, str] = {}
        for prefix, network in networks.items():
            self._paths |= {id(module): prefix + path for path, module in network.named_modules()}
            self._parameters |= {id(p): prefix + name.rpartition(".")[0] for name, p in network.named_parameters()}
        pattern = "|".join(sorted(map(re.escape, layers), key=len, reverse=True))
        self._layer_pattern = re.compile(rf"(?:{pattern})(?=\.|$)") if layers else None
        self._layers: dict[str, str | None] = {}
        self._stack: list[str] = []
        self._layer: str | None = None
        self._numbers: list[int] = []
        self._places: list[tuple[str, str | None]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def in_forward(self) -> bool:
        """Whether a module's forward method runs, as it also does when a checkpoint repeats it."""
        return bool(self._stack)

    def here(self) -> tuple[str, str | None]:
        """Path of the module at work and of its layer."""
        if self._stack or torch._C._current_graph_task_id() == -1:
            return (self._stack[-1] if self._stack else ""), self._layer
        node = torch._C._current_autograd_node()
        if node is None:
            return "", self._layer
        path, self._layer = self._place_of(node)
        return path, self._layer

    @property
    def in_balance(self) -> bool:
        """Whether the loss over all routers is computed."""
        return bool(self._stack) and self._stack[-1] == BALANCE

    def balancing(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """`function`, a loss over the routers of all layers, as if it were a module."""

        def balance(*args: Any, **options: Any) -> torch.Tensor:  # noqa: ANN401 - as the function takes them
            self._stack.append(BALANCE)
            self._note()
            try:
                return function(*args, **options)
            finally:
                self._stack.pop()
                self._note()

        return balance

    def go_to(self, layer: str, with_node: bool) -> None:
        """Note that a loss over all layers has come to `layer`, with an operator whose node may be numbered already."""
        if layer != self._layer:
            self._layer = layer
            self._note(torch.autograd._get_sequence_nr() - with_node)

    def layer_of(self, path: str) -> str | None:
        """The layer that a module or a parameter is in."""
        if path not in self._layers:
            match = self._layer_pattern.search(path) if self._layer_pattern else None
            self._layers[path] = path[: match.end()] if match else None
        return self._layers[path]

    def _place_of(self, node: Any) -> tuple[str, str | None]:  # noqa: ANN401 - autograd's nodes have no public type
        variable = getattr(node, "variable", None)
        if variable is not None:
            path = self._parameters.get(id(variable), "")
            return path, self.layer_of(path) or self._layer
        at = bisect.bisect_right(self._numbers, node._sequence_nr()) - 1
        return self._places[at] if at >= 0 else ("", None)

    def _enter(self, module: nn.Module, _: object) -> None:
        path = self._paths.get(id(module))
        if path is None:
            return
        self._stack.append(path)
        self._layer = self.layer_of(path) or self._layer
        self._note()

    def _leave(self, module: nn.Module, *_: object) -> None:
        if id(module) in self._paths and self._stack:
            self._stack.pop()
            self._note()

    def _note(self, number: int | None = None) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr() if number is None else number)
        self._places.append((self._stack[-1] if self._stack else "", self._layer))

    def restart(self) -> None:
        """Forget the layer, at the beginning of a forward pass."""
        self._layer = None
