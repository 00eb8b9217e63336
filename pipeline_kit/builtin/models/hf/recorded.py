"""The operators of a network's pass as one flat function, for batches of a size that comes again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final
from weakref import WeakValueDictionary

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline_kit.builtin.models.hf.batches import is_close
from pipeline_kit.contract.types import ModelOutput, TokenBatch

Run = Callable[[TokenBatch], ModelOutput]

_MOST_SIZES = 1024  # before all are let go of; each takes a few kB
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@final
class RecordedNetwork:
    """Runs a network without a walk through its modules, which takes Python longer than a short text takes kernels.

    The second batch of a width is recorded while it runs: which operators came, on which tensors. Batches of that
    width then repeat these operators; one row is a size of its own, and several rows are recorded once more, to see
    which of the sizes among the arguments are multiples of the rows.

    What a network does by the width of its input is the same then. Where it reads a number out of a tensor, the
    repetition compares the number; if it is another one, the network runs as it is. A pass that reads a tensor in a
    way that cannot be seen is not recorded. The first repetition of each function is compared with the network's
    answers all the same.
    """

    def __init__(self, run: Run, noise: float) -> None:
        """Record nothing yet.

        :param run: the network's pass; it is called under ``torch.inference_mode``.
        :param noise: how far a repeated answer may be from the network's own, as a share of the largest number.
        """
        self._run, self._noise = run, noise
        self._passes: dict[Hashable, _Pass] = {}
        self._functions: WeakValueDictionary[Hashable, _Function] = WeakValueDictionary()

    def __call__(self, batch: TokenBatch) -> ModelOutput:
        """Return the network's answers to `batch`."""
        rows, width = batch.input_ids.shape
        size = rows == 1, width, batch.has_padding, batch.side, batch.token_type_ids is None
        known = self._passes.get(size)
        if known is None:
            if len(self._passes) >= _MOST_SIZES:
                self._passes.clear()
            self._passes[size] = _SEEN
            return self._run(batch)
        if known.function.refused:
            return self._run(batch)
        numbers = known.numbers_for(rows)
        if numbers is None:
            recorder = _Recorder(batch)
            output = recorder.record(self._run, batch)
            self._passes[size] = known.widened(recorder.finish(output, rows, self._functions))
            return output
        try:
            found = known.function.code(numbers, *(getattr(batch, name) for name in _INPUTS))
        except _OtherNumber:
            return self._run(batch)
        output = ModelOutput(dict(zip(known.names, found, strict=True)), known.per_token)
        if not known.function.proven:
            expected = self._run(batch)
            known.function.proven = _equal(output, expected, batch, self._noise)
            known.function.refused = not known.function.proven
            return expected
        return output


class _OtherNumber(Exception):
    """A number that Python has read out of a tensor is not the recorded one."""


@dataclass
class _Function:
    """The code of a pass, which passes of several sizes share.

    :ivar refused: whether the network itself has to run instead.
    :ivar proven: whether a repetition was compared with the network.
    """

    code: Callable[..., Sequence[torch.Tensor]]
    refused: bool = False
    proven: bool = False


@dataclass(frozen=True)
class _Pass:
    """What was recorded for one size.

    :param numbers: the whole numbers among the operators' arguments, in a batch of `rows`.
    :param multiples: which of them are multiples of the rows; None: not known yet.
    :param names: of the answers.
    """

    function: _Function
    rows: int = 0
    numbers: tuple[int, ...] = ()
    multiples: tuple[bool, ...] | None = None
    names: tuple[str, ...] = ()
    per_token: frozenset[str] = frozenset()

    def numbers_for(self, rows: int) -> Sequence[int] | None:
        """Return the whole numbers for a batch of `rows`, None if a recording has to show them."""
        if rows == self.rows or self.multiples is None:
            return self.numbers if rows == self.rows else None
        pairs = zip(self.numbers, self.multiples, strict=True)
        return [number // self.rows * rows if multiple else number for number, multiple in pairs]

    def widened(self, other: _Pass) -> _Pass:
        """Return what this pass and one of another number of rows show together."""
        if not self.rows or other.function is not self.function:
            return _REFUSED if self.rows else other
        multiples = []
        for one, two in zip(self.numbers, other.numbers, strict=True):
            if one != two and (one % self.rows or two * self.rows != one * other.rows):
                return _REFUSED
            multiples.append(one != two)
        return replace(self, multiples=tuple(multiples))


_SEEN = _Pass(_Function(lambda *_: ()))
_REFUSED = _Pass(_Function(lambda *_: (), refused=True))
_HIDDEN_READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr)


