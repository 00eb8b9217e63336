"""The operators of a network's pass as one flat list, for batches of a size that comes again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from operator import getitem, itemgetter
from typing import Any, final
from weakref import WeakValueDictionary

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline_kit.builtin.models.hf.batches import are_close
from pipeline_kit.contract.types import ModelOutput, TokenBatch

Run = Callable[[TokenBatch], ModelOutput]

_MOST_SIZES = 1024  # before all are let go of; each takes a few kB
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@final
class RecordedNetwork:
    """Runs a network without a walk through its modules, which takes Python longer than a short text takes kernels.

    A batch is recorded while it runs: which operators came, on which tensors. Batches of that width then repeat these
    operators. One row is a size of its own, recorded when it first comes. Several rows are recorded twice from the
    second batch on, to see which of the sizes among the arguments are multiples of the rows.

    What a network does by the width of its input is the same then. Where it reads a number out of a tensor, the
    repetition compares the number; if it is another one, the network runs as it is. Once it reads a tensor in a way
    that cannot be seen, it is not recorded any more. The first repetition of each program is compared with the
    network's answers all the same.
    """

    def __init__(self, run: Run, noise: float) -> None:
        """Record nothing yet.

        :param run: the network's pass; it is called under ``torch.inference_mode``.
        :param noise: how far a repeated answer may be from the network's own, as a share of the largest number.
        """
        self._run, self._noise = run, noise
        self._recordable = True
        self._passes: dict[Hashable, _Pass] = {}
        self._programs: WeakValueDictionary[Hashable, _Program] = WeakValueDictionary()

    def __call__(self, batch: TokenBatch) -> ModelOutput:
        """Return the network's answers to `batch`."""
        if not self._recordable:
            return self._run(batch)
        rows, width = batch.input_ids.shape
        size = rows == 1, width, batch.has_padding, batch.side, batch.token_type_ids is None
        known = self._passes.get(size)
        if known is None:
            if len(self._passes) >= _MOST_SIZES:
                self._passes.clear()
            known = self._passes[size] = _NEW
            if rows > 1:  # of a large batch the walk is a small part, so that a width has to come again
                return self._run(batch)
        if known.program.refused:
            return self._run(batch)
        numbers = known.numbers_for(rows)
        if numbers is None:
            recorder = _Recorder(batch)
            output = recorder.record(self._run, batch)
            found = recorder.finish(output, rows, self._programs)
            self._recordable = found is not None  # what is in the way is the network's, whatever the width
            self._passes[size] = _REFUSED if found is None else known.widened(found)
            return output
        try:
            answers = known.program.run([getattr(batch, name) for name in _INPUTS], numbers)
        except _OtherNumber:
            return self._run(batch)
        output = ModelOutput(dict(zip(known.names, answers, strict=True)), known.per_token)
        if not known.program.proven:
            expected = self._run(batch)
            known.program.proven = are_close(output, expected, batch, self._noise)
            known.program.refused = not known.program.proven
            return expected
        return output


class _OtherNumber(Exception):
    """A number that Python has read out of a tensor is not the recorded one."""


@dataclass(eq=False)
class _Program:
    """The operators of a pass, which passes of several sizes share. Each value has a place in one list.

    The list holds the inputs, the whole numbers, what else the operators take (weights, say), and their results.

    :param objects: what operators take besides numbers and results.
    :param steps: an operator, what picks its arguments out of the list, the places that nothing reads afterwards.
        The result of each step stands behind that of the one before.
    :param answers: the places of the answers.
    :ivar refused: whether the network itself has to run instead.
    :ivar proven: whether a repetition was compared with the network.
    """

    objects: Sequence[Any] = ()
    steps: Sequence[tuple[Callable[..., Any], Callable[[list[Any]], Sequence[Any]], Sequence[int]]] = ()
    answers: Sequence[int] = ()
    refused: bool = False
    proven: bool = False

    def run(self, inputs: Sequence[Any], numbers: Sequence[int]) -> Sequence[torch.Tensor]:
        """Run the steps; raise _OtherNumber where the network might have done something else."""
        values = [*inputs, *numbers, *self.objects]
        for operator, arguments, done in self.steps:
            values.append(operator(*arguments(values)))
            for place in done:
                values[place] = None
        return [values[place] for place in self.answers]


@dataclass(frozen=True)
class _Pass:
    """What was recorded for one size.

    :param numbers: the whole numbers among the operators' arguments, in a batch of `rows`.
    :param multiples: which of them are multiples of the rows; None: not known yet.
    :param names: of the answers.
    """

    program: _Program
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
        if not self.rows or other.program is not self.program:
            return _REFUSED if self.rows else other
        multiples = []
        for one, two in zip(self.numbers, other.numbers, strict=True):
            if one != two and (one % self.rows or two * self.rows != one * other.rows):
                return _REFUSED
            multiples.append(one != two)
        return replace(self, multiples=tuple(multiples))


_NEW = _Pass(_Program())
_REFUSED = _Pass(_Program(refused=True))
_HIDDEN_READS = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr)


