"""The tokenizer and the model ``sklearn``: terms of a vocabulary, and a classifier on their counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from scipy.sparse import csr_matrix

from pipeline_kit import (
    Encoding,
    Example,
    ExampleError,
    Model,
    ModelOutput,
    StageContext,
    TokenBatch,
    Tokenizer,
    text_and_pair,
)
from pipeline_kit.kit import ConfigError, Fault, Panel, Side

from . import SklearnModelConfig, SklearnTokenizerConfig
from .files import read_classifier, settings_of

NOTHING = "[NOTHING]"
"""The token of a text without any term of the vocabulary; no text may be empty. It is padding too."""
HEAD = "sequence-classification"

_Span = tuple[int, int]


@final
class SklearnTokenizer(Tokenizer):
    """The terms of the vectorizer's vocabulary that a text holds, in the order in which the vectorizer makes them.

    Terms that are not in the vocabulary are left out, as the vectorizer does. Offsets and word ids are those of word
    terms; the terms of the analyzers ``char`` and ``char_wb`` have the offsets ``(0, 0)``.
    """

    def __init__(self, config: SklearnTokenizerConfig, context: StageContext) -> None:
        """Read the vectorizer.

        :raises CheckpointError: if the folder holds none that can be used.
        """
        self._vectorizer = read_classifier(context.checkpoint).vectorizer
        self._vocabulary: dict[str, int] = self._vectorizer.vocabulary_
        self._terms = sorted(self._vocabulary, key=self._vocabulary.__getitem__)
        self._analyze = self._vectorizer.build_analyzer()
        self._max_length, self._fields = config.max_length, context.required_fields

    @property
    def pad_token_id(self) -> int:
        """The id after the last term's."""
        return len(self._terms)

    @property
    def padding_side(self) -> Side:
        """Right; the side does not matter."""
        return "right"

    @property
    def max_length(self) -> int | None:
        """As configured."""
        return self._max_length

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        """Return one encoding for each of `examples`.

        :raises ExampleError: for a pair of texts, which a vectorizer does not know.
        """
        return [self._encode(place, example, bool(self._fields)) for place, example in enumerate(examples)]

    def encode_fully(self, examples: Sequence[Example]) -> list[Encoding]:
        """Encode with all fields filled, for ``pipeline-kit explain``."""
        return [self._encode(place, example, True) for place, example in enumerate(examples)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the terms, spaces between them."""
        return " ".join(self._terms[i] for i in ids if i < len(self._terms))

    def _encode(self, place: int, example: Example, full: bool) -> Encoding:
        text, pair = text_and_pair(example)
        if pair is not None:
            raise ExampleError("tokenizer=sklearn takes one text, not a pair: leave out 'text_pair'")
        terms = self._analyze(text)
        known = [number for number, term in enumerate(terms) if term in self._vocabulary]
        kept = known[: self._max_length]
        found: dict[str, Any] = {"input_ids": [self._vocabulary[terms[i]] for i in kept] or [self.pad_token_id]}
        if full:
            words = self._words(text, len(terms))
            found["tokens"] = [terms[i] for i in kept] or [NOTHING]
            found["offsets"] = [(0, 0) if words is None else words[i][0] for i in kept] or [(0, 0)]
            found["word_ids"] = [None if words is None else words[i][1] for i in kept] or [None]
            found["special_tokens_mask"] = [0] * len(kept) or [1]
            found["sequence_ids"] = [0] * len(kept) or [None]
        return Encoding(**found, example=place, truncated=len(known) - len(kept))

    def _words(self, text: str, count: int) -> list[tuple[_Span, int]] | None:
        """Return for each of the analyzer's `count` terms its place in the text and its first word; None if unknown."""
        vectorizer = self._vectorizer
        if vectorizer.analyzer != "word":
            return None
        prepare = vectorizer.build_preprocessor()
        clean, stops = prepare(text), vectorizer.get_stop_words() or ()
        starts = list(range(len(text) + 1))
        if len(clean) != len(text):  # an accent that is stripped, a letter that is two in lower case
            parts = [len(prepare(letter)) for letter in text]
            starts = [i for i, size in enumerate(parts) for _ in range(size)] + [len(text)]
        if len(starts) != len(clean) + 1:
            return None
        group = min(1, re.compile(vectorizer.token_pattern).groups)
        matches = re.finditer(vectorizer.token_pattern, clean)
        words = [match.span(group) for match in matches if match[group] not in stops]
        spans = [(starts[begin], starts[end - 1] + 1 if end > begin else starts[begin]) for begin, end in words]
        low, high = vectorizer.ngram_range
        found = [
            ((spans[i][0], spans[i + size - 1][1]), i)
            for size in range(low, high + 1)
            for i in range(len(spans) - size + 1)
        ]
        return found if len(found) == count else None


@final
class SklearnModel(Model):
    """A classifier of scikit-learn on the counts of terms; runs on the CPU, whatever the device.

    ``logits [B, L]`` are the logarithms of ``predict_proba``, float32, so that their softmax is ``predict_proba``.
    """

    checkpoint_format = staticmethod(settings_of)
    deterministic = True

    def __init__(self, config: SklearnModelConfig, context: StageContext) -> None:
        """Read the classifier.

        :raises CheckpointError: if the folder holds none that can be used.
        :raises ConfigError: for another tokenizer, or another head than that of text classification.
        """
        del config
        faults = []
        if not isinstance(context.tokenizer, SklearnTokenizer):
            problem = "'sklearn' counts the terms of its own vocabulary, not the ids of another tokenizer."
            faults.append(Fault("model", problem, hint="add tokenizer=sklearn"))
        if context.head != HEAD:
            problem = f"'sklearn' classifies texts; it has no {context.head} head."
            faults.append(Fault("model", problem, hint="use task=text-classification"))
        if faults:
            raise ConfigError(faults)
        self._found = read_classifier(context.checkpoint)

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """Both: padding is not counted."""
        return frozenset({"left", "right"})

    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Return ``logits [B, L]``, float32 on the batch's device."""
        chances = self._found.classifier.predict_proba(self._features(batch))
        logits = np.log(np.maximum(chances, np.finfo(np.float32).tiny)).astype(np.float32)
        return ModelOutput({"logits": torch.from_numpy(logits).to(batch.input_ids.device)})

    def panels(self, batch: TokenBatch, output: ModelOutput) -> Sequence[Panel]:
        """Show the terms of the first row with what each adds to its label, for a classifier with weights."""
        found, weights = self._found, getattr(self._found.classifier, "coef_", None)
        row = self._features(batch)[0].tocoo()
        if weights is None or weights.shape[1] != row.shape[1] or row.shape[1] != found.size:
            return ()
        best = int(output["logits"][0].argmax())
        weight = weights[best] if len(weights) > 1 else weights[0] * (1 if best else -1)
        terms = found.vectorizer.get_feature_names_out()
        adds = sorted(
            (
                (terms[i], float(value), float(weight[i]), float(value * weight[i]))
                for i, value in zip(row.col, row.data, strict=True)
            ),
            key=lambda item: -abs(item[3]),
        )
        title = f"what each term adds to {found.labels[best]}"
        return (Panel(title, ("term", "value", "weight", "value * weight"), adds, bar="value * weight"),)

    def _features(self, batch: TokenBatch) -> Any:
        """Return what the classifier reads of each row: its counts, through the steps behind the vectorizer."""
        ids = batch.input_ids.cpu().numpy()
        counted = (batch.attention_mask.cpu().numpy() > 0) & (ids < self._found.size)
        rows, vectorizer = counted.nonzero()[0], self._found.vectorizer
        ones = np.ones(len(rows), dtype=vectorizer.dtype)
        features = csr_matrix((ones, (rows, ids[counted])), shape=(len(ids), self._found.size))
        features.sum_duplicates()
        if vectorizer.binary:
            features.data.fill(1)
        if hasattr(vectorizer, "_tfidf"):  # a TfidfVectorizer is a CountVectorizer with this behind it
            features = vectorizer._tfidf.transform(features, copy=False)
        for step in self._found.steps:
            features = step.transform(features)
        return features