class _HiddenReads(TorchFunctionMode):
    """Notice what reads a tensor's numbers without an operator."""

    found = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= function in _HIDDEN_READS
        return function(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Writes a line of code for each operator that runs.

    The code names tensors, operators and other values by their places; whole numbers are arguments, so that passes
    of several sizes are the same code.
    """

    def __init__(self, batch: TokenBatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names: Any = WeakTensorKeyDictionary()
        self._names.update({getattr(batch, name): name for name in _INPUTS if getattr(batch, name) is not None})
        self._lines: list[tuple[str, str, set[str]]] = []  # what it makes, the code, what it reads
        self._uses: set[str] = set()
        self._numbers: list[int] = []
        self._objects: list[Any] = []
        self._places: dict[Hashable, int] = {}
        self._refused = False

    def record(self, run: Run, batch: TokenBatch) -> ModelOutput:
        """Run a batch and note what runs."""
        with _HiddenReads() as reads, self:
            output = run(batch)
        self._refused |= reads.found
        return output

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        if not self._refused:
            self._note(operator, args, kwargs or {}, result)
        return result

    def _note(self, operator: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        if operator is torch.ops.aten.dropout.default and not args[2] and args[0] in self._names:
            self._names[result] = self._names[args[0]]
            return
        for place, argument in enumerate(operator._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            self._refused |= written and value not in self._names  # a state of the network, which would change
        self._uses = set()
        given = [self._expression(value) for value in args]
        given += [f"{name}={self._expression(value)}" for name, value in kwargs.items()]
        call = f"{self._object(operator)}({', '.join(given)})"
        if isinstance(result, torch.Tensor):
            self._names[result] = self._line(call)
        elif isinstance(result, tuple | list):
            name = self._line(call)
            self._names.update({part: f"{name}[{place}]" for place, part in enumerate(result) if part is not None})
        elif result is not None:
            value = self._object(result)
            self._lines.append(("", f"if {call} != {value}: raise {self._object(_OtherNumber)}", self._uses))

    def _line(self, call: str) -> str:
        name = f"x{len(self._lines)}"
        self._lines.append((name, f"{name} = {call}", self._uses))
        return name

    def _expression(self, value: Any) -> str:
        if isinstance(value, torch.Tensor) and value in self._names:
            name: str = self._names[value]
            self._uses.add(name.partition("[")[0])
            return name
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._expression, value))}]"
        if type(value) is int:
            self._numbers.append(value)
            return f"n[{len(self._numbers) - 1}]"
        return repr(value) if value is None or isinstance(value, bool) else self._object(value)

    def _object(self, value: Any) -> str:
        key = id(value) if isinstance(value, torch.Tensor) else (type(value), value)
        if key not in self._places:
            self._places[key] = len(self._objects)
            self._objects.append(value)
        return f"o{self._places[key]}"

    def finish(self, output: ModelOutput, rows: int, functions: MutableMapping[Hashable, _Function]) -> _Pass:
        """Make the lines a function, or find the one there is among `functions`."""
        answers = [self._names.get(value, "") for value in output.tensors.values()]
        if self._refused or "" in answers:
            return _REFUSED
        source = self._source(answers)
        key = source, tuple(self._places)
        function = functions.get(key)
        if function is None:
            space = {f"o{place}": value for place, value in enumerate(self._objects)}
            exec(source, space)  # noqa: S102  made of places alone: nothing of a checkpoint or a text is in it
            function = functions[key] = _Function(space["run"])
        return _Pass(function, rows, tuple(self._numbers), None, tuple(output.tensors), output.per_token)

    def _source(self, answers: Sequence[str]) -> str:
        """Write the function; it lets go of each tensor after the last line that reads it."""
        needed = {answer.partition("[")[0] for answer in answers}
        lines = [f"    return {', '.join(answers)},"]
        for name, line, uses in reversed(self._lines):
            done = {*uses, name} - needed - {""}
            lines += [f"    del {', '.join(sorted(done))}"] if done else []
            lines.append(f"    {line}")
            needed = (needed | uses) - {name}
        return "\n".join([f"def run(n, {', '.join(_INPUTS)}):", *reversed(lines)])


def _equal(found: ModelOutput, expected: ModelOutput, batch: TokenBatch, noise: float) -> bool:
    tokens = batch.attention_mask.bool()  # what a network returns at padding is nobody's
    return all(
        is_close(found[name][tokens], value[tokens], noise)
        if name in expected.per_token
        else is_close(found[name], value, noise)
        for name, value in expected.tensors.items()
    )
