"""A wrapper that runs a function through torch.compile, CUDA graphs, or both.

A CUDA graph replays recorded kernels, so the arguments must have the signature that they had when
it was recorded: the same shapes, dtypes and devices of tensors, and the same values otherwise. One
graph is recorded per signature; when there are too many, the function runs without a graph, and the
log says what changed.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from letstalk_rt.errors import DependencyError, EngineError

MAX_SIGNATURES = 16
"""Batches of 1 to 16 sessions."""

_WARM_UPS = 3
_log = logging.getLogger(__name__)

Signature = dict[str, str]
"""From the place of an argument to its shape, dtype and device, or to its value."""


class Graph(Protocol):
    """A captured call."""

    def replay(self) -> None:
        """Run it again on the memory that it was captured with."""
        ...


@dataclass
class _Recording:
    """A captured graph with the memory that it reads and writes."""

    graph: Graph
    inputs: list[Tensor]
    output: Any

    def replay(self, inputs: list[Tensor]) -> Any:
        for target, source in zip(self.inputs, inputs, strict=True):
            target.copy_(source)
        self.graph.replay()
        return _mapped(self.output, torch.clone)  # the next replay overwrites it


class CompiledFunction:
    """A function of tensors that is compiled, recorded, both or neither.

    Args:
        call: the function. Its arguments and result are tensors, dataclasses, lists and tuples of
            them, and plain values. It must not modify its arguments.
        compiled: run it through torch.compile, once per signature.
        recorded: record it as a CUDA graph, once per signature; arguments must be on a CUDA device.
        name: name of the function in messages.
        max_signatures: for how many signatures graphs are kept.
        strict: raise instead of running the function without a graph.

    Attributes:
        device: device type that `capture` supports. A subclass for another one overrides both.
    """

    device = "cuda"

    def __init__(
        self,
        call: Callable[..., Any],
        *,
        compiled: bool = False,
        recorded: bool = False,
        name: str = "",
        max_signatures: int = MAX_SIGNATURES,
        strict: bool = False,
    ) -> None:
        self.name = name or getattr(call, "__qualname__", repr(call))
        self.compiled, self.recorded = compiled, recorded
        self._plain, self._strict, self._max_signatures = call, strict, max_signatures
        self._call = torch.compile(call, dynamic=False) if compiled else call
        self._parameters = inspect.signature(call)
        self._recordings: dict[tuple[tuple[str, str], ...], _Recording | None] = {}
        self._latest: Signature = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function.

        Raises:
            EngineError: `strict` is set, and the call cannot be recorded or has one signature more
                than `max_signatures`.
            DependencyError: torch.compile found no C++ compiler.
        """
        if not (self.compiled or self.recorded):
            return self._plain(*args, **kwargs)
        signature = self.signature(*args, **kwargs)
        key = tuple(signature.items())
        if key not in self._recordings:
            if len(self._recordings) >= self._max_signatures:
                return self._run_without_graph(signature, args, kwargs)
            self._recordings[key] = self._record(args, kwargs) if self.recorded else None
        self._latest = signature
        recording = self._recordings[key]
        if recording is None:
            return self._run(args, kwargs)
        return recording.replay(list(_tensors((args, kwargs))))

    def signature(self, *args: Any, **kwargs: Any) -> Signature:
        """Return the signature of a call's arguments."""
        bound = self._parameters.bind(*args, **kwargs)
        return {
            place: text for name, v in bound.arguments.items() for place, text in _describe(name, v)
        }

    def capture(self, call: Callable[[], Any]) -> tuple[Graph, Any]:
        """Record a call, after warm-up runs in which libraries choose their kernels.

        Returns:
            The graph, and its output, which each replay overwrites.
        """
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(_WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
        return graph, output

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self._call(*args, **kwargs)
        except Exception as error:
            # Its class is in a private module that torch loads only on the first compilation.
            if "CxxCompiler" not in f"{type(error)} {error}":
                raise
            raise DependencyError(
                f"{self.name} cannot be compiled: no C++ compiler was found. Install g++, or load "
                "the model without compilation."
            ) from error

    def _run_without_graph(
        self, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        changed = "; ".join(describe_changes(self._latest, signature))
        message = (
            f"{self.name} has a new signature: {changed}. The limit of {self._max_signatures} "
            "recorded signatures is reached; use fewer batch sizes and numbers of steps"
        )
        if self._strict:
            raise EngineError(message)
        _log.warning(message)
        self._latest = signature
        return self._plain(*args, **kwargs)

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Recording | None:
        """Capture the call; return None if that fails, so that it runs without a graph."""
        if any(tensor.device.type != self.device for tensor in _tensors((args, kwargs))):
            self._fall_back(f"its arguments are not on a {self.device.upper()} device")
            return None
        args, kwargs = _mapped((args, kwargs), torch.clone)
        try:
            graph, output = self.capture(lambda: self._run(args, kwargs))
        except RuntimeError as error:
            self._fall_back(f"the capture failed: {error}")
            return None
        return _Recording(graph, list(_tensors((args, kwargs))), output)

    def _fall_back(self, reason: str) -> None:
        if self._strict:
            raise EngineError(f"{self.name} cannot be recorded: {reason}")
        _log.warning("%s runs without a CUDA graph: %s", self.name, reason)


def describe_changes(old: Signature, new: Signature) -> list[str]:
    """Return what differs between two signatures: `x: (1, 4) float32 cpu -> (2, 4) float32 cpu`."""
    places = list(old) + [place for place in new if place not in old]
    return [
        f"{place}: {old.get(place, 'absent')} -> {new.get(place, 'absent')}"
        for place in places
        if old.get(place) != new.get(place)
    ]


def _describe(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        yield place, f"{tuple(value.shape)} {dtype} {value.device}"
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _describe(f"{place}.{field.name}", getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _describe(f"{place}[{index}]", part)
    else:
        yield place, repr(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of the structure with `change` applied to each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _mapped(getattr(value, f.name), change) for f in fields(value)}
        return type(value)(**parts)
    if isinstance(value, dict):
        return {name: _mapped(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, change) for part in value)
    return value
