"""What both built-in tokenizers do with a loaded backend of the tokenizers library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer as Backend

from pipeline_kit.builtin.tokenizers.encode import Encoder, encode, encode_fully
from pipeline_kit.builtin.tokenizers.limits import resolve_max_length
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
from pipeline_kit.contract.stages import Panel, StageContext, Tokenizer
from pipeline_kit.contract.types import Encoding, Example, Side


class BackendTokenizer(Tokenizer):
    """Encodes in bulk by a backend, which a subclass loads and whose files it reads."""

    def __init__(
        self,
        backend: Backend,
        config: HfTokenizerConfig,
        context: StageContext,
        languages: Mapping[str, int],
        *,
        pad_token_id: int | None,
        padding_side: Side,
        model_max_length: object,
        token_types: bool,
        left: bool,
    ) -> None:
        """Settle the limits.

        :param languages: the tokens that stand for languages, by code.
        :param model_max_length: the longest text, as the tokenizer's files have it.
        :param token_types: whether encodings get segment ids.
        :param left: whether truncation cuts at the beginning.
        :raises ConfigError: if an option does not fit the checkpoint.
        """
        self._backend, self._languages = backend, languages
        self._pad_token_id, self._padding_side = pad_token_id, padding_side
        longest = resolve_max_length(
            config.max_length, context.checkpoint, model_max_length, context.reserved_positions
        )
        self._encoder = Encoder(backend, config, context, longest, token_types=token_types, left=left)

    @property
    def pad_token_id(self) -> int | None:
        """See :class:`Tokenizer`."""
        return self._pad_token_id

    @property
    def padding_side(self) -> Side:
        """See :class:`Tokenizer`."""
        return self._padding_side

    @property
    def max_length(self) -> int | None:
        """See :class:`Tokenizer`."""
        return self._encoder.max_length

    @property
    def languages(self) -> Mapping[str, int]:
        """See :class:`Tokenizer`."""
        return self._languages

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        """See :class:`Tokenizer`."""
        return encode(self._encoder, examples)

    def encode_fully(self, examples: Sequence[Example]) -> list[Encoding]:
        """Encode with all fields filled, for ``pipeline-kit explain``."""
        return encode_fully(self._encoder, examples)

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`Tokenizer`."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def panels(self, example: Example, encodings: Sequence[Encoding]) -> Sequence[Panel]:
        """See :class:`Tokenizer`; the normalised text, its pre-tokens, the special tokens."""
        from pipeline_kit.builtin.tokenizers.panels import tokenizer_panels  # takes torch, and tokenizing takes none

        del encodings
        return tokenizer_panels(self._encoder, example, self._languages)
