"""Generated ids to text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch

from pipeline_kit.builtin.config_json import task_params, translation_pairs
from pipeline_kit.builtin.tasks.generation.panels import generation_panels
from pipeline_kit.builtin.tasks.options import GeneratedTextConfig
from pipeline_kit.contract.fields import read_fields, text_of
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen, StageContext, TextWriter
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ConfigError, ExampleError, Fault, StageError, closest_match, for_message

IDS, LENGTHS = "sequences", "sequence_lengths"


@final
class GeneratedText(Postprocessor):
    """Returns ``text``: what the model wrote, without special tokens, cut before the first stop string.

    A text to carry on is in the field ``text``; a conversation, written by the checkpoint's template, in
    ``messages``. With ``full_text`` the prompt stands before what was written, whole even where the model saw only
    its end; of a conversation that is its written form.

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
        self._full = config.full_text
        if config.prefix is None:
            _check_languages(context)
            named = task_params(context).get("prefix", context.checkpoint.config.get("prefix"))
            self._prefix = named if isinstance(named, str) else ""
        else:
            self._prefix = config.prefix
        model: object = context.model
        self._stops = tuple(model.stop_strings) if isinstance(model, TextWriter) else ()

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return the text with its prefix, or the conversation as the tokenizer writes it.

        :raises ExampleError: naming the field that is missing, blank or of the wrong type.
        """
        if not self._causal:
            return (self._prefix + text_of(read_fields(example, ("text",))["text"], "text", empty=False),)
        found = text_or_messages(example)
        return (self._prefix + found if isinstance(found, str) else self._tokenizer.render_chat(found),)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``sequences [B, N]`` and ``sequence_lengths [B]``, and drop the rest.

        :raises StageError: if the model returned no such tensors.
        """
        del batch
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

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Decode.

        :raises ExampleError: if a text to be carried on was split into windows.
        """
        results: list[Result] = []
        for example, windows, rows in zip(examples, encodings, outputs, strict=True):
            if self._causal and len(windows) > 1:
                raise ExampleError(
                    f"the text was split into {len(windows)} windows; only one end can be carried on. Set "
                    "tokenizer.overflow to truncate or error"
                )
            text = " ".join(self._written(encoding, row) for encoding, row in zip(windows, rows, strict=True))
            results.append({"text": self._prompt(example) + text if self._full else text})
        return results

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show the ids that were written, and the text they make."""
        ids = [row[IDS][: int(row[LENGTHS])].tolist() for row in seen.outputs]
        texts = [self._written(encoding, row) for encoding, row in zip(seen.encodings, seen.outputs, strict=True)]
        front = self._prompt(seen.example) if self._full else None
        return generation_panels(self._tokenizer, self._causal, self._stops, seen.encodings, ids, texts, front)

    def read(self, example: Example, encoding: Encoding, ids: Iterator[int]) -> Iterator[str]:
        """Yield the text in pieces, see :class:`~pipeline_kit.contract.stages.TextReader`."""
        if self._full:
            yield self._prompt(example)
        prompt = encoding.input_ids if self._causal else ()
        yield from until_stop(pieces(prompt, ids, self._tokenizer.decode), self._stops)

    def _written(self, encoding: Encoding, row: RowOutput) -> str:
        ids: list[Any] = row[IDS][: int(row[LENGTHS])].tolist()
        if not self._causal:
            return before_stop(self._tokenizer.decode(ids), self._stops)
        # Decoded together, since a decoder may drop the space before the first word of what it is given.
        prompt = self._tokenizer.decode(encoding.input_ids)
        return before_stop(self._tokenizer.decode([*encoding.input_ids, *ids])[len(prompt) :], self._stops)

    def _prompt(self, example: Example) -> str:
        part = self.prepare(example)[0]
        return str(part if isinstance(part, str) else part["text"])


def _check_languages(context: StageContext) -> None:
    """Check the languages of a checkpoint that goes by prefixes, or by none.

    :raises ConfigError: if the task's languages are missing, unknown or without effect.
    """
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
    """Return the field ``text``, or the list in the field ``messages``.

    :raises ExampleError: if both are there or none, or one is not what it has to be.
    """
    if isinstance(example, str) or not hasattr(example, "keys"):
        return text_of(read_fields(example, ("text",))["text"], "text", empty=False)
    found = {key: value for key, value in example.items() if key not in ("text", "messages") or value not in (None, "")}
    if "messages" not in found:
        return text_of(read_fields(example, ("text",), ("messages",))["text"], "text", empty=False)
    if "text" in found:
        raise ExampleError("an example has either a 'text' or 'messages', not both")
    read_fields(found, ("messages",), ("text",))
    return messages_of(found["messages"])


def messages_of(value: object) -> list[Mapping[str, Any]]:
    """Return the messages of a conversation; a string may hold them as JSON, as in a CSV cell.

    :raises ExampleError: if it is not a list of mappings with a ``role`` and a ``content``, both strings.
    """
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
