"""The tasks that are compared with transformers, one example at a time: their examples, references and checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from generate_helpers import NEW, TEXTS, writer
from parity_helpers import BOTH, LEFT, NEITHER, RIGHT, TOLERANCE, Case, Parity, Variant, near

from pipeline_kit import Pipeline
from pipeline_kit.testing.checkpoints import ARCHITECTURES, STYLES


def by_label(items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {item["label"]: item["score"] for item in items}


class TextClassification(Parity):
    """Logits in every way to batch, scores as the checkpoint's own function makes them."""

    task = "text-classification"
    ours: ClassVar = {"top_k": None, "function": "none"}
    theirs: ClassVar = {"function_to_apply": "none"}
    examples: ClassVar = (
        "I love this movie.",
        "a",
        "It was a terrible film, and the plot was so dull that I never want to see it again!",
        {"text": "Is the food good?", "text_pair": "The food in Paris is the best in the world."},
        "not bad at all",
        "What a long day. " * 30,
        {"text": "I like it", "text_pair": "I hate it " * 40},
        "Ünïcödé 漢字 😀 \t zzz",
        "ends with </s> and [SEP] and <pad> <|endoftext|>",
        "so we are waiting for a Hugging Face course",
        "it is what it is",
    )

    def expected(self, reference: Any, example: Any, **theirs: Any) -> Any:
        example = example if isinstance(example, str) else dict(example)
        return by_label(reference(example, top_k=None, truncation=True, **theirs))

    def read(self, result: Mapping[str, Any]) -> Any:
        found = by_label(result["labels"])
        assert result["score"] == max(found.values())
        return found

    def close(self, found: Any, wanted: Any) -> bool:
        return near(found, wanted)

    def differ(self, wanted: Sequence[Any]) -> bool:
        return bool(np.ptp([list(scores.values()) for scores in wanted], axis=0).max() > 0.1)

    def variants(self, case: Case, reference: Any) -> Iterator[Variant]:
        yield {"top_k": None}, {}, self.examples


STRATEGIES = ("none", "simple", "first", "average", "max")
PREFIXED, PLAIN = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), ("O", "PER", "LOC")
# Where transformers knows words, in word pieces, any text; elsewhere texts on whose words all agree.
KNOWN = (
    "I love this movie and my life in paris",
    "a",
    "we think that the world is beautiful but the story was not so good",
    "hugging face course in paris is the best of all time and the worst of all places as well they say",
    "water is water",
)
ANY = (
    *KNOWN,
    "",
    "Zq went to Uf (Paris) in 2024, didn't he?",
    "  odd\tspaces \n here  ",
    "Ünïcödé 漢字 😀 عربى 👩‍👩‍👧 z",
    "of [SEP] and [CLS] in a text",
)
# Every token is reported or scored by itself; left out are the characters that several tokens share.
BY_TOKEN = (*KNOWN, "I zq, we uf! (paris) in 2024", "  odd   spaces \n here ")
WORD_LISTS = (["we", "love", "paris"], ["they", "say", "that", "the", "world", "is", "beautiful"], ["a"])


