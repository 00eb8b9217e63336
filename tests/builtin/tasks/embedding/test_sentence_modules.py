"""Embeddings equal sentence-transformers' own on folders that it saved: modules, prompts, dimensions, layouts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import checkpoint, pipeline_of
from hub_server import HubServer, Repository
from parity_helpers import check_any_order
from safetensors.torch import load_file, save_file

from pipeline_kit import Pipeline
from pipeline_kit.checkpoint.resolve import CheckpointConfig, fingerprint, resolve_checkpoint
from pipeline_kit.contract.types import Example, Side
from pipeline_kit.errors import CheckpointError, ConfigError, RowError
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.testing import PostprocessorConformance
from pipeline_kit.testing.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)

TOLERANCE = 1e-5
TEXTS = (
    "I love this movie.",
    "a",
    "It was a terrible film, and the plot was so dull that I never want to see it again!",
    "Grüße aus Köln 🙂🏽 漢字 e\u0301 עברית",
    "What a long day. " * 30,
    "so we are waiting",
)
PROMPTS = {"query": "I hate: ", "document": ""}


@dataclass(frozen=True)
class Case:
    """A kind of folder: the network, how it pools, and the names of the modules that follow."""

    architecture: str
    pooling: str | tuple[str, ...] = "mean"
    layers: tuple[str, ...] = ()
    side: Side | None = None

    def __str__(self) -> str:
        modes = "+".join([self.pooling] if isinstance(self.pooling, str) else self.pooling)
        return "-".join([self.architecture, modes, *self.layers, *([self.side] if self.side else [])])


CASES = (
    Case("bert", "cls", ("Dense", "Normalize")),
    Case("bert", ("mean", "max", "cls"), ("Dense", "LayerNorm", "Dropout", "Dense")),
    Case("roberta", "max", ("Normalize",)),
    Case("mpnet", "mean", ("Normalize",)),
    Case("distilbert", "mean_sqrt_len_tokens"),
    Case("xlm-roberta", ("weightedmean", "lasttoken"), ("Normalize", "Dense", "Normalize")),
    Case("albert", ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")),
    Case("modernbert", "weightedmean"),
    Case("t5", "mean", ("Dense", "Normalize")),
    Case("qwen2", "lasttoken", ("Normalize",), "left"),
    Case("qwen3", ("lasttoken", "cls", "mean", "weightedmean"), (), "left"),
    Case("llama", "weightedmean", (), "right"),
)


def save(
    folder: Path, case: Case, *, activation: torch.nn.Module | None = None, residual: bool = False, **options: Any
) -> Path:
    """Save a sentence-transformers folder with random weights.

    :param options: of the Pooling (``include_prompt``) or of the SentenceTransformer.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as st

    base = tiny_checkpoint(folder.with_name(f"{folder.name}-base"), case.architecture, head="base", max_positions=48)
    if case.side:
        settings = json.loads((base / "tokenizer_config.json").read_text())
        (base / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": case.side}))
    network = st.Transformer(str(base))
    include = options.pop("include_prompt", True)
    width = network.get_embedding_dimension()
    found: list[torch.nn.Module] = [network, st.Pooling(width, case.pooling, include_prompt=include)]
    width *= 1 if isinstance(case.pooling, str) else len(case.pooling)
    torch.manual_seed(0)
    for name in case.layers:
        if name == "Dense":
            out = width if residual is True and width < 20 else 20
            found.append(st.Dense(width, out, activation_function=activation or torch.nn.Tanh(), use_residual=residual))
            width = out
        elif name == "LayerNorm":
            layer = st.LayerNorm(width)
            layer.norm.weight.data.uniform_(0.5, 2)
            layer.norm.bias.data.uniform_(-1, 1)
            found.append(layer)
        else:
            found.append(getattr(st, name)())
    SentenceTransformer(modules=found, **options).save(str(folder), create_model_card=False)
    return folder


def reference(folder: Path, texts: Sequence[str] = TEXTS, **options: Any) -> np.ndarray[Any, Any]:
    """Encode with sentence-transformers, one text at a time, so without any padding."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return np.stack([model.encode([text], show_progress_bar=False, **options)[0] for text in texts])


assemble = partial(pipeline_of, "sentence-embedding", model={"linear": "eager"})


def embed(pipe: Pipeline, texts: Sequence[Example] = TEXTS) -> np.ndarray[Any, Any]:
    return np.array([result["embedding"] for result in pipe(list(texts))])


def same(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_vectors_in_any_batch_order_and_padding(case: Case, tmp_path: Path) -> None:
    folder = save(tmp_path / "st", case, prompts=PROMPTS)
    expected = reference(folder)
    pipe = assemble(folder)
    same(embed(pipe), expected)
    check_any_order(
        pipe, TEXTS, list(expected), lambda result, row: np.allclose(result["embedding"], row, TOLERANCE, TOLERANCE)
    )
    same(embed(assemble(folder, prompt_name="query")), reference(folder, prompt_name="query"))


@pytest.fixture(scope="module")
def matryoshka(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Dense layer, a Normalize, prompts and a default one of them."""
    case = Case("bert", "mean", ("Dense", "Normalize"))
    folder = tmp_path_factory.mktemp("matryoshka") / "st"
    return save(folder, case, prompts=PROMPTS, default_prompt_name="query")


def test_the_default_prompt_is_put_before_each_text(matryoshka: Path) -> None:
    expected = reference(matryoshka)
    same(embed(assemble(matryoshka)), expected)
    assert np.abs(expected - reference(matryoshka, prompt="")).max() > 0.01


def test_a_prompt_or_its_name_takes_the_place_of_the_default(matryoshka: Path) -> None:
    same(embed(assemble(matryoshka, prompt="")), reference(matryoshka, prompt=""))
    same(embed(assemble(matryoshka, prompt="one two ")), reference(matryoshka, prompt="one two "))
    same(embed(assemble(matryoshka, prompt_name="document")), reference(matryoshka, prompt_name="document"))


def test_an_example_may_name_its_own_prompt(matryoshka: Path) -> None:
    pipe = assemble(matryoshka, prompt_name="document")
    examples: list[Example] = [
        {"text": TEXTS[0], "prompt_name": "query"},
        {"text": TEXTS[0], "prompt_name": None},
        TEXTS[0],
    ]
    query, document = (reference(matryoshka, TEXTS[:1], prompt_name=name)[0] for name in ("query", "document"))
    same(embed(pipe, examples), np.stack([query, document, document]))


def test_a_prompt_may_come_with_the_checkpoint_options(matryoshka: Path) -> None:
    own = {"prompts": {"title": "a title: ", "query": "mine: "}}
    same(embed(assemble(matryoshka, checkpoint=own, prompt_name="title")), reference(matryoshka, prompt="a title: "))
    same(embed(assemble(matryoshka, checkpoint=own)), reference(matryoshka, prompt="mine: "))


def test_an_unknown_prompt_is_refused_with_the_closest(matryoshka: Path) -> None:
    with pytest.raises(ConfigError, match=r"postprocessor\.prompt_name: 'quer' is unknown.*Did you mean 'query'"):
        assemble(matryoshka, prompt_name="quer")
    with pytest.raises(ConfigError, match="both set"):
        assemble(matryoshka, prompt_name="query", prompt="x")
    pipe = assemble(matryoshka)
    with pytest.raises(RowError, match=r"input.*'prompt_name' is 'documnet'.*Did you mean 'document'"):
        pipe({"text": "a", "prompt_name": "documnet"})
    with pytest.raises(RowError, match="'prompt_name' is '7'"):
        pipe({"text": "a", "prompt_name": 7})
    with pytest.raises(RowError, match=r"unknown field 'text_pair'"):
        pipe({"text": "a", "text_pair": "b"})
    with pytest.raises(RowError, match=r"field 'text' is int"):
        pipe({"text": 3})
    with pytest.raises(RowError, match=r"lone surrogate at character 1"):
        pipe("a\ud800")


def test_dimensions_are_cut_after_normalizing_and_normalized_again(matryoshka: Path) -> None:
    for count in (1, 7, 20):
        expected = reference(matryoshka, truncate_dim=count, normalize_embeddings=True)
        found = embed(assemble(matryoshka, dimensions=count))
        same(found, expected)
        same(np.linalg.norm(found, axis=1), np.ones(len(TEXTS)))
    whole = embed(assemble(matryoshka, normalize=False))
    same(embed(assemble(matryoshka, normalize=False, dimensions=5)), whole[:, :5])


def test_dimensions_of_a_folder_that_does_not_normalize_are_cut_only(tmp_path: Path) -> None:
    folder = save(tmp_path / "st", Case("distilbert", "max"))
    same(embed(assemble(folder, dimensions=6)), reference(folder, truncate_dim=6))


def test_the_folders_own_dimensions_are_followed(tmp_path: Path) -> None:
    folder = save(tmp_path / "st", Case("distilbert", "max"), truncate_dim=6)
    assert reference(folder).shape == (len(TEXTS), 6)
    same(embed(assemble(folder)), reference(folder))
    same(embed(assemble(folder, dimensions=30)), reference(folder, truncate_dim=30))
    edit(folder / "config_sentence_transformers.json", truncate_dim="6")
    with pytest.raises(CheckpointError, match="truncate_dim"):
        assemble(folder)


def test_more_dimensions_than_there_are_is_refused(matryoshka: Path) -> None:
    with pytest.raises(ConfigError, match=r"postprocessor\.dimensions: '21' is more than the 20 numbers.*\n.*1 to 20"):
        assemble(matryoshka, dimensions=21)
    plain = checkpoint("distilbert", head="base")
    with pytest.raises(ConfigError, match="1 to 32"):
        assemble(plain, dimensions=33)


@pytest.mark.parametrize(
    ("name", "residual"), [("Tanh", False), ("Identity", True), ("ReLU", False), ("GELU", True), ("Sigmoid", False)]
)
def test_each_activation_of_a_dense_layer(name: str, residual: bool, tmp_path: Path) -> None:
    case = Case("bert", "mean", ("Dense", "Dense"))
    folder = save(tmp_path / "st", case, activation=getattr(torch.nn, name)(), residual=residual)
    same(embed(assemble(folder)), reference(folder))


def test_a_dense_layer_without_bias(tmp_path: Path) -> None:
    folder = save(tmp_path / "st", Case("bert", "mean", ("Dense",)))
    edit(folder / "2_Dense" / "config.json", bias=False)
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    save_file({"linear.weight": weights["linear.weight"]}, folder / "2_Dense" / "model.safetensors")
    same(embed(assemble(folder)), reference(folder))


@pytest.mark.parametrize("case", [Case("bert", "mean"), Case("t5", "mean"), Case("qwen2", "lasttoken", (), "left")])
def test_windows_go_through_the_layers_one_by_one(case: Case, tmp_path: Path) -> None:
    """The vector of a long text is the mean of its windows' vectors by tokens, which is then normalized."""
    case = replace(case, layers=("Dense", "Normalize"))
    folder = save(tmp_path / "st", case)
    pipe = assemble(folder, tokenizer={"overflow": "window", "max_length": 24, "overlap": 5}, normalize=False)
    windows = pipe.tokenizer.encode([TEXTS[4]])
    assert len(windows) > 4
    whole = assemble(folder, normalize=False)
    vectors = [vector_of(whole, window.input_ids) for window in windows]
    room = windows[0].token_span[1]  # type: ignore[index]
    total = windows[-1].token_span[1]  # type: ignore[index]
    shares = np.zeros(total)
    for place in range(len(windows)):
        shares[place * (room - 5) : place * (room - 5) + room] += 1
    weights = [(1 / shares[place * (room - 5) : place * (room - 5) + room]).sum() for place in range(len(windows))]
    expected = np.average(vectors, axis=0, weights=weights)
    result = pipe(TEXTS[4])
    assert result["windows"] == len(windows)
    same(np.array(result["embedding"]), expected)
    [scaled] = embed(assemble(folder, tokenizer={"overflow": "window", "max_length": 24, "overlap": 5}), [TEXTS[4]])
    same(scaled, expected / np.linalg.norm(expected))
    same(embed(pipe, TEXTS[:2]), embed(whole, TEXTS[:2]))


def vector_of(pipe: Pipeline, ids: Sequence[int]) -> np.ndarray[Any, Any]:
    """Run model and ``reduce`` on one row of ids."""
    from pipeline_kit.contract.types import Encoding
    from pipeline_kit.runtime.padding import collate

    batch = collate([Encoding(ids)], PaddingPolicy("longest"), "cpu")
    reduced = pipe.postprocessor.reduce(pipe.model.forward(batch), batch)
    return reduced["embedding"][0, 0].numpy()


INSTRUCTED = (
    Case("bert", "mean", ("Dense", "Normalize")),
    Case("t5", "mean", ("Normalize",)),
    Case("roberta", ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")),
    Case("gpt2", ("mean", "weightedmean"), (), "right"),
    Case("qwen2", ("mean", "cls", "lasttoken", "max"), (), "left"),
)


@pytest.mark.parametrize("case", INSTRUCTED, ids=str)
def test_the_tokens_of_a_prompt_can_be_left_out_of_the_pooling(case: Case, tmp_path: Path) -> None:
    prompts = {"query": "I hate this film:", "long": "so we are waiting for a hugging face course:", "none": ""}
    prompts["space"] = "I hate: "  # its last token alone may be one with the text's first
    folder = save(tmp_path / "st", case, include_prompt=False, prompts=prompts, default_prompt_name="query")
    pipe = assemble(folder)
    texts = [f" {text}" for text in TEXTS]
    expected = {name: reference(folder, texts, prompt_name=name) for name in prompts}
    same(embed(pipe, texts), expected["query"])
    mixed: list[Example] = [{"text": text, "prompt_name": name} for text in texts for name in prompts]
    same(embed(pipe, mixed), np.stack([expected[name][i] for i in range(len(texts)) for name in prompts]))
    edit(folder / "1_Pooling" / "config.json", include_prompt=True)
    assert np.abs(reference(folder, texts) - expected["query"]).max() > 0.01


def test_only_the_first_window_has_prompt_tokens_to_leave_out(tmp_path: Path) -> None:
    prompts = {"query": "I hate this film:"}
    folder = save(tmp_path / "st", Case("bert", "mean"), include_prompt=False, prompts=prompts)
    split = {"overflow": "window", "max_length": 24, "overlap": 0}
    pipe = assemble(folder, tokenizer=split, prompt_name="query")
    windows = pipe.tokenizer.encode(list(pipe.postprocessor.prepare(TEXTS[4])))
    skip = len(pipe.tokenizer.encode([prompts["query"]])[0].input_ids) - 1
    hidden = []
    for window in windows:
        ids = torch.tensor([window.input_ids])
        hidden.append(pipe.model._network(input_ids=ids).last_hidden_state[0].numpy())  # type: ignore[attr-defined]
    rows = [hidden[0][skip:].mean(axis=0), *(rows.mean(axis=0) for rows in hidden[1:])]
    weights = [w.token_span[1] - w.token_span[0] for w in windows]  # type: ignore[index]
    same(embed(pipe, [TEXTS[4]])[0], np.average(rows, axis=0, weights=weights))


def test_a_text_of_nothing_but_its_prompt_is_an_error_of_its_row(tmp_path: Path) -> None:
    folder = save(tmp_path / "st", Case("gpt2", "mean"), include_prompt=False, prompts={"query": "I hate"})
    pipe = assemble(folder, prompt_name="query")
    with pytest.raises(RowError, match="nothing is left of the text without its prompt"):
        pipe("")


def test_the_network_may_stand_in_a_folder_of_its_own(matryoshka: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(matryoshka, folder)
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inner / path.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    edit(inner / "sentence_bert_config.json", max_seq_length=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference(folder)
    same(embed(assemble(folder)), expected)
    found = resolve_checkpoint(CheckpointConfig(path=str(folder)))
    assert (found.path, found.root) == (inner, folder)
    hashed = fingerprint(found)
    wanted = {"0_Transformer/model.safetensors", "0_Transformer/config.json", "2_Dense/model.safetensors"}
    assert wanted | {"modules.json", "1_Pooling/config.json"} <= set(hashed)
    assert {"2_Dense/model.safetensors", "model.safetensors"} <= set(
        fingerprint(resolve_checkpoint(CheckpointConfig(path=str(matryoshka))))
    )
    (inner / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="PEFT adapter"):
        assemble(folder)
    (inner / "adapter_config.json").unlink()
    (inner / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"0_Transformer/pytorch_model\.bin"):
        assemble(folder)


@pytest.mark.parametrize("inner", ["", "0_Transformer/"])
def test_a_hub_repository_comes_with_its_layers(inner: str, matryoshka: Path, tmp_path: Path) -> None:
    files = {path.relative_to(matryoshka).as_posix(): path.read_bytes() for path in matryoshka.rglob("*.*")}
    if inner:
        modules = json.loads(files["modules.json"])
        modules[0]["path"] = "0_Transformer"
        kept = {"modules.json", "config_sentence_transformers.json"}
        files = {name if "/" in name or name in kept else f"{inner}{name}": held for name, held in files.items()}
        files["modules.json"] = json.dumps(modules).encode()
    files["2_Dense/pytorch_model.bin"] = b"\x80"
    code = (
        "import sys\n"
        "from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint\n"
        "found = resolve_checkpoint(CheckpointConfig(path='me/st', offline=sys.argv[1] == 'offline'))\n"
        "print(found.root or found.path)"
    )

    def resolve(how: str) -> Path:
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    with HubServer() as server:
        server.repositories["me/st"] = Repository(files)
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        folder = resolve("online")
    assert resolve("offline") == folder
    assert not list(tmp_path.rglob("*.bin"))
    same(embed(assemble(folder)), reference(matryoshka))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def broken(matryoshka: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(matryoshka, tmp_path / "broken"))


@pytest.mark.parametrize(
    ("place", "type_"),
    [
        (0, "sentence_transformers.models.WordEmbeddings"),
        (0, "sentence_transformers.models.Router"),
        (0, "custom_st.Transformer"),
        (1, "sentence_transformers.models.CNN"),
        (1, "sentence_transformers.models.WeightedLayerPooling"),
        (1, "my_code.Pooling"),
        (2, "sentence_transformers.models.LSTM"),
        (2, "sentence_transformers.models.Transformer"),
    ],
)
def test_a_module_that_is_not_supported_is_named(place: int, type_: str, broken: Path) -> None:
    modules = json.loads((broken / "modules.json").read_text())
    modules[place]["type"] = type_
    (broken / "modules.json").write_text(json.dumps(modules))
    for pooling in ("auto", "mean"):
        with pytest.raises(CheckpointError, match=rf"module {place} is '{type_}'.*supported are Transformer, Pooling"):
            assemble(broken, pooling=pooling)
    if not type_.startswith("sentence_transformers"):
        with pytest.raises(CheckpointError, match="never run"):
            assemble(broken)


def test_a_folder_of_static_embeddings_is_named(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    base = checkpoint("bert", head="base")
    static = StaticEmbedding(Tokenizer.from_file(str(base / "tokenizer.json")), embedding_dim=8)
    SentenceTransformer(modules=[static]).save(str(tmp_path / "st"), create_model_card=False)
    with pytest.raises(CheckpointError, match=r"module 'StaticEmbedding', and only those of a Transformer"):
        assemble(tmp_path / "st")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.SELU"}, r"activation 'torch\.nn.*SELU'.*torch\.nn\.Tanh"),
        ({"activation_function": "os.system"}, r"activation 'os\.system'"),
        ({"activation_function": "my.code.Tanh"}, r"activation 'my\.code\.Tanh'"),
        ({"in_features": 31}, r"linear\.weight' is F32 \[20, 32\].*float \[20, 31\]"),
        ({"out_features": 4}, r"linear\.weight' is F32 \[20, 32\]"),
        ({"bias": False}, r"holds linear\.bias, of which"),
        ({"use_residual": True}, r"residual\.weight' is missing"),
        ({"module_input_name": "token_embeddings"}, "token_embeddings"),
    ],
)
def test_a_dense_layer_that_is_not_what_its_config_says(changes: dict[str, Any], message: str, broken: Path) -> None:
    edit(broken / "2_Dense" / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        assemble(broken)


def test_a_dense_layer_has_to_be_safetensors(broken: Path) -> None:
    weights = broken / "2_Dense" / "model.safetensors"
    weights.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match="zip archive"):
        assemble(broken)
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match=r"2_Dense/pytorch_model\.bin"):
        assemble(broken)
    with pytest.raises(CheckpointError, match=r"2_Dense' has no model\.safetensors"):
        assemble(broken, checkpoint={"unsafe_files": "ignore"})


def test_a_dense_layer_of_another_width_than_the_pooling(broken: Path) -> None:
    edit(broken / "1_Pooling" / "config.json", pooling_mode=["mean", "cls"])
    with pytest.raises(CheckpointError, match="takes vectors of 32 numbers, not 64"):
        assemble(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ["query"]}, "'prompts' must map names to texts"),
        ({"prompts": {"query": 1}}, "'prompts' must map names to texts"),
        ({"default_prompt_name": "other"}, "default prompt 'other' is not among"),
    ],
)
def test_prompts_of_another_form_are_refused(changes: dict[str, Any], message: str, broken: Path) -> None:
    edit(broken / "config_sentence_transformers.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        assemble(broken)


def test_another_output_of_the_network_is_refused(broken: Path) -> None:
    text = {"method": "get_text_features", "method_output_name": None}
    edit(broken / "sentence_bert_config.json", modality_config={"text": text})
    with pytest.raises(CheckpointError, match="only last_hidden_state is supported"):
        assemble(broken)


def test_an_explicit_pooling_keeps_the_layers(matryoshka: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(matryoshka, tmp_path / "cls"))
    same(embed(assemble(matryoshka, pooling="mean")), reference(matryoshka))
    edit(folder / "1_Pooling" / "config.json", pooling_mode="cls")
    same(embed(assemble(matryoshka, pooling="cls")), reference(folder))


class TestPoolingWithPrompt(PostprocessorConformance):
    stage = "pooling"
    options = {"prompt": "I love this: ", "dimensions": 5, "pooling": "mean_sqrt_len"}  # noqa: RUF012
