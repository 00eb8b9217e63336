"""Source and target languages of a multilingual translator."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from generate_helpers import NEW, TEXTS, shuffled_agree, texts, writer
from harness import checkpoint, with_files

from pipeline_kit.errors import ConfigError
from pipeline_kit.testing.checkpoints import tiny_translator

CODES = ("eng_Latn", "fra_Latn", "deu_Latn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_translator(tmp_path_factory.mktemp("nllb") / "checkpoint", CODES, seed=1)


@pytest.mark.parametrize("languages", [("deu_Latn", "eng_Latn"), ("fra_Latn", "fra_Latn")])
def test_the_languages_frame_both_sides(folder: Path, languages: tuple[str, str]) -> None:
    pipe = writer(folder, "translation", languages=languages)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, src_lang=languages[0])
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    target = tokenizer.convert_tokens_to_ids(languages[1])
    expected = []
    for text in TEXTS:
        given = tokenizer(text, return_tensors="pt", truncation=True)
        assert pipe.tokenizer.encode([text])[0].input_ids == given["input_ids"][0].tolist()
        written = network.generate(**given, forced_bos_token_id=target, max_new_tokens=NEW)[0]
        expected.append(tokenizer.decode(written, skip_special_tokens=True))
    shuffled_agree(pipe, TEXTS, expected)


def test_languages_matter(folder: Path) -> None:
    english, french, german = CODES
    pairs = [(english, french), (german, french), (english, german), (german, german)]
    found = [tuple(texts(writer(folder, "translation", languages=pair)(TEXTS[:3]))) for pair in pairs]
    assert len(set(found)) == len(pairs)


@pytest.mark.parametrize(
    ("languages", "words"),
    [
        (
            (None, None),
            "task.src_lang: is required: .* knows 3 languages.\n.*eng_Latn, fra_Latn, deu_Latn\n.*for example",
        ),
        (("eng_Latn", None), "task.tgt_lang: is required"),
        (("eng_Lat", "fra_Latn"), "task.src_lang: 'eng_Lat' is not a language of .* Did you mean 'eng_Latn'"),
        (("eng_Latn", "fr"), "task.tgt_lang: 'fr' is not a language"),
    ],
)
def test_languages_that_are_missing_or_unknown(
    folder: Path, languages: tuple[str | None, str | None], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        writer(folder, "translation", languages=languages)


def test_other_tasks_may_leave_them_out(folder: Path) -> None:
    """Then the tokenizer's own default frames the text, and the decoder is free."""
    free = writer(folder, "text2text-generation")
    assert free(TEXTS[0])["text"] == writer(folder, "summarization")(TEXTS[0])["text"]
    bound = writer(folder, "text2text-generation", languages=("eng_Latn", "fra_Latn"))
    assert bound(TEXTS[0]) == writer(folder, "translation", languages=("eng_Latn", "fra_Latn"))(TEXTS[0])


def test_a_tokenizer_that_cannot_frame(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer=tokenizers_json does not know where.*\n.*tokenizer=hf"):
        writer(folder, "translation", languages=CODES[:2], tokenizer={"name": "tokenizers_json"})
    plain = tiny_translator(tmp_path / "plain")
    with_files(plain, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(ConfigError, match=r"does not know where.*\n.*NllbTokenizer"):
        writer(plain, "translation", languages=CODES[:2])


def test_a_checkpoint_of_one_pair() -> None:
    folder = checkpoint("marian", head="seq2seq-lm")
    assert writer(folder, "translation")("a")["text"]
    with pytest.raises(ConfigError, match=r"task.src_lang: .* has no languages to choose from"):
        writer(folder, "translation", languages=("en", "de"))


def test_pairs_by_prefix() -> None:
    params = {f"translation_en_to_{code}": {"prefix": f"to {code}: "} for code in ("de", "fr")}
    folder = checkpoint("t5", head="seq2seq-lm", task_specific_params=params)
    german = writer(folder, "translation", languages=("en", "de"))
    by_hand = writer(folder, "text2text-generation", postprocessor={"prefix": "to de: "})
    assert german(TEXTS[0]) == by_hand(TEXTS[0])
    with pytest.raises(ConfigError, match=r"translates 2 pairs of languages, not en to f.*Did you mean 'en to fr'"):
        writer(folder, "translation", languages=("en", "f"))
    with pytest.raises(ConfigError, match=r"task.src_lang=en task.tgt_lang=de"):
        writer(folder, "translation")