class TokenClassification(Parity):
    """White space around an entity is left out: transformers' offsets hold it where the tokenizer's do.

    test_differences.py has the other differences.
    """

    task = "token-classification"
    ours: ClassVar = {"ignore_labels": []}
    theirs: ClassVar = {"aggregation_strategy": "simple", "ignore_labels": []}

    def texts(self, case: Case, strategy: str = "simple") -> Sequence[Any]:
        kind = ARCHITECTURES[case.architecture].tokenizer
        if kind in ("bert", "distilbert"):
            return ANY
        if kind in ("albert", "xlm-roberta", "xlnet"):
            return KNOWN[2:]
        return BY_TOKEN if strategy in ("none", "simple") else KNOWN[2:3]

    def expected(self, reference: Any, example: Any, **theirs: Any) -> Any:
        listed = not isinstance(example, str)
        source = " ".join(example["words"]) if listed else example
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of words that it has to guess
            entities = reference(example["words"], is_split_into_words=True, **theirs)[0] if listed else None
            entities = reference(example, **theirs) if entities is None else entities
        found = []
        for entity in entities:
            part = source[entity["start"] : entity["end"]]
            start = entity["start"] + len(part) - len(part.lstrip())
            label = entity["entity" if theirs["aggregation_strategy"] == "none" else "entity_group"]
            if part.strip():
                found.append((label, part.strip(), start, start + len(part.strip()), float(entity["score"])))
        return found

    def read(self, result: Mapping[str, Any]) -> Any:
        keys = ("label", "text", "start", "end", "score")
        assert all(set(entity) == set(keys) for entity in result["entities"])
        return [tuple(entity[key] for key in keys) for entity in result["entities"]]

    def close(self, found: Any, wanted: Any) -> bool:
        return [entity[:4] for entity in found] == [entity[:4] for entity in wanted] and all(
            abs(entity[4] - other[4]) <= TOLERANCE for entity, other in zip(found, wanted, strict=True)
        )

    def differ(self, wanted: Sequence[Any]) -> bool:
        """Several labels, and entities of several tokens."""
        entities = [entity for found in wanted for entity in found]
        several = any(" " in entity[1] for entity in entities)
        return several and len({e[0] for e in entities}) == 3 and len({round(e[4], 3) for e in entities}) > 5

    def variants(self, case: Case, reference: Any) -> Iterator[Variant]:
        for strategy in STRATEGIES:
            yield {"aggregation": strategy}, {"aggregation_strategy": strategy}, self.texts(case, strategy)
            if case.architecture in ("bert", "distilbert", "deberta-v2", "xlm-roberta"):
                words = [{"words": words} for words in WORD_LISTS]
                yield {"aggregation": strategy}, {"aggregation_strategy": strategy}, words
        for strategy, ignored in (("none", case.options["labels"][-1]), ("average", "LOC")):
            theirs = {"aggregation_strategy": strategy, "ignore_labels": [ignored]}
            yield {"aggregation": strategy, "ignore_labels": [ignored]}, theirs, self.texts(case, strategy)

    def check(self, example: Any, result: Mapping[str, Any]) -> None:
        """Entities are slices of the text, in order, never overlap, and have scores from 0 to 1."""
        end = 0
        for entity in result["entities"]:
            assert end <= entity["start"] < entity["end"] <= len(example)
            assert entity["text"] == example[entity["start"] : entity["end"]] == entity["text"].strip()
            assert type(entity["score"]) is float
            assert 0 <= entity["score"] <= 1
            end = entity["end"]


