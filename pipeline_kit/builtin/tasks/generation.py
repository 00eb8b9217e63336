"""Generated ids to text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, final

import torch

from pipeline_kit.builtin.config_json import task_params, translation_pairs
from pipeline_kit.builtin.tasks.common.merge import Outputs, Windows
from pipeline_kit.builtin.tasks.common.panels import ROWS, cell, notes, table_panel
from pipeline_kit.builtin.tasks.options import GeneratedTextConfig
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.fields import read_fields, text_of
from pipeline_kit.contract.stages import Cell, Panel, Postprocessor, Seen, StageContext, TextWriter, Tokenizer
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ConfigError, ExampleError, Fault, InputError, StageError, closest_match, for_message
from pipeline_kit.evaluate.numbers import share

IDS, LENGTHS = "sequences", "sequence_lengths"


@final
class GeneratedText(Postprocessor):
    """Returns ``text``: what the model wrote, without special tokens, cut before the first stop string.

    A text to carry on is in the field ``text``; a conversation, written by the checkpoint's template, in
    ``messages``. With ``full_text`` the prompt stands before what was written, whole even where the model saw only
    its end; of a conversation that is its written form.

    With ``details`` there are also ``tokens``, how many were written before the end token, and ``finish_reason``:
    ``length`` if the text (of several windows, one of them) ended because no more may be written, else ``stop``.

    An encoder-decoder takes a ``text``, before which ``prefix`` is put. The texts it writes to the windows of a
    long one are joined by a space.
    """

    def __init__(self, config: GeneratedTextConfig, context: StageContext) -> None:
        """Settle the prefix.

        :raises ConfigError: for ``full_text`` where the model does not carry texts on, or languages that the
            checkpoint does not have.
        """
        assert context.tokenizer is not None, "a postprocessor is built after the tokenizer"
        self._tokenizer = context.tokenizer
        self._causal = context.head == "causal-lm"
        if config.full_text and not self._causal:
            problem = "an encoder-decoder does not carry its text on, so there is no full text."
            raise ConfigError([Fault("postprocessor.full_text", problem, hint="it is for task=text-generation")])
        self._full, self._details = config.full_text, config.details
        if config.prefix is None:
            _check_languages(context)
            named = task_params(context).get("prefix", context.checkpoint.config.get("prefix"))
            self._prefix = named if isinstance(named, str) else ""
        else:
            self._prefix = config.prefix
        model: object = context.model
        self._stops = tuple(model.stop_strings) if isinstance(model, TextWriter) else ()

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return the text with its prefix, or the conversation as written; raise ExampleError for a wrong field."""
        if not self._causal:
            return (self._prefix + text_of(read_fields(example, ("text",))["text"], "text", empty=False),)
        found = text_or_messages(example)
        return (self._prefix + found if isinstance(found, str) else self._tokenizer.render_chat(found),)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``sequences [B, N]`` and ``sequence_lengths [B]``; raise StageError without them."""
        kept: dict[str, torch.Tensor] = {}
        for name, dims in ((IDS, 2), (LENGTHS, 1)):
            tensor = output.tensors.get(name)
            if tensor is None or tensor.ndim != dims or tensor.is_floating_point():
                found = "nothing" if tensor is None else f"the shape {list(tensor.shape)}"
                raise StageError(
                    f"the postprocessor needs '{name}', ids in {dims} dimension(s); the model returned {found}. "
                    "Use model=generate, or a model that writes"
                )
            kept[name] = tensor
        return ModelOutput(kept)

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
        """Decode; raise ExampleError if a text to be carried on was split into windows."""
        results: list[Result] = []
        for example, windows, rows in zip(examples, encodings, outputs, strict=True):
            if self._causal and len(windows) > 1:
                raise ExampleError(
                    f"the text was split into {len(windows)} windows; only one end can be carried on. Set "
                    "tokenizer.overflow to truncate or error"
                )
            text = " ".join(self._written(encoding, row) for encoding, row in zip(windows, rows, strict=True))
            result: Result = {"text": self._prompt(example) + text if self._full else text}
            if self._details:
                unfinished = any(self._unfinished(encoding, row) for encoding, row in zip(windows, rows, strict=True))
                result["tokens"] = sum(int(row[LENGTHS]) for row in rows)
                result["finish_reason"] = "length" if unfinished else "stop"
            results.append(result)
        return results

    def panels(self, seen: Seen) -> Sequence[Panel]:
        ids = [row[IDS][: int(row[LENGTHS])].tolist() for row in seen.outputs]
        texts = [self._written(encoding, row) for encoding, row in zip(seen.encodings, seen.outputs, strict=True)]
        front = self._prompt(seen.example) if self._full else None
        return generation_panels(self._tokenizer, self._causal, self._stops, seen.encodings, ids, texts, front)

    def read(self, example: Example, encoding: Encoding, ids: Iterator[int]) -> Iterator[str]:
        if self._full:
            yield self._prompt(example)
        prompt = encoding.input_ids if self._causal else ()
        yield from until_stop(pieces(prompt, ids, self._tokenizer.decode), self._stops)

    def _written(self, encoding: Encoding, row: RowOutput) -> str:
        return before_stop(self._decoded(encoding, row), self._stops)

    def _decoded(self, encoding: Encoding, row: RowOutput) -> str:
        ids: list[Any] = row[IDS][: int(row[LENGTHS])].tolist()
        if not self._causal:
            return self._tokenizer.decode(ids)
        # Decoded together, since a decoder may drop the space before the first word of what it is given.
        prompt = self._tokenizer.decode(encoding.input_ids)
        return self._tokenizer.decode([*encoding.input_ids, *ids])[len(prompt) :]

    def _unfinished(self, encoding: Encoding, row: RowOutput) -> bool:
        """Return whether a row has as many ids as it may have, and no stop string ended it at the last one."""
        if int(row[LENGTHS]) < len(row[IDS]):
            return False
        text = self._decoded(encoding, row)
        return not any(stop in text for stop in self._stops)

    def _prompt(self, example: Example) -> str:
        part = self.prepare(example)[0]
        return str(part if isinstance(part, str) else part["text"])


def _check_languages(context: StageContext) -> None:
    """Raise ConfigError for missing, unknown or idle languages where a checkpoint goes by prefixes, or by none."""
    assert context.tokenizer is not None
    if context.tokenizer.languages:
        return  # tokens of the tokenizer, which has checked them
    asked = (context.src_lang, context.tgt_lang)
    pairs = translation_pairs(context) if context.task == "translation" else []
    name = for_message(context.checkpoint.name)
    if not pairs and asked != (None, None):
        key = "task.src_lang" if asked[0] is not None else "task.tgt_lang"
        hint = "leave it out; where the languages are words of the text, use postprocessor.prefix"
        raise ConfigError([Fault(key, f"'{name}' has no languages to choose from.", hint=hint)])
    if not pairs or asked in pairs or (asked == (None, None) and len(pairs) == 1):
        return
    shown = tuple(f"{source} to {target}" for source, target in pairs)
    near = closest_match(f"{asked[0]} to {asked[1]}", shown)
    problem = f"'{name}' translates {len(pairs)} pairs of languages, not {asked[0]} to {asked[1]}."
    hint = f"for example: task.src_lang={pairs[0][0]} task.tgt_lang={pairs[0][1]}; for others set postprocessor.prefix"
    raise ConfigError([Fault("task.src_lang and task.tgt_lang", problem, shown, near, hint)])


def text_or_messages(example: Example) -> str | list[Mapping[str, Any]]:
    """Return the field ``text``, or the list in ``messages``; raise ExampleError if both are there or none."""
    items = () if isinstance(example, str) or not hasattr(example, "keys") else example.items()
    found = {key: value for key, value in items if key not in ("text", "messages") or value not in (None, "")}
    if "messages" not in found:
        return text_of(read_fields(example, ("text",), ("messages",))["text"], "text", empty=False)
    if "text" in found:
        raise ExampleError("an example has either a 'text' or 'messages', not both")
    read_fields(found, ("messages",), ("text",))
    return messages_of(found["messages"])


def messages_of(value: object) -> list[Mapping[str, Any]]:
    """Return a conversation's messages, perhaps JSON in a cell; raise ExampleError for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ExampleError(
                f"the field 'messages' is not a JSON list of messages: {for_message(str(error))}"
            ) from error
    if not isinstance(value, Sequence):
        raise ExampleError(
            f"the field 'messages' is {type(value).__name__}, not a list of messages: {for_message(value)}"
        )
    if not value:
        raise ExampleError("the field 'messages' is empty; it needs at least one message")
    return [_message(item, f"messages[{place}]") for place, item in enumerate(value)]


