"""Options of the built-in models; importing them loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit.contract.options import option
from pipeline_kit.contract.types import Checkpoint

Head = Literal[
    "base", "sequence-classification", "token-classification", "question-answering", "masked-lm", "multiple-choice"
]
"""The heads that ``model=hf`` puts on a network."""

GenerationHead = Literal["causal-lm", "seq2seq-lm"]
"""The heads that ``model=generate`` writes text with."""


@dataclass
class _NetworkConfig:
    head: str | None = None
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = option(
        None, "the attention kernel; null: sdpa where the architecture has it, else eager"
    )
    linear: Literal["auto", "eager", "packed"] = option(
        "auto",
        "products on a CPU in float32 or bfloat16: eager is torch's own, packed reorders each weight once for oneDNN; "
        "auto packs what a few milliseconds of measuring at load find faster",
    )
    quantization: Literal["none", "int8", "int8_per_token"] = option(
        "none",
        "products in int8 on a CPU: int8 rounds activations by their range in the batch and is the fastest, "
        "int8_per_token by each token's own, so that no answer depends on its batch",
    )

    def check(self, checkpoint: Checkpoint, head: str) -> None:
        """Raise CheckpointError if the names of the checkpoint's weights show that it lacks the head."""
        from pipeline_kit.builtin.models.hf.heads import check_saved

        check_saved(checkpoint, head)


@dataclass
class HfModelConfig(_NetworkConfig):
    """Options of ``model=hf``."""

    head: Head | None = option(None, "the head on top of the network; null: the one the task asks for")
    compile: bool = option(
        False,
        "run the network through torch.compile: the first batches take up to a minute, later ones less; it needs a "
        "C++ compiler on a CPU, and without one the network runs as it is",
    )


@dataclass
class StaticModelConfig:
    """Options of ``model=static``."""

    head: Literal["base", "sequence-classification"] | None = option(
        None, "the head on top of the embeddings; null: the one the task asks for"
    )


@dataclass
class GenerationOptions:
    """How text is written, by transformers' names. null: the checkpoint's own setting, else transformers' default."""

    max_new_tokens: int | None = option(
        None,
        "most tokens that are written; null: the checkpoint's own, else 256, at most half of the positions",
        minimum=1,
        maximum=1_000_000,
    )
    min_new_tokens: int | None = option(None, "fewest tokens that are written", minimum=0, maximum=1_000_000)
    do_sample: bool | None = option(None, "draw each token by its probability; false: take the likeliest one")
    seed: int = option(0, "of the draws; the same seed and text make the same answer in any batch", minimum=0)
    temperature: float | None = option(None, "below 1 the likely tokens get likelier", minimum=0.001, maximum=1000)
    top_k: int | None = option(None, "draw among so many likeliest tokens; 0: among all", minimum=0)
    top_p: float | None = option(
        None, "draw among the likeliest tokens whose probabilities add up to this", minimum=0.000001, maximum=1
    )
    min_p: float | None = option(
        None, "leave out tokens less likely than this share of the likeliest one", minimum=0, maximum=1
    )
    num_beams: int | None = option(None, "texts that are kept side by side while searching", minimum=1, maximum=1000)
    length_penalty: float | None = option(None, "with beams: above 0 longer texts win more often, below 0 shorter ones")
    early_stopping: bool | Literal["never"] | None = option(
        None, "with beams: true ends the search once there are num_beams whole texts, never looks at every better one"
    )
    repetition_penalty: float | None = option(
        None, "above 1 tokens that are there already get less likely", minimum=0.001, maximum=1000
    )
    no_repeat_ngram_size: int | None = option(None, "no run of so many tokens comes twice; 0: may", minimum=0)
    stop_strings: list[str] = option([], "writing ends where one of these appears; the text ends before it")

    def __post_init__(self) -> None:
        """Refuse options that contradict each other; whether they fit the checkpoint is seen when it is loaded."""
        most = self.max_new_tokens
        if most is not None and (self.min_new_tokens or 0) > most:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is over max_new_tokens={most}.")
        if self.do_sample and (self.num_beams or 1) > 1:
            raise ValueError("do_sample=true draws one text, num_beams searches for the best of several; choose one.")
        if "" in self.stop_strings:
            raise ValueError("stop_strings holds an empty string, which would end every text at once.")


@dataclass
class GenerateModelConfig(_NetworkConfig):
    """Options of ``model=generate``."""

    head: GenerationHead | None = option(None, "the head that writes; null: the one the task asks for")
    generation: GenerationOptions = option(GenerationOptions(), "how text is written, see generation.OPTION")