class FillMask(Parity):
    """The best 20 tokens of each mask against the scores and texts of the whole vocabulary."""

    task = "fill-mask"
    ours: ClassVar = {"top_k": 20}
    model: ClassVar = {"linear": "eager"}
    examples: ClassVar = (
        "This is a very good {}.",
        "{} is in Paris",
        "I love {} and I hate {} too",
        "{}",
        "the{} the",
        "{}{} {}",
        "Ünïcödé 漢{}字 😀 \t zzz",
        "שלום {} עולם e\u0301{}",
        "{} and what a long day it was " + "so the film was good " * 20,
        "ends with </s> and [SEP] and <pad> {}",
    )

    def texts(self, case: Case) -> Sequence[Any]:
        mask = STYLES[ARCHITECTURES[case.architecture].tokenizer].special["mask"]
        return [text.replace("{}", mask) for text in self.examples]

    def expected(self, reference: Any, example: Any, **theirs: Any) -> Any:
        asked = theirs or {"top_k": len(reference.tokenizer), "tokenizer_kwargs": {"truncation": True}}
        found = reference(example, **asked)
        lists = found if isinstance(found[0], list) else [found]
        return [{item["token"]: (item["score"], item["token_str"]) for item in items} for items in lists]

    def read(self, result: Mapping[str, Any]) -> Any:
        return [{item["id"]: (item["score"], item["token"]) for item in items} for items in result["masks"]]

    def close(self, found: Any, wanted: Any) -> bool:
        for items, scores in zip(found, wanted, strict=True):
            best = sorted((score for score, _ in scores.values()), reverse=True)
            right = [scores[token] for token in items]
            listed = [score for score, _ in items.values()]
            if len(items) not in (20, len(scores)) or [t for _, t in items.values()] != [t for _, t in right]:
                return False
            for others in ([score for score, _ in right], best[: len(items)]):
                if max(abs(a - b) for a, b in zip(listed, others, strict=True)) > TOLERANCE:
                    return False
        return True

    def differ(self, wanted: Sequence[Any]) -> bool:
        return len({max(masks[0].items(), key=lambda item: item[1][0])[0] for masks in wanted}) > 1

    def variants(self, case: Case, reference: Any) -> Iterator[Variant]:
        """All tokens; and plain words, which transformers has to be given as its vocabulary spells them."""
        yield {"top_k": 10_000}, {}, self.texts(case)
        spelled = {"wordpiece": "{}", "bytes": "Ġ{}", "unigram": "▁{}"}
        spelling = spelled[STYLES[ARCHITECTURES[case.architecture].tokenizer].model]
        words = ["good", "bad", "movie", "Paris" if spelling != "{}" else "paris", "terrible"]
        words = [word for word in words if spelling.format(word) in reference.tokenizer.get_vocab()]
        assert len(words) >= 4
        theirs = {"targets": [spelling.format(word) for word in words], "top_k": len(words)}
        yield {"targets": words, "top_k": 10}, theirs, self.texts(case)[:1]


C, N, E = "contradiction", "neutral", "entailment"
CANDIDATES = ("good", "bad", "about food, or Paris", "漢字 😀")


class ZeroShot(Parity):
    """Single scores where transformers finds the contradiction label; see test_differences.py."""

    task = "zero-shot-classification"
    ours: ClassVar = {"labels": CANDIDATES}
    examples: ClassVar = (
        "I love this movie.",
        "a",
        "It was a terrible film, and the plot was so dull that I never want to see it again!",
        "What a long day. " * 30,
        "Ünïcödé 漢字 😀 e\u0301 שלום \t zzz",
        "ends with </s> and [SEP] and <pad>",
    )

    def expected(self, reference: Any, example: Any, candidates: Any = CANDIDATES, **theirs: Any) -> Any:
        text, labels = (example, candidates) if isinstance(example, str) else (example["text"], example["labels"])
        found = reference(text, candidate_labels=labels if isinstance(labels, str) else list(labels), **theirs)
        return dict(zip(found["labels"], found["scores"], strict=True))

    def read(self, result: Mapping[str, Any]) -> Any:
        found = by_label(result["labels"])
        assert list(found) == sorted(found, key=lambda label: -found[label])
        assert (result["label"], result["score"]) == next(iter(found.items()))
        return found

    def close(self, found: Any, wanted: Any) -> bool:
        return near(found, wanted)

    def differ(self, wanted: Sequence[Any]) -> bool:
        spread = np.ptp([[scores[label] for label in CANDIDATES] for scores in wanted], axis=0)
        return bool(spread.min() > 100 * TOLERANCE)

    def variants(self, case: Case, reference: Any) -> Iterator[Variant]:
        template = "I think {{this}} is {}, really!"
        own = [{"text": text, "labels": CANDIDATES} for text in self.examples]
        spaced = {"text": self.examples[0], "labels": "good day, bad,, "}
        asked = {"hypothesis_template": template}
        yield {"labels": ["never", "asked"], **asked}, asked, [*own, spaced]
        long = ["the best film that was ever made by us", "bad"]
        yield {"labels": long}, {"candidates": long}, self.examples[3:4]
        if [label.lower() for label in case.options["labels"]][
            -1 if case.options["labels"][0].lower() == E else 0
        ] != N:
            yield {"labels": CANDIDATES, "multi_label": True}, {"multi_label": True}, self.examples
            yield {"labels": ["good"]}, {"candidates": ["good"]}, self.examples