class _HiddenReads(TorchFunctionMode):
    """Notice what reads a tensor's numbers without an operator."""

    found = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= function in _HIDDEN_READS
        return function(*args, **(kwargs or {}))


_Place = tuple[str, int]
"""What kind of value, and which one of its kind: an input, a number, an object, the result of a step."""


class _Recorder(TorchDispatchMode):
    """Writes down the operators that run, and where each of their arguments comes from.

    Whole numbers are kept apart, so that passes of several sizes are the same program.
    """

    def __init__(self, batch: TokenBatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places: Any = WeakTensorKeyDictionary()
        given = enumerate(getattr(batch, name) for name in _INPUTS)
        self._places.update({tensor: ("input", place) for place, tensor in given if tensor is not None})
        self._steps: list[tuple[Any, tuple[str, ...], tuple[_Place, ...]]] = []  # an operator, names, arguments
        self._numbers: list[int] = []
        self._objects: dict[Hashable, tuple[int, Any]] = {}
        self._refused = False

    def record(self, run: Run, batch: TokenBatch) -> ModelOutput:
        """Run a batch and note what runs."""
        with _HiddenReads() as reads, self:
            output = run(batch)
        self._refused |= reads.found
        return output

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operator(*args, **(kwargs or {}))
        try:
            self._note(operator, args, kwargs or {}, result)
        except TypeError:  # an argument that cannot be compared with those of another recording
            self._refused = True
        return result

    def _note(self, operator: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        if operator is torch.ops.aten.dropout.default and not args[2] and args[0] in self._places:
            self._places[result] = self._places[args[0]]
            return
        for number, argument in enumerate(operator._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            self._refused |= written and value not in self._places  # a state of the network, which would change
        place = self._step(operator, [self._place(value) for value in (*args, *kwargs.values())], tuple(kwargs))
        if isinstance(result, torch.Tensor):
            self._places[result] = place
        elif isinstance(result, tuple | list):
            parts = [(number, part) for number, part in enumerate(result) if part is not None]
            for number, part in parts:
                self._places[part] = self._step(getitem, [place, self._object(number)])
        elif result is not None:
            self._step(_same, [place, self._object(result)])

    def _step(self, operator: Any, arguments: Sequence[_Place], names: tuple[str, ...] = ()) -> _Place:
        self._steps.append((operator, names, tuple(arguments)))
        return "result", len(self._steps) - 1

    def _place(self, value: Any) -> _Place:
        if isinstance(value, torch.Tensor) and value in self._places:
            place: _Place = self._places[value]
            return place
        if isinstance(value, list | tuple):
            return self._step(_listed, [self._place(item) for item in value])
        if type(value) is int:
            self._numbers.append(value)
            return "number", len(self._numbers) - 1
        return self._object(value)

    def _object(self, value: Any) -> _Place:
        key = id(value) if isinstance(value, torch.Tensor) else (type(value), value)
        return "object", self._objects.setdefault(key, (len(self._objects), value))[0]

    def finish(self, output: ModelOutput, rows: int, programs: MutableMapping[Hashable, _Program]) -> _Pass | None:
        """Return the pass, with the program among `programs` if it is the same; None if it cannot be repeated."""
        answers = [self._places.get(value) for value in output.tensors.values()]
        if self._refused or None in answers:
            return None
        key = tuple(self._steps), tuple(self._objects), tuple(answers)
        program = programs.get(key)
        if program is None:
            program = programs[key] = self._program(answers)
        return _Pass(program, rows, tuple(self._numbers), None, tuple(output.tensors), output.per_token)

    def _program(self, answers: Sequence[_Place]) -> _Program:
        """Put all places into one list; a result is dropped after the last step that reads it."""
        objects = [value for _, value in self._objects.values()]
        starts = {"input": 0, "number": len(_INPUTS)}
        starts["object"] = starts["number"] + len(self._numbers)
        starts["result"] = starts["object"] + len(objects)
        needed = set(answers)
        steps = []
        for number, (operator, names, arguments) in reversed(list(enumerate(self._steps))):
            done = {place for place in (*arguments, ("result", number)) if place[0] == "result"} - needed
            needed |= done
            places = [starts[kind] + place for kind, place in arguments]
            steps.append((_named(operator, names), _picker(places), [starts[kind] + place for kind, place in done]))
        return _Program(objects, steps[::-1], [starts[kind] + place for kind, place in answers])


def _listed(*items: Any) -> list[Any]:
    return list(items)


def _same(found: Any, recorded: Any) -> None:
    if found != recorded:
        raise _OtherNumber


def _named(operator: Any, names: Sequence[str]) -> Callable[..., Any]:
    """Return `operator`, called with its last arguments by their names."""
    if not names:
        found: Callable[..., Any] = operator
        return found
    return lambda *args: operator(*args[: -len(names)], **dict(zip(names, args[-len(names) :], strict=True)))


def _picker(places: Sequence[int]) -> Callable[[list[Any]], Sequence[Any]]:
    """Return what picks the values at `places` out of a list."""
    if len(places) > 1:
        return itemgetter(*places)
    return (lambda values: (values[places[0]],)) if places else (lambda values: ())
