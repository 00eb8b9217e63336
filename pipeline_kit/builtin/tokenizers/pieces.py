"""Fast versions of the two tokenizers of translation that transformers has in Python only: OPUS-MT and M2M100.

A file of sentencepiece cuts a text into pieces, and vocab.json has their ids. Some pieces have none: they are unknown.
Others are of the target language alone: the file does not find them in a text, but what it leaves uncut may be one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Encoding as Encoded

from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, for_message

PYTHON_ONLY = frozenset({"M2M100Tokenizer", "MarianTokenizer"})
# Of sentencepiece_model.proto: TrainerSpec.ModelType, ModelProto.SentencePiece.Type.
_UNIGRAM, _BPE = 1, 2
_NORMAL, _USER = 1, 4
_MOST_IDS = 2**22
# In front of a piece that no text may match: words have no space in them, since it is written as a low line.
_NEVER = " "


@dataclass(frozen=True, slots=True)
class PieceIds:
    """The ids of pieces, as transformers' own tokenizer looks them up."""

    by_piece: Mapping[str, int]
    unknown: int
    end: int  # the backend numbers pieces that have no id from here on

    def of(self, encoded: Encoded) -> list[int]:
        """Return the ids of an encoding: a piece without one is looked up by its text, and unknown if that fails."""
        found: list[int] = encoded.ids
        if self.unknown not in found and max(found, default=0) < self.end:
            return found
        return [
            id if id < self.end and id != self.unknown else self.by_piece.get(token, self.unknown)
            for id, token in zip(found, encoded.tokens, strict=True)
        ]


def fast_version(slow: Any, checkpoint: Checkpoint) -> tuple[Tokenizer, PieceIds]:
    """Make a fast tokenizer of transformers' own one; :func:`frame` has to follow.

    :param slow: a MarianTokenizer or M2M100Tokenizer.
    :raises CheckpointError: if vocab.json or the file of sentencepiece cannot be used.
    """
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    marian = type(slow).__name__ == "MarianTokenizer"
    if marian and slow.separate_vocabs:
        raise _unusable(checkpoint, "source and target have a vocabulary each")
    proto.ParseFromString(Path(slow.spm_files[0] if marian else slow.spm_file).read_bytes())
    special = [*dict.fromkeys([*slow.all_special_tokens, *(() if marian else slow.lang_token_to_id)])]
    codes = [*slow.supported_language_codes] if marian else []
    own = [*special, *codes]
    ids = {**slow.encoder, **{token: slow.convert_tokens_to_ids(token) for token in own}}
    end = max((id for id in ids.values() if type(id) is int), default=0) + 1
    if not _are_ids(ids, end, whole=proto.trainer_spec.model_type == _UNIGRAM):
        raise _unusable(checkpoint, "vocab.json does not number its tokens from 0, each once")
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type in (_NORMAL, _USER)}
    known = PieceIds(ids, slow.unk_token_id, end)
    backend = Tokenizer(_model(proto.trainer_spec.model_type, scores, known, frozenset(own), checkpoint))
    backend.normalizer = _normalizer(proto.normalizer_spec)
    scheme = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence([decoders.Replace(_NEVER, ""), decoders.Metaspace(prepend_scheme=scheme)])
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in codes])
    return backend, known


def frame(backend: Tokenizer, slow: Any) -> None:
    """Put the special tokens around a text that `slow` puts there now, with the language that it is set to."""
    framed = slow.build_inputs_with_special_tokens([-1])
    place = framed.index(-1)
    before, after = ([slow.convert_ids_to_tokens(id) for id in ids] for ids in (framed[:place], framed[place + 1 :]))
    ids = [(token, slow.convert_tokens_to_ids(token)) for token in (*before, *after)]
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=ids
    )


def _model(kind: int, scores: Mapping[str, float], known: PieceIds, own: frozenset[str], checkpoint: Checkpoint) -> Any:
    lacking = [piece for piece in scores if piece not in known.by_piece]
    if kind == _UNIGRAM:
        by_id = sorted(known.by_piece, key=known.by_piece.__getitem__)
        listed = [
            (piece, scores.get(piece, 0.0)) if piece in scores or piece in own else (_NEVER + piece, 0.0)
            for piece in by_id
        ]
        return models.Unigram([*listed, *((piece, scores[piece]) for piece in lacking)], unk_id=known.unknown)
    if kind != _BPE:
        raise _unusable(checkpoint, "its file of sentencepiece is neither Unigram nor BPE")
    from transformers.tokenization_utils_base import generate_merges

    places = {piece: place for place, piece in enumerate(scores)}
    vocab = {**known.by_piece, **{piece: known.end + place for place, piece in enumerate(lacking)}}
    [unknown] = [piece for piece, id in known.by_piece.items() if id == known.unknown]
    return models.BPE(vocab, generate_merges(places, scores), unk_token=unknown, fuse_unk=True)


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # Not normalizers.Strip, which takes U+0085 for a space too.
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)


def _are_ids(ids: Mapping[Any, Any], end: int, *, whole: bool) -> bool:
    numbers = list(ids.values())
    return (
        all(type(id) is int and id >= 0 for id in numbers)
        and len({*numbers}) == len(numbers)
        and end <= _MOST_IDS
        and (not whole or end == len(numbers))
    )


def _unusable(checkpoint: Checkpoint, problem: str) -> CheckpointError:
    return CheckpointError(f"the tokenizer of '{for_message(checkpoint.name)}' cannot be converted: {problem}")