class MultipleChoice(Parity):
    """AutoModelForMultipleChoice on one example, ``[1, choices, T]``; without padding on one choice at a time."""

    task = "multiple-choice"
    model: ClassVar = {"linear": "eager"}
    examples: ClassVar = (
        {"text": "It was a long day, so", "choices": ["I want some food.", "it will rain.", "a"]},
        {"text": "Is the food good?", "choices": ["yes", "no it is not good at all, and we want to be in Paris"]},
        {"text": "What a long day. " * 40, "choices": ["I love it", "I hate it so very much"]},
        {"text": "a", "choices": ["the same", "the same"]},
        {"text": "Ünïcödé 漢字 😀 \t zzz", "choices": ["שלום עולם", "e\u0301 \u200b"]},
        {"text": "this movie", "choices": ["is good", "is bad", "was", "has been", "will be", "ends", "makes me sad"]},
    )

    def reference(self, case: Case, folder: Path) -> Any:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        network = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()

        def logits(text: str, choices: Sequence[str]) -> torch.Tensor:
            options = {"truncation": "only_first", "padding": True, "return_tensors": "pt"}
            rows = tokenizer([text] * len(choices), list(choices), **options)
            found: torch.Tensor = network(**{name: value[None] for name, value in rows.items()}).logits
            return found[0]

        # Where rows may not be padded, transformers' answer depends on the longest choice.
        return logits if case.sides else lambda text, choices: torch.cat([logits(text, [choice]) for choice in choices])

    @torch.inference_mode()
    def expected(self, reference: Any, example: Any, **theirs: Any) -> Any:
        return reference(example["text"], example["choices"]).softmax(0).tolist()

    def read(self, result: Mapping[str, Any]) -> Any:
        assert result["score"] == max(result["scores"])
        return result["scores"]

    def close(self, found: Any, wanted: Any) -> bool:
        return near(dict(enumerate(found)), dict(enumerate(wanted)))

    def differ(self, wanted: Sequence[Any]) -> bool:
        return bool(max(map(np.ptp, wanted)) > 0.05)

    def check(self, example: Any, result: Mapping[str, Any]) -> None:
        scores = result["scores"]
        assert scores[example["choices"].index(result["choice"])] >= max(scores) - TOLERANCE


IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
DOCUMENTS = (
    "The food in Paris is the best in the world.",
    "a",
    "It was a terrible film, and the plot was so dull that I never want to see it again!",
    "What a long day. " * 30,
    "Ünïcödé 漢字 😀 e\u0301 שלום \t zzz",
    "ends with </s> and [SEP] and <pad>",
)
QUERIES = ("good food", "Where is the best food in Paris?", "so dull " * 40, "漢字 😀")


class TextRanking(Parity):
    """sentence-transformers' CrossEncoder, one pair at a time: some of its models refuse batches or change in them."""

    task = "text-ranking"
    examples: ClassVar = [{"query": query, "documents": list(DOCUMENTS[i:])} for i, query in enumerate(QUERIES)]

    def reference(self, case: Case, folder: Path) -> Any:
        from sentence_transformers import CrossEncoder

        return CrossEncoder(str(folder), device="cpu")

    def prepare(self, case: Case, folder: Path) -> None:
        """Save the folder as sentence-transformers does; it writes over the keys of ``config.json``."""
        self.reference(case, folder).save_pretrained(str(folder))

    def expected(self, reference: Any, example: Any, **theirs: Any) -> Any:
        options = {"batch_size": 1, "show_progress_bar": False, **theirs}
        found = reference.rank(example["query"], example["documents"], **options)
        return {item["corpus_id"]: float(item["score"]) for item in found}

    def read(self, result: Mapping[str, Any]) -> Any:
        return {item["index"]: item["score"] for item in result["ranking"]}

    def close(self, found: Any, wanted: Any) -> bool:
        return list(found) == list(wanted) and near(found, wanted)

    def differ(self, wanted: Sequence[Any]) -> bool:
        return all(np.ptp(list(row.values())) > 100 * TOLERANCE for row in wanted)

    def variants(self, case: Case, reference: Any) -> Iterator[Variant]:
        yield {"top_k": 2}, {"top_k": 2}, self.examples
        yield {"function": "none"}, {"activation_fn": torch.nn.Identity()}, self.examples
        yield {"function": "sigmoid"}, {"activation_fn": torch.nn.Sigmoid()}, self.examples


