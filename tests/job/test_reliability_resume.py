"""R4 and R6: a job is never mixed with another one, and what was damaged is noticed and done again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from echo_job import content_of, dead_of, job_config, run_echo, write_rows
from harness import checkpoint

from pipeline_kit.errors import OutputError, UsageError
from pipeline_kit.job.folder import JobFolder
from pipeline_kit.job.manifest import read_manifest

GIVEN = ("job.max_failed_rows=null", "input.carry=[n]")


@dataclass
class Setting:
    """A complete job, and what it was made of."""

    checkpoint: Path
    source: Path
    out: Path

    def run(self, *overrides: str, names: tuple[Path, ...] = ()) -> None:
        run_echo(job_config(*GIVEN, *overrides, at=self.checkpoint), names or (self.source,), self.out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("resume")
    texts = [f"row {i}" + ("~p" if i == 4 else "") for i in range(8)]
    source = write_rows(folder / "in.jsonl", [{"text": text, "n": i, "m": i} for i, text in enumerate(texts)])
    setting = Setting(checkpoint(), source, folder / "out")
    setting.run()
    return setting


@pytest.fixture
def setting(made: Setting, tmp_path: Path) -> Setting:
    """The same job, whose files a test may change."""
    folder = Path(shutil.copytree(made.checkpoint, tmp_path / "bert"))
    out = Path(shutil.copytree(made.out, tmp_path / "out"))
    source = Path(shutil.copy2(made.source, tmp_path / "in.jsonl"))
    renamed = Setting(folder, source, out)
    manifest = (out / "_manifest.json").read_text()
    if str(made.checkpoint) in manifest:  # the path of the checkpoint is a part of the config
        shutil.rmtree(out)
        renamed.run()
    return renamed


# One option of each group, and every option of the groups whose options look as if they changed nothing.
CONFIG = (
    "task.name=fill-mask",
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


def damages(whole: bytes, step: int) -> Iterator[tuple[bool, bytes]]:
    """Yield `whole` cut at every byte, then with one bit flipped at every `step`-th; whether it was cut."""
    for length in range(len(whole.rstrip())):
        yield True, whole[:length]
    for place in range(0, len(whole), step):
        yield False, whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]


def test_a_manifest_or_receipt_cut_at_any_byte_or_with_any_bit_flipped_is_noticed(
    made: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory: what is read is replaced, not the file."""
    content = b""
    folder = JobFolder(str(made.out))
    name = "part-00001.json"
    monkeypatch.setattr(JobFolder, "read", lambda self, name: content)
    manifest, receipt = made.out / "_manifest.json", made.out / "_receipts" / name
    job = json.loads(receipt.read_bytes())["job"]
    readers: list[tuple[Path, int, Callable[[], Any]]] = [
        (manifest, 3, lambda: read_manifest(folder)),
        (receipt, 1, lambda: folder.receipt(name, job)),
    ]
    for path, step, read in readers:
        content = whole = path.read_bytes()
        known = read()
        assert known is not None
        for cut, content in damages(whole, step):  # noqa: B007 - what `read` returns
            if cut and path == manifest:
                with pytest.raises(OutputError, match="cannot be told what the job is; add --restart"):
                    read()
                continue
            with suppress(OutputError):
                found = read()
                assert found is None or (found == known and not cut), "only white space may differ"


@pytest.mark.parametrize("name", ["part-00001.jsonl", "_dead/part-00001.jsonl", "_receipts/part-00001.json"])
def test_a_damaged_file_alone_is_done_again(setting: Setting, name: str) -> None:
    expected = content_of(setting.out)
    path = setting.out / name
    whole = path.read_bytes()
    assert dead_of(setting.out), "the shard has a dead letter"
    flipped = whole[:40] + bytes([whole[40] ^ 4]) + whole[41:]
    for damage in (b"", whole[: len(whole) // 2], whole[:-2], flipped, None):
        before = {
            other: os.stat(other).st_mtime_ns for other in setting.out.glob("part-*") if "00001" not in other.name
        }
        path.unlink() if damage is None else path.write_bytes(damage)
        setting.run()
        assert content_of(setting.out) == expected
        assert json.loads((setting.out / "_receipts" / "part-00001.json").read_bytes())["rows"] == 3
        assert {other: os.stat(other).st_mtime_ns for other in before} == before, "no other shard was touched"
