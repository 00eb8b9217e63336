"""The likeliest tokens for each mask of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import tensor_of
from pipeline_kit.builtin.tasks.common.panels import activation_panel, cell, counted, panel_number
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
from pipeline_kit.contract.fields import read_fields, text_of
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ExampleError, StageError

# A mask's place, and the arrays of the window and the row in it that hold its scores.
_Found = tuple[MaskSpan, RowOutput, int]


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
        """Return the text.

        :raises ExampleError: if it is missing, no string, or has no mask of this checkpoint.
        """
        text = _text(example)
        self._mask.check_in(text)
        return (text,)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``scores`` float32 and ``ids`` int64, both ``[B, T, K]``, zero where no mask stands.

        Only the logits at masks are looked at, so nothing but those is brought to float32. With targets the
        scores are those of all targets' tokens, and ids are left out.

        :raises StageError: if a target's id is beyond the model's vocabulary.
        """
        logits = tensor_of(output, "logits", 3, "[B, T, V]")
        at = (batch.input_ids == self._mask.id) & (batch.attention_mask != 0)
        probabilities = torch.softmax(logits[at].float(), dim=-1)
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

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
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
        """Show the candidates of each mask, and their share of the vocabulary."""
        found = self._find(_text(seen.example), seen.encodings, seen.raw)
        windows = [next(i for i, row in enumerate(seen.raw) if row is given) for _, given, _ in found]
        return mask_panels(
            seen.result["masks"],
            [(place.begin, place.end) for place, _, _ in found],
            [row["logits"][token] for _, row, token in found],
            [window if len(seen.raw) > 1 else None for window in windows],
            None if self._targets is None else len(self._targets.ids),
        )

    def _find(self, source: str, windows: Sequence[Encoding], rows: Sequence[RowOutput]) -> list[_Found]:
        """Find the masks of a text, in order.

        :raises ExampleError: if there are none, or some were cut off.
        """
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
            self._check_cut(source, np.concatenate(spans), len(best_seen))
        if not best_seen:
            raise ExampleError(
                f"the tokenizer of '{self._mask.checkpoint}' does not take '{self._mask.text}' in this text for its "
                "mask; set it apart with spaces"
            )
        return [best_seen[begin][1] for begin in sorted(best_seen)]

    def _check_cut(self, source: str, spans: NDArray[np.int64], found: int) -> None:
        """Raise ExampleError if there are masks in what was cut off at either end of the text."""
        kept = spans[spans[:, 1] > spans[:, 0]]
        begin, end = (int(kept[:, 0].min()), int(kept[:, 1].max())) if len(kept) else (0, 0)
        cut = source.count(self._mask.text, 0, begin) + source.count(self._mask.text, end)
        if cut:
            limit = self._tokenizer.max_length
            raise ExampleError(
                f"{cut} of the {found + cut} masks are in a part of the text that was cut off"
                + ("" if limit is None else f", since {limit} tokens fit")
                + "; split it with tokenizer.overflow=window, or shorten it"
            )

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

    :returns: two tensors ``[N, min(count, n)]``.
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


_MASKS = 10  # that are shown


def mask_panels(
    masks: Sequence[Sequence[dict[str, Any]]],
    places: Sequence[tuple[int, int]],
    logits: Sequence[NDArray[Any]],
    windows: Sequence[int | None],
    targets: int | None,
) -> list[Panel]:
    """Show the candidates of each mask.

    :param masks: what the result lists.
    :param places: where each mask stands in the text, in characters.
    :param logits: for each mask those of the whole vocabulary, ``[V]``.
    :param windows: the window that each mask counts in, None where the text is whole.
    :param targets: how many tokens compete by the user's choice, None for all.
    """
    panels: list[Panel] = []
    for number_of, (listed, (begin, end), values, window) in enumerate(
        list(zip(masks, places, logits, windows, strict=True))[:_MASKS], 1
    ):
        title = f"mask {number_of} of {len(masks)} at {begin} to {end}: logits to candidates (softmax)"
        ids = [int(item["id"]) for item in listed]
        scores = np.array([item["score"] for item in listed])
        note = _note(len(values), scores, window, targets, len(masks))
        panels.append(
            activation_panel(
                title,
                [cell(item["token"]) for item in listed],
                values[ids],
                scores,
                "softmax",
                heading="token",
                among=values,
                noun="tokens",
                extra=(("id", ids),),
                note=note,
            )
        )
    return panels


def _note(vocabulary: int, scores: NDArray[Any], window: int | None, targets: int | None, masks: int) -> str:
    rest = vocabulary - len(scores)
    said = [
        f"the other {counted(rest, 'token')} of the vocabulary have "
        f"{panel_number(max(0.0, 1 - float(scores.sum())))} in all"
    ]
    if targets is not None:
        said.append(f"only {counted(targets, 'token')} may be listed (targets); scores are still shares of all tokens")
    if window is not None:
        said.append(f"taken from window {window}, where the mask has the most tokens on its poorer side")
    if masks > 1:
        said.append("each mask is filled in while the others stay")
    if masks > _MASKS:
        said.append(f"only the first {_MASKS} masks are shown")
    return "; ".join(said)
