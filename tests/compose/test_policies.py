"""Policies, devices and runners of a plugin: chosen by name, with options of their own."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from fake_plugins import ROOT
from harness import cli

import pipeline_kit as pk
from pipeline_kit.compose import plugins
from pipeline_kit.files.read import formats
from pipeline_kit.files.write import base
from pipeline_kit.job.run import run_job
from pipeline_kit.testing import compose_config

PLUGIN = str(ROOT / "tests" / "policy_plugin.py")
TEXTS = ["short", "A text of a few more words than that.", "I hate it, and I would not do it again!", "ok", "so so"]


def test_a_padding_policy_pads_as_it_says_and_changes_no_answer() -> None:
    pipe = pk.load("padding=buckets", "padding.sizes=[16,40]", "device=cpu", plugins=[PLUGIN])
    assert [pipe.padding.padded(n) for n in (1, 16, 17, 41)] == [16, 16, 40, 41]
    assert pipe.description["padding"]["name"] == "buckets"
    plain = pk.load("device=cpu")(TEXTS)
    assert [r["label"] for r in pipe(TEXTS)] == [r["label"] for r in plain]
    assert [r["score"] for r in pipe(TEXTS)] == pytest.approx([r["score"] for r in plain], abs=1e-5)


def test_a_batching_policy_plans_and_one_that_loses_a_row_is_told() -> None:
    pipe = pk.load("batching=alone", "device=cpu", plugins=[PLUGIN])
    assert pipe.batch(pipe.tokenizer.encode(TEXTS)) == [[4], [3], [2], [1], [0]]
    assert [r["label"] for r in pipe(TEXTS)] == [r["label"] for r in pk.load("device=cpu")(TEXTS)]
    lossy = pk.load("batching=lossy", "device=cpu", plugins=[PLUGIN])
    with pytest.raises(pk.PipelineKitError, match="batching=lossy does not put each of 5 rows into exactly one batch"):
        lossy(TEXTS)


def test_a_device_is_resolved_by_its_plugin() -> None:
    assert pk.load("device=npu", "device.threads=1", plugins=[PLUGIN]).device.threads == 1


def test_a_runner_in_another_order_writes_the_bytes_of_the_local_one(tmp_path: Path) -> None:
    rows = [{"text": text * n, "n": n} for n in range(1, 4) for text in TEXTS]
    shared = ("output.rows_per_shard=2", "device=cpu", "input.carry=[n]", "output.format=parquet")
    for name in ("local", "backwards"):
        run_job(f"runner={name}", *shared, rows=rows, output=tmp_path / name, plugins=[PLUGIN])
    local, backwards = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).glob("part-*"))}
        for name in ("local", "backwards")
    )
    assert len(local) == 8
    assert backwards == local


def test_options_are_those_of_the_policy_that_is_chosen() -> None:
    with pytest.raises(pk.PipelineKitError) as caught:
        compose_config("padding=buckets", "padding.sizs=[3]", "runner=backwards", "runner.noet=a", plugins=[PLUGIN])
    text = str(caught.value)
    assert "padding.sizs: unknown option. Did you mean 'sizes'?" in text
    assert "padding.sizes: is required: lengths that a batch may have" in text
    assert "runner.noet: unknown option. Did you mean 'note'?" in text


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(pk.PipelineKitError) as caught:
        compose_config("padding=bucket", "batching.name=fixd", plugins=[PLUGIN])
    assert "padding=bucket: no such option. Did you mean 'buckets'?" in str(caught.value)
    assert "batching=fixd: no such option. Did you mean 'fixed'?" in str(caught.value)


def test_what_is_registered_must_be_what_the_kind_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    body = "from pipeline_kit.kit import PaddingConfig, BatchingConfig, DeviceConfig\ndef register(registry):\n"
    body += "    registry.add('padding', 'wrong', 'os.path:join', PaddingConfig)\n"
    body += "    registry.add('batching', 'wrong', 'os.path:join', PaddingConfig)\n"
    body += "    registry.add('device', 'wrong', 'os.path:join', DeviceConfig)\n"
    path.write_text(body)
    with pytest.raises(pk.PipelineKitError, match=r"'os\.path:join' is not a PaddingPolicy; see docs/plugins\.md"):
        pk.load("padding=wrong", plugins=[str(path)])
    with pytest.raises(pk.PipelineKitError, match="batching=wrong: its options 'PaddingConfig' do not extend Batch"):
        pk.load("batching=wrong", plugins=[str(path)])


@pytest.mark.parametrize("group", ["padding", "batching", "device", "runner"])
def test_built_in_ones_are_registered_in_the_same_way(group: str) -> None:
    done = cli("ls", group)
    assert done.code == 0
    assert all(name in done.out for name in compose_config().policies[group].name.split())
    assert "pipeline_kit.builtin" not in done.out


VERSES = "one\nI love this.\n%\ntwo\nI hate this.\n%\ntorn"


def test_a_format_is_read_and_written_by_the_ending(tmp_path: Path) -> None:
    source, out = tmp_path / "in.verse", tmp_path / "out.verse"
    source.write_text(VERSES)
    words = ("--input", source, "--plugin", PLUGIN, "device=cpu", "input.id=title")
    done = cli("run", *words, "--output", out)
    assert done.code == 1
    assert "in.verse, line 3: a verse has a title and a text" in done.err
    first, second = out.read_text().split("%\n")[:2]
    assert first.startswith('one\n{"id": "one", "label": "POSITIVE"')
    assert '"label": "NEGATIVE"' in second
    job = cli("run", *words, "--output", f"{tmp_path / 'job'}/", "--format", "verse", "job.max_failed_rows=1")
    assert job.code in (0, 1), job.err
    assert (tmp_path / "job" / "part-00000.verse").read_text().startswith('one\n{"id": "one", "label": "POSITIVE"')


def test_an_ending_loads_the_installed_plugin_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (base.PLUGGED, formats.PLUGGED):
        monkeypatch.delitem(table, "verse", raising=False)
    monkeypatch.setenv(plugins.ALLOW, "verse")
    entry = EntryPoint("verse", "policy_plugin:register", plugins.GROUP)
    monkeypatch.setattr(plugins, "_entry_points", lambda: (entry,))
    plugins.load_registry()
    assert [base.ending_of(Path(name)) for name in ("a.verse", "a.verse.gz", "a.vers")] == ["verse", "verse", None]


def test_the_format_flag_knows_those_of_plugins(tmp_path: Path) -> None:
    words, out = ("--text", "ok", "--plugin", PLUGIN, "device=cpu"), tmp_path / "out.block"
    assert cli("run", *words, "--output", out, "--format", "verse").code == 0
    assert out.read_text().startswith('\n{"label": ')
    for given, more in (
        (("--format", "verse"), "--format verse is for files: pass --output FILE.verse"),
        (("--format", "tabel"), "the choices are jsonl, table, csv, parquet, verse. Did you mean 'table'?"),
        (("--format", "vers", "--output", tmp_path / "out"), "Did you mean 'verse'?"),
        (("--format", "verse", "--output", tmp_path / "a.csv"), "the ending says csv, the format asked for is verse"),
    ):
        done = cli("run", *words, *given)
        assert (done.code, more in done.err) == (2, True), done.err


def test_the_flag_for_the_format_of_files_knows_those_of_plugins(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text(VERSES)
    words = ("--input", source, "--plugin", PLUGIN, "device=cpu", "input.id=title")
    assert '"id": "two"' in cli("run", *words, "--input-format", "verse").out
    done = cli("run", *words, "--input-format", "vers")
    assert done.code == 2
    assert "Did you mean 'verse'?\n  allowed: arrow, csv, jsonl, parquet, text, tsv, verse" in done.err
    assert "or a plugin's, see: pipeline-kit ls input_format" in " ".join(cli("run", "--help").out.split())


def test_a_format_that_nobody_has_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(pk.PipelineKitError) as caught:
        compose_config("input.format=vers", "output.format=jsnl", plugins=[PLUGIN])
    assert "input.format=vers: no such option. Did you mean 'verse'?" in str(caught.value)
    assert "output.format=jsnl: no such option. Did you mean 'jsonl'?" in str(caught.value)


def test_python_sets_the_options_of_a_policy_of_a_plugin() -> None:
    pipe = pk.load(padding={"name": "buckets", "sizes": [16, 40]}, device="cpu", plugins=[PLUGIN])
    assert pipe.padding.padded(3) == 16
