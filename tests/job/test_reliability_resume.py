"""R4 and R6: a job is never mixed with another one, and what was damaged is noticed and done again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from echo_job import content_of, dead_of, echo_config, run_echo, write_rows

from pipeline_kit.errors import OutputError, UsageError
from pipeline_kit.job.manifest import read_manifest
from pipeline_kit.job.receipt import read_receipt
from pipeline_kit.testing import tiny_checkpoint

GIVEN = ("job.max_failed_rows=null", "input.carry=[n]")


@dataclass
class Setting:
    """A complete job, and what it was made of."""

    checkpoint: Path
    source: Path
    out: Path

    def run(self, *overrides: str, names: tuple[Path, ...] = ()) -> None:
        run_echo(echo_config(self.checkpoint, *GIVEN, *overrides), names or (self.source,), self.out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("resume")
    texts = [f"row {i}" + ("~p" if i == 4 else "") for i in range(8)]
    source = write_rows(folder / "in.jsonl", [{"text": text, "n": i, "m": i} for i, text in enumerate(texts)])
    setting = Setting(tiny_checkpoint(folder / "bert"), source, folder / "out")
    setting.run()
    return setting


@pytest.fixture
def setting(made: Setting, tmp_path: Path) -> Setting:
    """The same job, whose files a test may change."""
    checkpoint = Path(shutil.copytree(made.checkpoint, tmp_path / "bert"))
    out = Path(shutil.copytree(made.out, tmp_path / "out"))
    source = Path(shutil.copy2(made.source, tmp_path / "in.jsonl"))
    renamed = Setting(checkpoint, source, out)
    manifest = (out / "_manifest.json").read_text()
    if str(made.checkpoint) in manifest:  # the path of the checkpoint is a part of the config
        shutil.rmtree(out)
        renamed.run()
    return renamed


# One option of each group, and every option of the groups whose options look as if they changed nothing.
CONFIG = (
    "task.name=other",
    "tokenizer.max_length=20",
    "tokenizer.overflow=window",
    "model.linear=eager",
    "model.attn_implementation=eager",
    "postprocessor.top_k=2",
    "padding=max_length",
    "padding.side=left",
    "batching=fixed",
    "batching.max_tokens=77",
    "batching.window=99",
    "device.dtype=bfloat16",
    "input.carry=[n,m]",
    "input.id=n",
    "input.limit=7",
    "input.skip=1",
    "input.shard=0/2",
    "input.fields.text=m",
    "input.format=jsonl",
    "output.format=csv",
    "output.rows_per_shard=4",
    "output.types.n=float64",
    "output.compression=snappy",
)


@pytest.mark.parametrize("override", CONFIG)
def test_one_option_changed_is_refused_and_named(made: Setting, override: str) -> None:
    before = content_of(made.out)
    with pytest.raises(UsageError, match="holds a job that is not this one") as caught:
        made.run(override)
    key = override.split("=")[0]
    named = differing(caught.value)
    assert any(name.startswith(f"config.{key.split('.')[0]}") for name in named)
    assert "." not in key or f"config.{key}" in {name.split("[")[0] for name in named}
    assert all(name.startswith("config.") for name in named), "nothing else differs"
    assert content_of(made.out) == before


def differing(error: UsageError) -> list[str]:
    lines = str(error).splitlines()
    return [line.strip().split(": ")[0] for line in lines if " before, " in line]


@pytest.mark.parametrize("override", ["job.max_failed_rows=1", "job.max_failed_rows='50%'"])
def test_when_to_stop_is_no_part_of_what_a_job_is(made: Setting, override: str) -> None:
    made.run(override)


INPUTS: dict[str, tuple[Callable[[str], str], str]] = {
    "one letter": (lambda text: text.replace("row 3", "row x"), "sha256"),
    "a row more": (lambda text: text + '{"text": "more"}\n', "size"),
    "one row less": (lambda text: text.rsplit("\n", 2)[0] + "\n", "size"),
    "another order": (lambda text: "\n".join(text.split("\n")[::-1]), "sha256"),
}


@pytest.mark.parametrize("change", INPUTS)
def test_another_input_is_refused(setting: Setting, change: str) -> None:
    work, key = INPUTS[change]
    setting.source.write_text(work(setting.source.read_text()))
    with pytest.raises(UsageError) as caught:
        setting.run()
    assert f"input[0].{key}" in differing(caught.value)
    assert all(name.startswith("input[0].") for name in differing(caught.value))


def test_files_more_less_renamed_or_in_another_order_are_refused(setting: Setting) -> None:
    other = Path(shutil.copy(setting.source, setting.source.with_name("other.jsonl")))
    for names in ((setting.source, other), (other,), (other, setting.source)):
        with pytest.raises(UsageError, match="input"):
            setting.run(names=names)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_bit_of_the_checkpoint_is_refused(setting: Setting, name: str) -> None:
    path = setting.checkpoint / name
    content = path.read_bytes()
    path.write_bytes(content + b"\n" if name.endswith(".json") else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UsageError) as caught:
        setting.run()
    assert differing(caught.value) == [f"checkpoint.files.{name}"]


@pytest.mark.parametrize("library", ["pipeline-kit", "torch", "transformers", "tokenizers", "safetensors"])
def test_another_version_is_refused(made: Setting, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    from pipeline_kit.job import manifest as identity

    real = identity._version
    monkeypatch.setattr(identity, "_version", lambda name: "0.0.1" if name == library else real(name))
    if library == "pipeline-kit":
        monkeypatch.setattr(identity, "__version__", "0.0.1")
    with pytest.raises(UsageError) as caught:
        made.run()
    assert differing(caught.value) == [f"versions.{library}"]


def test_a_manifest_cut_at_any_byte_or_with_any_bit_flipped_is_noticed(made: Setting, tmp_path: Path) -> None:
    whole, path = (made.out / "_manifest.json").read_bytes(), tmp_path / "_manifest.json"
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        with pytest.raises(OutputError, match="cannot be told what the job is; add --restart"):
            read_manifest(path)
    known = read_manifest(made.out / "_manifest.json")
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            found = read_manifest(path)
        except OutputError:
            continue
        assert found == known, f"byte {place}: only white space may differ"


def test_a_receipt_cut_at_any_byte_or_with_any_bit_flipped_is_none(made: Setting, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    for number in (0, 1):
        receipt = made.out / "_receipts" / f"part-{number:05d}.json"
        whole, known = receipt.read_bytes(), read_receipt(receipt)
        assert known is not None
        for length in range(len(whole.rstrip())):
            path.write_bytes(whole[:length])
            assert read_receipt(path) is None
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
            found = read_receipt(path)
            assert found is None or found == known


@pytest.mark.parametrize("name", ["part-00001.jsonl", "_dead/part-00001.jsonl", "_receipts/part-00001.json"])
def test_a_damaged_file_alone_is_done_again(setting: Setting, name: str) -> None:
    expected = content_of(setting.out)
    path = setting.out / name
    whole = path.read_bytes()
    assert dead_of(setting.out), "the shard has a dead letter"
    damages = [whole[:length] for length in range(0, len(whole) - 1, max(1, len(whole) // 8))]
    damages += [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in range(0, len(whole), 40)]
    for damage in [*damages, None]:
        before = {
            other: os.stat(other).st_mtime_ns for other in setting.out.glob("part-*") if "00001" not in other.name
        }
        path.unlink() if damage is None else path.write_bytes(damage)
        setting.run()
        assert content_of(setting.out) == expected
        assert json.loads((setting.out / "_receipts" / "part-00001.json").read_bytes())["rows"] == 3
        assert {other: os.stat(other).st_mtime_ns for other in before} == before, "no other shard was touched"
