"""The likeliest tokens for each mask of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch

from pipeline_kit.builtin.tasks.common.merge import Outputs, Windows, tensor_of
from pipeline_kit.builtin.tasks.common.panels import activation_panel, cell, counted, digits, notes
from pipeline_kit.builtin.tasks.fill_mask.tokens import (
    MaskSpan,
    TokenText,
    Writer,
    find_mask,
    find_targets,
    place_of,
    special_tokens,
)
from pipeline_kit.builtin.tasks.options import FillMaskConfig
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.fields import read_fields, text_of
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ExampleError, InputError, StageError, for_message
from pipeline_kit.evaluate.labels import as_list
from pipeline_kit.evaluate.numbers import share

# A mask's place, and the arrays of the window and the row in it that hold its scores.
_Found = tuple[MaskSpan, RowOutput, int]

_MASKS = 10  # that are shown


@final
class FillMask(Postprocessor):
    """Returns ``masks``: for each mask of the text, in order, its likeliest tokens, best first.

    Each token has ``token``, the token's text alone; ``id``; ``score``, its probability among the whole
    vocabulary, with ``targets`` too; and ``text``, the example's text with that mask filled in. Other masks
    stay as they are: the scores of several masks are not those of the tokens together. Of equal scores the
    lower id comes first.

    In a long text split into windows a mask counts in the window that has the most tokens on the mask's
    poorer side, the first of equal ones.
    """

    required_fields: ClassVar[frozenset[str]] = frozenset({"offsets"})
    best_first: ClassVar[frozenset[str]] = frozenset({"masks"})

    def __init__(self, config: FillMaskConfig, context: StageContext) -> None:
        """Find the checkpoint's mask and the ids of the targets.

        :raises CheckpointError: if the checkpoint has no mask.
        :raises ConfigError: if ``mask_token`` or one of the targets is not a token, or several.
        """
        if context.tokenizer is None:
            raise StageError("postprocessor=fill_mask is built after the tokenizer")
        self._tokenizer = context.tokenizer
        specials = special_tokens(context.checkpoint, self._tokenizer)
        self._mask = find_mask(context.checkpoint, self._tokenizer, specials, config.mask_token)
        self._targets = (
            find_targets(config.targets, self._tokenizer, specials, self._mask.checkpoint) if config.targets else None
        )
        self._writer = Writer(self._tokenizer, specials)
        self._top_k = config.top_k

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return the text; raise ExampleError if it is missing, no string, or has no mask of this checkpoint."""
        text = _text(example)
        self._mask.check_in(text)
        return (text,)

    def wanted(self, batch: TokenBatch) -> torch.Tensor:
        """Return where the masks stand: a vocabulary of scores for every other token would be most of the work."""
        return (batch.input_ids == self._mask.id) & (batch.attention_mask != 0)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``scores`` float32 and ``ids`` int64, both ``[B, T, K]``, zero where no mask stands.

        Only the logits at masks are looked at, so nothing but those is brought to float32. With targets the
        scores are those of all targets' tokens, and ids are left out.

        :raises StageError: if a target's id is beyond the model's vocabulary.
        """
        logits = tensor_of(output, "logits", 3, "[B, T, V]")
        at = self.wanted(batch)
        probabilities = torch.softmax(output.at("logits", at).float(), dim=-1)
        if self._targets is None:
            found = dict(zip(("scores", "ids"), best(probabilities, self._top_k), strict=True))
        else:
            wanted = torch.from_numpy(self._targets.ids)
            if int(wanted[-1]) >= logits.shape[-1]:
                raise StageError(f"a target has the id {int(wanted[-1])}, the model returns {logits.shape[-1]} logits")
            found = {"scores": probabilities[:, wanted.to(logits.device)]}
        tensors = {name: values.new_zeros(*at.shape, values.shape[-1]) for name, values in found.items()}
        for name, values in found.items():
            tensors[name][at] = values
        return ModelOutput(tensors, frozenset(tensors))

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
        """List the tokens for each mask.

        :raises ExampleError: if a mask was cut off with a part of the text, or a score is not finite.
        """
        pieces: dict[int, TokenText] = {}
        results: list[Result] = []
        for example, windows, rows in zip(examples, encodings, outputs, strict=True):
            source = _text(example)
            found = self._find(source, windows, rows)
            results.append({"masks": [self._listed(source, mask, pieces) for mask in found]})
        return results

    def panels(self, seen: Seen) -> Sequence[Panel]:
        found = self._find(_text(seen.example), seen.encodings, seen.raw)
        said = [
            "each mask is filled in while the others stay" if len(found) > 1 else "",
            f"only the first {_MASKS} masks are shown" if len(found) > _MASKS else "",
        ]
        targets = ""
        if self._targets is not None:
            count = counted(len(self._targets.ids), "token")
            targets = f"only {count} may be listed (targets); scores are still shares of all tokens"
        panels = []
        for number, (place, row, token) in enumerate(found[:_MASKS], 1):
            listed, logits = seen.result["masks"][number - 1], row["logits"][token]
            ids, names = [int(item["id"]) for item in listed], [cell(item["token"]) for item in listed]
            scores = np.array([item["score"] for item in listed])
            window = next(i for i, given in enumerate(seen.raw) if given is row)
            left = digits(max(0.0, 1 - float(scores.sum())))
            note = notes(
                f"the other {counted(len(logits) - len(ids), 'token')} of the vocabulary have {left} in all",
                targets,
                f"taken from window {window}, where the mask has the most tokens on its poorer side"
                if len(seen.raw) > 1
                else "",
                *said,
            )
            title = f"mask {number} of {len(found)} at {place.begin} to {place.end}: logits to candidates (softmax)"
            shown: Any = {"heading": "token", "noun": "tokens", "among": logits, "extra": (("id", ids),), "note": note}
            panels.append(activation_panel(title, names, logits[ids], scores, "softmax", **shown))
        return panels

    def _find(self, source: str, windows: Sequence[Encoding], rows: Sequence[RowOutput]) -> list[_Found]:
        """Find the masks of a text, in order; raise ExampleError if there are none, or some were cut off."""
        best_seen: dict[int, tuple[int, _Found]] = {}
        spans = [np.asarray(window.offsets, dtype=np.int64).reshape(-1, 2) for window in windows]
        for window, span, row in zip(windows, spans, rows, strict=True):
            last = len(window.input_ids) - 1
            for token in np.flatnonzero(np.asarray(window.input_ids) == self._mask.id).tolist():
                begin, end = span[token].tolist()
                context = min(token, last - token)
                if begin not in best_seen or context > best_seen[begin][0]:
                    place = place_of(source, self._mask.text, begin, end)
                    best_seen[begin] = context, (place, row, token)
        if any(window.truncated or window.truncated_chars for window in windows):
            every = np.concatenate(spans)
            kept = every[every[:, 1] > every[:, 0]]
            begin, end = (int(kept[:, 0].min()), int(kept[:, 1].max())) if len(kept) else (0, 0)
            cut = source.count(self._mask.text, 0, begin) + source.count(self._mask.text, end)
            if cut:
                limit = self._tokenizer.max_length
                raise ExampleError(
                    f"{cut} of the {len(best_seen) + cut} masks are in a part of the text that was cut off"
                    + ("" if limit is None else f", since {limit} tokens fit")
                    + "; split it with tokenizer.overflow=window, or shorten it"
                )
        if not best_seen:
            raise ExampleError(
                f"the tokenizer of '{self._mask.checkpoint}' does not take '{self._mask.text}' in this text for its "
                "mask; set it apart with spaces"
            )
        return [best_seen[begin][1] for begin in sorted(best_seen)]

    def _listed(self, source: str, mask: _Found, pieces: dict[int, TokenText]) -> list[dict[str, Any]]:
        place, row, token = mask
        scores = row["scores"][token]
        if not np.isfinite(scores).all():
            raise ExampleError("the model's 'logits' at a mask of this example are not all finite numbers")
        if self._targets is None:
            ids = row["ids"][token]
        else:
            columns = self._targets.columns[self._writer.setting(source, place)]
            columns = columns[np.argsort(-scores[columns], kind="stable")[: self._top_k]]
            scores, ids = scores[columns], self._targets.ids[columns]
        listed = []
        for score, id in zip(scores.tolist(), ids.tolist(), strict=True):
            if id not in pieces:
                pieces[id] = self._writer.piece(id)
            piece = pieces[id]
            text = self._writer.fill(source, place, piece)
            listed.append({"token": piece.token, "id": id, "score": score, "text": text})
        return listed


def best(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `count` largest of each row of `values`, ``[N, n]``, and their places; of equal ones the first.

    ``topk`` leaves open which of equal values it returns, and in which order.
    """
    count = min(count, values.shape[-1])
    top, places = values.topk(count, dim=-1)
    tied = (values >= top[:, -1:]).sum(dim=-1) > count
    if bool(tied.any()):
        ordered, order = values[tied].sort(dim=-1, descending=True, stable=True)
        top[tied], places[tied] = ordered[:, :count], order[:, :count]
    places, order = places.sort(dim=-1)
    top, order = top.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return top, places.gather(-1, order)


