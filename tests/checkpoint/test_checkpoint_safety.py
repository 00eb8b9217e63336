"""Nothing that a model folder holds is ever executed, and nothing in the package could do it."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoint_folders
import pytest

import pipeline_kit
from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.checkpoint.scan import FORBIDDEN_KEYS, UnsafeFiles
from pipeline_kit.errors import CheckpointError

PACKAGE = Path(pipeline_kit.__file__).parent


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that exists only if something hostile ran."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "code from a checkpoint was executed"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint_folders.make(tmp_path / "model")


def refusal(folder: Path, unsafe_files: UnsafeFiles = "refuse") -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve_checkpoint(CheckpointConfig(path=str(folder), unsafe_files=unsafe_files))
    return str(caught.value)


# Written out: a list that was imported from the package would lose a case together with it.
PICKLES = (
    ".bin", ".ckpt", ".dill", ".h5", ".joblib", ".msgpack", ".ot", ".pickle", ".pkl", ".PT", ".pt", ".pt2", ".pth",
)  # fmt: skip
CODE = (".dll", ".dylib", ".py", ".pyc", ".pyd", ".so")


def test_the_payload_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(("place", "suffix"), list(zip(itertools.cycle(("", "inner/")), PICKLES)))
def test_pickles(folder: Path, marker: Path, suffix: str, place: str) -> None:
    name = f"{place}weights{suffix}"
    checkpoint_folders.write(folder, {name: pickle.dumps(Payload(marker))})
    text = refusal(folder)
    assert name in text
    assert "checkpoint.unsafe_files=ignore" in text
    assert resolve_checkpoint(CheckpointConfig(path=str(folder), unsafe_files="ignore")).labels == (
        "NEGATIVE",
        "POSITIVE",
    )


@pytest.mark.parametrize("suffix", CODE)
def test_code(folder: Path, marker: Path, suffix: str) -> None:
    source = f"import pathlib; pathlib.Path({str(marker)!r}).touch()"
    checkpoint_folders.write(folder, {f"modeling{suffix}": source.encode(), f"__init__{suffix}": source.encode()})
    assert f"modeling{suffix}: such a file is code" in refusal(folder)[len(str(folder)) :]
    resolve_checkpoint(CheckpointConfig(path=str(folder), unsafe_files="ignore"))


def test_pickles_alone_say_how_to_convert(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    checkpoint_folders.write(folder, {"pytorch_model.bin": pickle.dumps(Payload(marker))})
    for unsafe_files in ("refuse", "ignore"):
        text = refusal(folder, unsafe_files)
        assert "save_pretrained('NEW')" in text
        assert "unsafe_files=ignore" not in text, "it would not help"


def test_many_pickles_are_counted_not_listed(folder: Path) -> None:
    checkpoint_folders.write(folder, {f"{i:03}.bin": b"" for i in range(50)})
    assert "004.bin and 45 more" in refusal(folder)


def test_a_pickle_called_safetensors(folder: Path, marker: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(marker), protocol))
        assert "model.safetensors" in refusal(folder, "ignore")


JSON_FILES = (
    *("config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"),
    *("modules.json", "special_tokens_map.json", "1_Pooling/config.json"),
)
HARMFUL: dict[str, Any] = {
    "auto_map": {"AutoModel": "modeling.Evil"},
    "trust_remote_code": True,
    "_attn_implementation_internal": "evil/kernel",
    "custom_pipelines": {"evil": {"impl": "pipeline.Evil"}},
    "_target_": "os.system",
    "configuration_files": ["config.4.0.0.json"],
    "transformers_weights": "../x.safetensors",
}


def test_every_forbidden_key_is_tried() -> None:
    assert set(HARMFUL) == set(FORBIDDEN_KEYS)


@pytest.mark.parametrize(
    ("file", "key"), [*zip(JSON_FILES, HARMFUL, strict=True), *(("config.json", key) for key in HARMFUL)]
)
def test_forbidden_keys(folder: Path, file: str, key: str) -> None:
    checkpoint_folders.write(folder, {file: json.dumps({"model_type": "bert", key: HARMFUL[key]}).encode()})
    text = refusal(folder)
    assert f"{folder / file}: the key '{key}'" in text
    assert "checkpoint.path=./copy" in text
    assert refusal(folder, "ignore") == text


def test_forbidden_keys_at_any_depth_and_however_they_are_written(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": [{"b": {"\\u0061uto_map": {"x": "y"}}}]}')
    assert "the key 'a[0].b.auto_map'" in refusal(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["evil/kernel", "evil/kernel@main:run", {"text": "evil/kernel"}, ["evil/kernel"]])
def test_kernels_from_the_hub(folder: Path, key: str, value: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"text_config": {key: value}}))
    text = refusal(folder)
    assert f"the key 'text_config.{key}' names the kernel 'evil/kernel" in text


def test_harmless_settings_pass(folder: Path) -> None:
    harmless = {
        "trust_remote_code": False,
        "auto_map": None,
        "_attn_implementation": "sdpa",
        "_name_or_path": "org/name",
    }
    more = {"auto_map": {}, "_attn_implementation_autoset": True, "architectures": ["auto_map"]}
    for settings in (harmless, more):
        (folder / "config.json").write_text(json.dumps({**checkpoint_folders.CONFIG, **settings}))
        resolve_checkpoint(CheckpointConfig(path=str(folder)))


def test_words_and_data_are_no_settings(folder: Path) -> None:
    word = json.dumps({"auto_map": 1, "trust_remote_code": 2}).encode()
    beside = {"vocab.json": word, "train.json": b'{"a": 1}\n{"a": 2}\n', "big.json": b"[" + b"1," * (3 << 20) + b"1]"}
    checkpoint_folders.write(folder, beside)
    resolve_checkpoint(CheckpointConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a":' * 100_000, "nested more than"),
        (b"[" * 100_000, "nested more than"),
        (b"{" + b" " * (5 << 20) + b"}", "larger than 4 MB"),
        (b"{'a': 1}", "not valid JSON"),
    ],
)
def test_hostile_json(folder: Path, content: bytes, expected: str) -> None:
    (folder / "generation_config.json").write_bytes(content)
    text = refusal(folder)
    assert "generation_config.json" in text
    assert expected in text


def test_an_adapter_would_load_another_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    assert "PEFT adapter" in refusal(folder, "ignore")


def test_hidden_folders_are_not_part_of_a_checkpoint(folder: Path) -> None:
    checkpoint_folders.write(folder, {".git/hooks/x.py": b"", ".cache/x.bin": b""})
    resolve_checkpoint(CheckpointConfig(path=str(folder)))


def test_a_folder_with_endless_files_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_kit.checkpoint.scan.MAX_FILES", 10)
    checkpoint_folders.write(folder, {f"{i}.txt": b"" for i in range(10)})
    assert "holds over 10 files" in refusal(folder)


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load"), ("os", "system")}


@functools.cache
def sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def dangers(tree: ast.AST) -> Iterator[str]:
    """Name every way in `tree` to run code that comes as data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
                yield str(node.module)
            yield from (f"{node.module}.{a.name}" for a in node.names if (node.module, a.name) in FORBIDDEN_METHODS)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            yield node.func.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in FORBIDDEN_METHODS:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.keyword):
            wanted = {"trust_remote_code": False, "weights_only": True, "allow_pickle": False, "use_safetensors": True}
            value = node.value.value if isinstance(node.value, ast.Constant) else "not a constant"
            if node.arg in wanted and value is not wanted[node.arg]:
                yield f"{node.arg}={value!r}"


def test_the_package_cannot_run_data() -> None:
    faults = {path: list(dangers(tree)) for path, tree in sources().items()}
    assert {path: found for path, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "import joblib.numpy_pickle", "from dill import loads", "from torch import load"),
        *("torch.load(x)", "f = torch.load", "np.load(x)", "eval('1')", "exec(x)", "__import__(x)"),
        *("f(trust_remote_code=True)", "f(trust_remote_code=config.trust)"),
        *("f(use_safetensors=None)", "f(weights_only=False)"),
    ],
)
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert list(dangers(ast.parse(code)))


def test_every_load_says_that_no_code_of_the_checkpoint_runs() -> None:
    keywords: list[set[str | None]] = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(node, ast.Call) and isinstance(called, ast.Attribute) and called.attr == "from_pretrained":
                keywords.append({keyword.arg for keyword in node.keywords})
                assert {"trust_remote_code", "local_files_only"} <= keywords[-1], f"{path}:{node.lineno}"
    assert any("use_safetensors" in given for given in keywords), "the model is loaded somewhere else"