class TextGeneration(Parity):
    """The same text, after a prompt that is cut on the left to the room there is."""

    task = "text-generation"
    sizes: ClassVar = {}
    examples = TEXTS

    def pipe(self, case: Case, folder: Path, **ours: Any) -> Pipeline:
        return writer(folder, generation=case.generation)

    def reference(self, case: Case, folder: Path) -> Any:
        found = super().reference(case, folder)
        found.tokenizer.truncation_side = "left"
        room = {"truncation": True, "max_length": self.pipe(case, folder).tokenizer.max_length}
        asked = {"do_sample": False, "max_new_tokens": NEW, "return_full_text": False, **case.generation}
        return partial(found, tokenizer_encode_kwargs=room, **asked)

    def expected(self, reference: Any, example: Any, **theirs: Any) -> Any:
        return reference(example)[0]["generated_text"]

    def read(self, result: Mapping[str, Any]) -> Any:
        return result["text"]

    def close(self, found: Any, wanted: Any) -> bool:
        return bool(found == wanted)

    def differ(self, wanted: Sequence[Any]) -> bool:
        return len(set(wanted)) > 3

    def check_more(self, case: Case, pipe: Pipeline, wanted: Sequence[Any]) -> None:
        """A text in pieces is the same text; a long prompt keeps its end, where there are positions to run out of."""
        if "num_beams" not in case.generation:
            assert ["".join(pipe.stream_text(text)) for text in TEXTS] == wanted
        if pipe.tokenizer.max_length not in (None, 64):
            assert pipe.tokenizer.max_length == 64 - NEW
            result = pipe(TEXTS[4])
            assert result["truncated"] > 0
            assert result["text"] == pipe("of all the days " * 9 + TEXTS[4])["text"]


