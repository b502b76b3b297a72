"""torch.compile and CUDA graphs behind one wrapper.

A graph replays what was recorded, so the call must look as it did then: the same shapes, types and
devices, and the same numbers that are no tensors. Each look is recorded once; when there are too
many, the call runs as written, and the log names what changed.
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
"""Where in the arguments something is, and how it looks: shape, type and device, or its value."""


class Graph(Protocol):
    """A call that was captured."""

    def replay(self) -> None:
        """Run it again on the memory it was captured with."""
        ...


@dataclass
class _Recording:
    """A captured graph, and the memory it reads from and writes to."""

    graph: Graph
    inputs: list[Tensor]
    output: Any

    def replay(self, inputs: list[Tensor]) -> Any:
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return _mapped(self.output, torch.clone)  # the next replay writes over it


class CompiledFunction:
    """A function of tensors, compiled, recorded, both or neither.

    Args:
        call: takes and gives tensors, dataclasses, lists and tuples of them, and plain values. It
            must not change its arguments.
        compiled: through torch.compile, once per look.
        recorded: as a CUDA graph, once per look; arguments must be on a CUDA device.
        name: for messages.
        max_looks: how many looks are kept.
        strict: raise where otherwise the call would run as written.

    Attributes:
        device: the type of the devices that `capture` works on. A subclass for others changes both.
    """

    device = "cuda"

    def __init__(
        self,
        call: Callable[..., Any],
        *,
        compiled: bool = False,
        recorded: bool = False,
        name: str = "",
        max_looks: int = MAX_SIGNATURES,
        strict: bool = False,
    ) -> None:
        self.name = name or getattr(call, "__qualname__", repr(call))
        self.compiled, self.recorded = compiled, recorded
        self._plain, self._strict, self._max_looks = call, strict, max_looks
        self._call = torch.compile(call, dynamic=False) if compiled else call
        self._parameters = inspect.signature(call)
        self._looks: dict[tuple[tuple[str, str], ...], _Recording | None] = {}
        self._latest: Signature = {}

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run the function on these arguments.

        Raises:
            EngineError: `strict`, and one more look than `max_looks` came.
            DependencyError: torch.compile finds no C++ compiler.
        """
        if not (self.compiled or self.recorded):
            return self._plain(*args, **named)
        look = self.look(*args, **named)
        key = tuple(look.items())
        if key not in self._looks:
            if len(self._looks) >= self._max_looks:
                return self._run_as_written(look, args, named)
            self._looks[key] = self._record(args, named) if self.recorded else None
        self._latest = look
        recording = self._looks[key]
        if recording is None:
            return self._run(args, named)
        return recording.replay(list(_tensors((args, named))))

    def look(self, *args: Any, **named: Any) -> Signature:
        """Give how a call's arguments look."""
        bound = self._parameters.bind(*args, **named)
        return {
            place: text for name, v in bound.arguments.items() for place, text in _looks(name, v)
        }

    def capture(self, call: Callable[[], Any]) -> tuple[Graph, Any]:
        """Record a call, once its libraries have chosen their kernels.

        Returns:
            What replays it, and its output, which each replay writes anew.
        """
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
        return graph, output

    def _run(self, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        try:
            return self._call(*args, **named)
        except Exception as error:
            # Its class lives in a private room that is loaded on the first compilation only.
            if "CxxCompiler" not in f"{type(error)} {error}":
                raise
            raise DependencyError(
                f"{self.name} cannot be compiled: no C++ compiler was found. Install g++, or load "
                "the model without compilation."
            ) from error

    def _run_as_written(self, look: Signature, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        changed = "; ".join(describe_changes(self._latest, look))
        message = (
            f"{self.name} cannot be replayed: {changed}. {self._max_looks} looks are kept already; "
            "keep batch sizes and steps to a few"
        )
        if self._strict:
            raise EngineError(message)
        _log.warning(message)
        self._latest = look
        return self._plain(*args, **named)

    def _record(self, args: tuple[Any, ...], named: dict[str, Any]) -> _Recording | None:
        """Capture the call, or give None where it cannot be: then it runs without a graph."""
        if any(tensor.device.type != self.device for tensor in _tensors((args, named))):
            self._refuse(f"its arguments are not on a {self.device.upper()} device")
            return None
        args, named = _mapped((args, named), torch.clone)
        try:
            graph, output = self.capture(lambda: self._run(args, named))
        except RuntimeError as error:
            self._refuse(f"the capture failed: {error}")
            return None
        return _Recording(graph, list(_tensors((args, named))), output)

    def _refuse(self, reason: str) -> None:
        if self._strict:
            raise EngineError(f"{self.name} cannot be recorded: {reason}")
        _log.warning("%s runs without a graph: %s", self.name, reason)


def describe_changes(old: Signature, new: Signature) -> list[str]:
    """Name what differs between two looks: `x: (1, 4) float32 cpu -> (2, 4) float32 cpu`."""
    places = list(old) + [place for place in new if place not in old]
    return [
        f"{place}: {old.get(place, 'absent')} -> {new.get(place, 'absent')}"
        for place in places
        if old.get(place) != new.get(place)
    ]


def _looks(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        yield place, f"{tuple(value.shape)} {kind} {value.device}"
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _looks(f"{place}.{field.name}", getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _looks(f"{place}[{index}]", part)
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
    """Give the same structure with each tensor changed."""
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
