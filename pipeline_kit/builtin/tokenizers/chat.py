"""Conversations as text, by the checkpoint's chat template, and an end for every template.

A template is a program in Jinja that comes with the checkpoint. transformers runs it in Jinja's
``ImmutableSandboxedEnvironment``, which has no access to Python: https://jinja.palletsprojects.com/en/stable/sandbox/.
The sandbox bounds what a template can reach, not how long it runs or how much memory it takes. Here each pass
of a loop, each call, filter and operator is a step, and so are `CHARACTERS` characters that it reads or writes. What
makes a long text out of a short one is counted before it is done. The count depends on the template and the messages
alone, so a conversation is refused on every machine or on none.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, wraps
from itertools import chain
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils as _transformers

from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.builtin.tokenizers.encode import Rendered
from pipeline_kit.errors import ExampleError, for_message

STEPS = 250_000
"""Far more than templates of chat models need, which is about 50 for a message."""
CHARACTERS = 32
WIDEST = 10_000
"""The largest width, indent or other number that a method of a text or a filter may be given."""
LONGEST = 100_000
"""The most characters of a template."""

_BITS = 20_000
_ITEM = CHARACTERS  # what an item of a list counts, in characters
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\d+|\*)?(?:\.(\d+|\*))?")
_BRACES = re.compile(r"\{[^{}]*(?:\d{5}|\{)")
_SHALLOW = frozenset(("attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map"))
_SHALLOW |= frozenset(("reject", "rejectattr", "reverse", "select", "selectattr", "slice"))
"""Filters that do not look into the items of a list."""
_WIDENING = frozenset(("batch", "expandtabs", "indent", "slice", "tojson", "urlize", "wordwrap", "xmlattr"))
"""What may put its arguments beside each line or item of a value."""
_COMPARING = frozenset(
    ("in", "eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">", "ge", ">=")
)
_SIZED: Any = (list, tuple, dict, set, frozenset, range, type({}.keys()), type({}.values()), type({}.items()))


def render(loaded: Any, checkpoint: str, messages: Sequence[Mapping[str, Any]]) -> Rendered:
    """Write `messages` by the template of `loaded`, one of transformers' tokenizers.

    The answer is to follow: a template that has a prompt for it writes it. Where the last message is already the
    assistant's it is carried on instead, as in transformers.

    :raises ExampleError: if there is no template, it does not take these messages, or it does not come to an end.
    """
    if not getattr(loaded, "chat_template", None):
        raise ExampleError(
            f"the checkpoint '{for_message(checkpoint)}' has no chat template, so it was not trained on conversations; "
            "pass the field 'text' instead of 'messages'"
        )
    begun = messages[-1].get("role") == "assistant"
    try:
        with quiet(), limited(messages):
            text = loaded.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=not begun,
                continue_final_message=begun,
            )
    except LimitError as error:
        raise ExampleError(f"the chat template of '{for_message(checkpoint)}' was ended: {error}") from error
    except Exception as error:  # whatever a template does wrong, it does so with these messages
        raise ExampleError(
            f"the chat template of '{for_message(checkpoint)}' does not take these messages: "
            f"{type(error).__name__}: {for_message(str(error), 300)}"
        ) from error
    if not isinstance(text, str):
        raise ExampleError(
            f"the chat template of '{for_message(checkpoint)}' returned {type(text).__name__}, not a text"
        )
    return Rendered(text)


class LimitError(Exception):
    """A template went over a limit."""


class _Left(threading.local):
    steps = float("inf")
    limit = float("inf")


_left = _Left()
_COMPILING = threading.Lock()


@contextmanager
def limited(messages: Sequence[Any]) -> Iterator[None]:
    """Let transformers write conversations in the body by templates that are counted; else raise LimitError.

    Together they may take `STEPS`, and as many more as it takes to read `messages` some 30 times.
    """
    with _COMPILING:
        theirs, _transformers._compile_jinja_template = _transformers._compile_jinja_template, compiled
        _left.steps = _left.limit = STEPS + CHARACTERS * _size(messages)
        try:
            yield
        finally:
            _left.steps = _left.limit = float("inf")
            _transformers._compile_jinja_template = theirs


@lru_cache(maxsize=16)
def compiled(source: str) -> Template:
    """Compile a chat template as transformers does, with its steps counted; raise LimitError if it is too long."""
    if len(source) > LONGEST:
        raise LimitError(f"it has {len(source):,} characters, {LONGEST:,} are allowed")
    compile = _transformers._cached_compile_jinja_template
    theirs: Any = getattr(compile, "__wrapped__", compile)("").environment  # not one from a cache, since it is changed
    theirs.__class__ = _Counting
    theirs.optimized = False  # the optimizer would run parts of the template at once
    theirs.globals.pop("lipsum", None)
    theirs.filters = {name: _counted(name, call, name not in _SHALLOW) for name, call in theirs.filters.items()}
    theirs.tests.update({name: _counted(name, call, True) for name, call in theirs.tests.items() if name in _COMPARING})
    theirs.finalize = _weigh
    found: Template = theirs.from_string(source)
    return found


class _Counting(ImmutableSandboxedEnvironment):
    """The sandbox, with each step counted."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in [tree, *tree.find_all(nodes.Node)]:
            for body in [getattr(node, field, None) for field in ("body", "else_")]:
                if isinstance(body, list) and (body or isinstance(node, nodes.For)):
                    body.insert(0, nodes.ExprStmt(_call("step", nodes.Const(_cost(body)))))
        for loop in tree.find_all(nodes.For):
            if loop.test is not None:
                loop.test = nodes.And(_call("step", nodes.Const(1)), loop.test)
        _Weighing().visit(tree)
        return tree

    def step(self, steps: float) -> bool:
        """Count steps of a body."""
        _spend(steps)
        return True

    def weigh(self, value: Any) -> Any:
        """Count a value that is made or compared; return it."""
        return _weigh(value)

    def touch(self, value: Any) -> Any:
        """Count a value of which a part is copied; return it."""
        return _weigh(value, deep=False)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls."""
        function = getattr(obj, "__wrapped__", obj)
        owner = getattr(function, "__self__", None)
        if owner is self:
            return obj(*args)
        if isinstance(obj, Macro):
            _spend(1)  # its arguments are handed on, not read
        else:
            given = [list(arg) if isinstance(arg, Iterator) else arg for arg in args]
            plain = isinstance(owner, str | bytes | int | float)
            _spend_on(function.__name__ if plain else "", owner, [*given, *kwargs.values()])
            args = tuple(given)
        return _weigh(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Count an operator's values, and what it will make of them."""
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _BITS:
                raise LimitError(f"a number of {bits:,} bits, {_BITS:,} are allowed")
        elif operator == "*":
            times, value = (left, right) if isinstance(left, int) else (right, left)
            _spend(_size(value) * max(times, 0) if isinstance(times, int) else 1)
        elif operator == "%" and isinstance(left, str | bytes):
            _spend_on("format", left, [right])
        return super().call_binop(context, operator, _weigh(left), _weigh(right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Count a key that has to be hashed."""
        return super().getitem(obj, _weigh(argument) if isinstance(argument, tuple) else argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Leave out the one method of a text whose result cannot be foreseen."""
        return attr != "translate" and super().is_safe_attribute(obj, attr, value)


class _Weighing(NodeTransformer):
    """Weighs what expressions build, compare and cut, which no method of an environment sees."""

    def _built(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _call("weigh", node)

    visit_List = visit_Tuple = visit_Dict = _built

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [_call("weigh", item) for item in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _call("weigh", node.expr)
        for operand in node.ops:
            operand.expr = _call("weigh", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _call("touch", node.node)
        return node


def _call(name: str, argument: nodes.Expr) -> nodes.Expr:
    return nodes.Call(nodes.EnvironmentAttribute(name), [argument], [], None, None)


def _cost(body: Sequence[nodes.Node]) -> float:
    """Count the nodes and the characters of a body without the bodies in it, which are counted when they run."""
    found, waiting = 1.0, list(body)
    while waiting:
        node = waiting.pop()
        found += 1 / 4 + (len(node.data) / CHARACTERS if isinstance(node, nodes.TemplateData) else 0)
        waiting.extend(node.iter_child_nodes(exclude=("body", "else_")))
    return found


def _counted(name: str, function: Callable[..., Any], deep: bool) -> Callable[..., Any]:
    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        place = 1 if hasattr(function, "jinja_pass_arg") else 0
        value, given = args[place], [*args[place + 1 :], *kwargs.values()]
        if isinstance(value, Iterator) and deep:
            value = list(value)
        _spend_on("" if name in ("d", "default") else name, value, given, deep)
        found = function(*args[:place], value, *args[place + 1 :], **kwargs)
        return _passes(found) if isinstance(found, Iterator) else _weigh(found, deep=False)

    return counted


def _passes(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        _spend(1)
        yield item


def _spend_on(name: str, value: Any, given: Sequence[Any], deep: bool = True) -> None:
    """Count what a filter or method reads and makes; `name` is of one that widens texts by its arguments, else ""."""
    read, more = _size(value, deep), sum(map(_size, given))
    _spend(1 + read + more)
    if not name:
        return
    widest = max((abs(item) for item in given if isinstance(item, int)), default=0)
    if widest > WIDEST:
        raise LimitError(f"{name} with the number {widest:,}, {WIDEST:,} is allowed")
    if name in _WIDENING:
        _spend(read * (8 + widest + more * CHARACTERS))
    elif name == "join" and given:
        parts, between = (given[0], value) if isinstance(value, str | bytes) and len(given) == 1 else (value, given[0])
        _spend(_size(between) * (len(parts) if hasattr(parts, "__len__") else 1))
        _spend(_size(parts))
    elif name == "replace" and len(given) > 1 and isinstance(value, str) and isinstance(given[0], str):
        _spend(_size(given[1]) * value.count(given[0]))
    elif name == "sum" and any(isinstance(item, str | bytes | list | tuple) for item in given):
        raise LimitError("sum of texts or lists; join them")
    elif name in ("format", "format_map"):
        text = str(value)
        widths = [width for match in _PERCENT.finditer(text) for width in match.groups() if width]
        if "*" in widths or any(int(width) > WIDEST for width in widths if len(width) > 4) or _BRACES.search(text):
            raise LimitError(f"a width in a format, {WIDEST:,} is allowed")
        _spend((text.count("%") + text.count("{")) * more + sum(int(width) for width in widths) / CHARACTERS)


def _weigh(value: Any, *, deep: bool = True) -> Any:
    _spend(1 / 8 + _size(value, deep))
    return value


def _size(value: Any, deep: bool = True) -> float:
    """Return the size of a value in steps; no more than are left."""
    if isinstance(value, str | bytes):
        return len(value) / CHARACTERS
    if isinstance(value, int):
        return value.bit_length() / 8 / CHARACTERS
    if not isinstance(value, _SIZED):
        return 0
    size, waiting = 0.0, [value]
    while waiting and size <= _left.steps:
        item = waiting.pop()
        size += len(item) / CHARACTERS if isinstance(item, str | bytes) else 0
        if isinstance(item, _SIZED):
            size += _ITEM * len(item) / CHARACTERS
            if deep and not isinstance(item, range):
                waiting.extend(chain(item, item.values()) if isinstance(item, dict) else item)
    return size


def _spend(steps: float) -> None:
    _left.steps -= steps
    if _left.steps < 0:
        raise LimitError(f"it took more than {_left.limit:,.0f} steps")