def _message(item: object, where: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        example = '{"role": "user", "content": "Hello"}'
        raise ExampleError(f"{where} is {type(item).__name__}, not a message such as {example}: {for_message(item)}")
    for name in ("role", "content"):
        if name not in item:
            near = closest_match(name, [str(key) for key in item])
            hint = f". Is '{for_message(near)}' meant to be it?" if near else ""
            raise ExampleError(
                f"{where} lacks '{name}'; it has: {for_message(', '.join(map(str, item)) or 'nothing')}{hint}"
            )
        text_of(item[name], f"{where}.{name}", empty=name == "content")
    return item


Decode = Callable[[Sequence[int]], str]

_HALF = "\ufffd"  # what a decoder gives for the bytes of half a character


def pieces(prompt: Sequence[int], ids: Iterable[int], decode: Decode) -> Iterator[str]:
    """Decode `ids` one by one; joined, the pieces are the text that stands behind that of `prompt`.

    A token's text may depend on the one before it (a space, half a character), so each is decoded together with
    those since the last piece but one; the cost of a token does not grow with the text.
    """
    waiting = list(prompt)
    shown = len(waiting)  # how many of `waiting` are in the text that was given or in the prompt
    for token in ids:
        waiting.append(token)
        text = decode(waiting)
        before = decode(waiting[:shown])
        if len(text) > len(before) and not text.endswith(_HALF):
            yield text[len(before) :]
            waiting = waiting[shown:]
            shown = len(waiting)
    rest = decode(waiting)[len(decode(waiting[:shown])) :]
    if rest:
        yield rest


def until_stop(parts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass text on up to the first of `stops`; what may be the beginning of one waits for more."""
    held = ""
    for part in parts:
        held += part
        cut = before_stop(held, stops)
        if len(cut) < len(held):
            if cut:
                yield cut
            return
        keep = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        ready, held = held[: len(held) - keep], held[len(held) - keep :]
        if ready:
            yield ready
    if held:
        yield held


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return what stands before the first of `stops`, all of `text` if none is in it."""
    places = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(places)] if places else text


_WINDOWS = 10  # that are written out


def generation_panels(
    tokenizer: Tokenizer,
    causal: bool,
    stops: Sequence[str],
    encodings: Sequence[Encoding],
    ids: Sequence[Sequence[int]],
    texts: Sequence[str],
    front: str | None,
) -> list[Panel]:
    """Show each id with the text it adds, and how the result's text was put together.

    :param causal: whether the ids carry on those of the text.
    :param ids: what the model wrote to each window; `texts` is what became of it.
    :param front: the prompt, where it stands before what was written.
    """
    rows: list[Sequence[Cell]] = []
    for window, (encoding, own) in enumerate(zip(encodings, ids, strict=True)):
        before = encoding.input_ids if causal else ()
        rows += [(window, *row) for row in _steps(tokenizer, before, own[: ROWS - len(rows)])]
    left = sum(len(own) for own in ids) - len(rows)
    half = f"{_HALF} stands for a part of a character" if any(_HALF in str(row[3]) for row in rows) else ""
    columns, said = ("window", "step", "id", "alone", "adds", "what"), ("end tokens are not counted", half)
    written = table_panel("ids that were written", columns, rows, "id", *said, windows=len(ids), left=left)
    return [written, _joined(causal, stops, ids, texts, front)]


def _steps(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> list[Sequence[Cell]]:
    """Show ids one by one; what one adds is told by decoding it together with those before it."""
    before = list(prompt)
    languages = {id: code for code, id in tokenizer.languages.items()}
    known = tokenizer.decode(before)
    rows: list[Sequence[Cell]] = []
    for step, id in enumerate(ids, 1):
        before.append(id)
        text = tokenizer.decode(before)
        alone = tokenizer.decode([id])
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, text, strict=False)))
        adds = text[kept:]
        role = f"the language {languages[id]}" if id in languages else "" if alone or adds else "special"
        rows.append((step, id, cell(alone), cell(adds), role))
        known = text
    return rows