def _text(example: Example) -> str:
    return text_of(read_fields(example, ("text",))["text"], "text")


@final
class MaskEvaluator(Evaluator):
    """``accuracy``: the share of masks whose likeliest token is the file's, white space at its ends apart;
    ``listed``: the share of masks in whose list it is, which ``postprocessor.top_k`` makes longer.
    """

    def __init__(self, context: EvaluationContext) -> None:
        self._masks, self._right, self._listed = 0, 0, 0

    def read(self, gold: Any, example: Mapping[str, Any]) -> list[str]:
        values = as_list(gold)
        values = [gold] if values is None else values
        if not values or not all(isinstance(value, str) and value.strip() for value in values):
            raise InputError(
                f"the label {for_message(repr(gold), 80)} is neither a token nor a list of them, one a mask"
            )
        return [value.strip() for value in values]

    def add(self, gold: list[str], results: Sequence[Result]) -> Verdict:
        masks = value_of(results[0], "masks")
        if len(masks) != len(gold):
            raise InputError(f"the text has {len(masks)} masks, and the label {len(gold)} tokens for them")
        found = [[item["token"].strip() for item in mask] for mask in masks]
        hits = [tokens[:1] == [wanted] for tokens, wanted in zip(found, gold, strict=True)]
        self._masks += len(gold)
        self._right += sum(hits)
        self._listed += sum(wanted in tokens for tokens, wanted in zip(found, gold, strict=True))
        best = [tokens[0] if tokens else None for tokens in found]
        score = masks[0][0]["score"] if len(masks) == 1 and masks[0] else None
        one = len(gold) == 1
        return Verdict(all(hits), gold[0] if one else gold, best[0] if one else best, score)

    def metrics(self) -> Metrics:
        values = share("accuracy", self._right, self._masks) | share("listed", self._listed, self._masks)
        return Metrics(values | {"masks": self._masks})
