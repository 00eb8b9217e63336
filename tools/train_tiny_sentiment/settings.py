"""Every number of the recipe, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

LABELS = ("NEGATIVE", "POSITIVE")
MAX_TOKENS = 512
THREADS = 1


@dataclass(frozen=True)
class LongTextSettings:
    """How many long texts are drawn, and from what."""

    crops: int = 240
    crop_tokens: tuple[int, int] = (64, 450)
    patchworks: int = 160
    patches: tuple[int, int] = (4, 14)
    agreement: float = 0.7


@dataclass(frozen=True)
class TeacherSettings:
    """How the sentence encoder is fine-tuned into the teacher."""

    epochs: int = 3
    learning_rate: float = 5e-5
    warmup: float = 0.06
    batch_tokens: int = 1024
    snippet_rows: int = 10**6
    product_rows: int = 6_000
    product_weight: float = 0.5
    everyday_rows: int = 7_000
    long_texts: LongTextSettings = LongTextSettings()


@dataclass(frozen=True)
class StudentSettings:
    """The shape of the student and how it is distilled."""

    layers: tuple[int, ...] = (0, 2, 4)
    feed_forward: int = 640
    vocabulary: int = 6_000
    general_pieces: int = 1_200
    epochs: int = 3
    learning_rate: float = 2e-4
    warmup: float = 0.05
    batch_tokens: int = 1536
    temperature: float = 2.0
    hidden_weight: float = 10.0
    label_weight: float = 0.2
    importance_batches: int = 150


@dataclass(frozen=True)
class RefitSettings:
    """How the student's classifier is fitted once more on unseen whole reviews."""

    crops_per_review: int = 6
    crop_tokens: tuple[int, int] = (64, 500)
    everyday_rows: int = 2_000
    temperature: float = 2.0
    answers_weight: float = 8.0
    decay: float = 2e-3
    steps: int = 60
    folds: int = 5


@dataclass(frozen=True)
class StaticSettings:
    """The shape of the bag-of-tokens student and how it is distilled."""

    width: int = 64
    vocabulary: int = 6_000
    general_pieces: int = 1_200
    epochs: int = 8
    learning_rate: float = 2e-3
    batch_tokens: int = 4096
    temperature: float = 2.0
    label_weight: float = 0.2
    piece_dropout: float = 0.1


@dataclass(frozen=True)
class CorpusSettings:
    """How much of each source the students are distilled on."""

    snippet_rows: int = 10**6
    fragments_per_snippet: int = 1
    long_texts: LongTextSettings = LongTextSettings(crops=600, crop_tokens=(48, 510), patchworks=300)
    product_rows: int = 12_000
    everyday_rows: int = 24_000


@dataclass(frozen=True)
class Recipe:
    """The whole recipe; the seed and these numbers fix the bytes of the result."""

    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    refit: RefitSettings = field(default_factory=RefitSettings)
    static: StaticSettings = field(default_factory=StaticSettings)
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    reviews_held_out: int = 100
    products_held_out: int = 2_000
    measured_rows: int = 10**6