def _joined(
    causal: bool, stops: Sequence[str], ids: Sequence[Sequence[int]], texts: Sequence[str], front: str | None
) -> Panel:
    lines = []
    for window, (own, text) in enumerate(list(zip(ids, texts, strict=True))[:_WINDOWS]):
        name = f"window {window}: " if len(texts) > 1 else ""
        ways = f"decode(prompt + {len(own)} ids) without decode(prompt)" if causal else f"decode({len(own)} ids)"
        lines += [f"{name}{ways}", f"  = '{for_message(text, 72)}'"]
    if len(texts) > _WINDOWS:
        lines.append(f"… ({len(texts) - _WINDOWS} more)")
    if len(texts) > 1:
        lines.append(f"text = the texts of {len(texts)} windows, joined by a space")
    if front is not None:
        lines.append(f"text = prompt '{for_message(front, 40)}' + what was written")
    shown = ", ".join(f"'{for_message(stop, 20)}'" for stop in stops[:8])
    note = notes("special tokens are left out", f"cut before the first of {shown}" if stops else "")
    return Panel("ids to text", formula="\n".join(lines), note=note)


NOTE = "exact match, white space at the ends and between words apart; no measure of likeness such as BLEU or ROUGE"


@final
class TextEvaluator(Evaluator):
    """``exact_match``: the share of rows whose text is one of the file's, white space apart."""

    def __init__(self, context: EvaluationContext) -> None:
        self._rows, self._right = 0, 0

    def read(self, gold: Any, example: Mapping[str, Any]) -> list[str]:
        texts = gold if isinstance(gold, list) else [gold]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"the label {for_message(repr(gold), 80)} is neither a text nor a list of texts")
        return texts

    def add(self, gold: list[str], results: Sequence[Result]) -> Verdict:
        text = value_of(results[0], "text")
        right = text.split() in [wanted.split() for wanted in gold]
        self._rows += 1
        self._right += right
        return Verdict(right, gold if len(gold) > 1 else gold[0], text)

    def metrics(self) -> Metrics:
        return Metrics(share("exact_match", self._right, self._rows), (NOTE,))