def _cases() -> Iterator[Case]:
    classes, tokens, masks, scored = TextClassification(), TokenClassification(), FillMask(), ZeroShot()
    choices, ranking, written = MultipleChoice(), TextRanking(), TextGeneration()
    usual = ("albert", "bert", "deberta-v2", "distilbert", "electra", "longformer", "modernbert", "mpnet", "roberta")
    odd = ("convbert", "fnet", "funnel", "mobilebert", "nystromformer")

    three: dict[str, Any] = {"labels": ("BAD", "MIXED", "GOOD")}
    multi, one = {**three, "problem_type": "multi_label_classification"}, {"labels": ("LABEL_0",)}
    yield from (Case(classes, name, RIGHT) for name in (*usual, "bart", "t5", "xlm-roberta"))
    yield from (Case(classes, name, BOTH) for name in ("bloom", "gpt2", "llama", "opt", "qwen2", "qwen3"))
    yield from (Case(classes, name, NEITHER) for name in odd)
    yield Case(classes, "xlnet", LEFT)
    yield Case(classes, "bert", RIGHT, multi)
    yield Case(classes, "distilbert", RIGHT, three)
    yield Case(classes, "roberta", RIGHT, {**one, "problem_type": "regression"})
    yield Case(classes, "electra", RIGHT, one)
    yield Case(classes, "llama", BOTH, {"padding_side": "right", **multi})
    yield Case(classes, "gpt2", BOTH, {"padding_side": "left", "pad_token": "<|endoftext|>"})
    yield Case(classes, "gpt2", LEFT, {"pad_token": False})
    yield Case(classes, "qwen2", LEFT, {**three, "pad_token_id": None})

    seeds = {"bert": 4, "electra": 2, "xlm-roberta": 4}  # random weights whose answers vary; most seeds do
    more = ("xlm-roberta", "albert", "xlnet")
    for name in ("bert", "distilbert", "electra", "roberta", "gpt2", "llama", "deberta-v2", *more):
        yield Case(tokens, name, BOTH, {"labels": PREFIXED, "seed": seeds.get(name, 3)})
    yield Case(tokens, "bert", BOTH, {"labels": PLAIN, "seed": 4})
    yield Case(tokens, "qwen2", BOTH, {"labels": PLAIN, "seed": 3})

    # Each kind of tokenizer, and the architectures that are in no other list.
    named = ("albert", "bert", "deberta", "deberta-v2", "mpnet", "roberta", "squeezebert", "xlm-roberta")
    yield from (Case(masks, name, BOTH) for name in named)
    yield from (Case(masks, name, RIGHT) for name in ("bart", "mbart"))
    yield Case(masks, "convbert", NEITHER)

    orders: dict[str, Sequence[str]] = {
        **dict.fromkeys(("bert", "roberta", "xlm-roberta"), (C, N, E)),
        **dict.fromkeys(("distilbert", "deberta-v2"), (E, N, C)),
        "bart": ("CONTRADICTION", "NEUTRAL", "ENTAILMENT"),
        "electra": (C, E, N),
        "albert": (E, "not_entailment"),
        "modernbert": ("not_entailment", E),
    }
    yield from (Case(scored, name, RIGHT, {"labels": labels, "seed": 1}) for name, labels in orders.items())
    # In these transformers takes neutral for contradiction.
    yield from (Case(scored, "bert", RIGHT, {"labels": labels}) for labels in ((E, C, N), (N, C, E), (N, E, C)))

    yield from (Case(choices, name, RIGHT) for name in ("bert", "deberta-v2", "longformer", "xlm-roberta"))
    yield from (Case(choices, name, NEITHER) for name in ("fnet", "roformer"))
    yield Case(choices, "xlnet", LEFT)

    said = "sentence_transformers"
    yield from (Case(ranking, name, RIGHT, one) for name in ("bert", "roberta", "deberta-v2", "bart", "modernbert"))
    yield Case(ranking, "xlm-roberta", RIGHT, {**one, said: {"activation_fn": SIGMOID}})
    yield Case(ranking, "electra", RIGHT, {**one, said: {"activation_fn": IDENTITY, "version": "4.1.0"}})
    yield Case(ranking, "distilbert", RIGHT, {**one, "sbert_ce_default_activation_function": IDENTITY})
    for config, own in (
        ({said: {"activation_fn": SIGMOID}}, {"activation_fn": IDENTITY}),
        ({said: {"activation_fn": "torch.nn.Identity"}}, {"activation_fn": None}),
        ({}, {"activation_fn": IDENTITY, "model_type": "SentenceTransformer"}),
    ):
        yield Case(ranking, "bert", RIGHT, {**one, **config}, {"config": config, f"config_{said}": own})

    for name in ("bloom", "gpt2", "gpt_neox", "llama", "mamba", "mistral", "opt", "qwen2", "qwen3"):
        yield Case(written, name, LEFT)
    yield Case(written, "gpt2", LEFT, {"pad_token": "<|endoftext|>"}, {}, {"repetition_penalty": 1.5})
    yield Case(written, "llama", LEFT, {"padding_side": "right"}, {}, {"num_beams": 3})
    yield Case(written, "llama", LEFT, {}, {}, {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True})
    yield Case(written, "qwen2", NEITHER, {}, {}, {"no_repeat_ngram_size": 2})
    greedy = {"repetition_penalty": 1.3, "do_sample": False}
    yield Case(written, "qwen3", LEFT, {"seed": 3}, {"generation_config": greedy})
    yield Case(written, "opt", LEFT, {"seed": 1}, {}, {"min_new_tokens": 5})


CASES = tuple(_cases())
