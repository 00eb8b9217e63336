"""Good and bad rows end up in one order, in bounded memory, as lines that are JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_kit.cli.outputs import MOST_WAITING, print_table, run_rows
from pipeline_kit.cli.progress import MOST_SHOWN, Failures, ProgressBar, summary
from pipeline_kit.contract.types import Device, Example, Result, RunStats
from pipeline_kit.errors import RowFailure
from pipeline_kit.files.json_text import json_line
from pipeline_kit.files.read.paths import Record

BAD = RowFailure(0, "input", "InputError", "line 1: bad")


class Echo:
    """Gives each text back; reads `chunk` examples ahead as a pipeline does. Texts with '!' fail."""

    def __init__(self, chunk: int = 3) -> None:
        self.chunk = chunk

    def results_or_failures(
        self, examples: Iterable[Example], stats: RunStats | None = None
    ) -> Iterator[Result | RowFailure]:
        assert stats is not None
        source, place = iter(examples), 0
        while chunk := list(islice(source, self.chunk)):
            for example in chunk:
                failed = "!" in example
                stats.rows += 1
                stats.failed += failed
                yield RowFailure(place, "model", "ValueError", "boom") if failed else {"text": example}
                place += 1


@given(st.lists(st.sampled_from(["a", "b!", BAD])), st.integers(1, 5))
def test_rows_keep_their_order_and_count(records: list[Record], chunk: int) -> None:
    stats = RunStats()
    found = list(run_rows(Echo(chunk), records, stats))
    assert [row.example for row in found] == [None if record is BAD else record for record in records]
    for index, (row, record) in enumerate(zip(found, records, strict=True)):
        assert json.loads(row.line) == row.value
        if record == "a":
            assert row.value == {"text": "a"}
            assert row.failure is None
        else:
            assert row.failure is not None
            assert row.failure.index == index
            assert row.value["error"]["stage"] == row.failure.stage == ("input" if record is BAD else "model")
    assert stats.rows == len(records)
    assert stats.failed == len(records) - records.count("a")


def test_a_stream_of_bad_rows_alone_waits_for_nothing() -> None:
    read = 0

    def endless() -> Iterator[Record]:
        nonlocal read
        while True:
            read += 1
            yield BAD

    rows = run_rows(Echo(), endless(), RunStats())
    for index in range(3 * MOST_WAITING):
        row = next(rows)
        assert row.failure is not None
        assert row.failure.index == index
        assert read <= index + 1 + MOST_WAITING


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}, b"x"])
def test_a_result_that_is_no_json_fails_its_row(value: Any) -> None:
    class Strange(Echo):
        def results_or_failures(
            self, examples: Iterable[Example], stats: RunStats | None = None
        ) -> Iterator[Result | RowFailure]:
            for outcome in super().results_or_failures(examples, stats):
                yield {"score": value} if outcome == {"text": "odd"} else outcome

    stats = RunStats()
    before, row, after = run_rows(Strange(), ["a", "odd", "b"], stats)
    assert (before.value, after.value) == ({"text": "a"}, {"text": "b"})
    assert row.failure is not None
    assert (row.failure.index, row.failure.stage) == (1, "postprocessor")
    assert "cannot be written as JSON" in row.value["error"]["message"]
    assert (stats.rows, stats.failed) == (3, 1)


def test_lines_are_utf8_whatever_is_in_them() -> None:
    assert json_line({"text": "日本\u2028"}) == '{"text": "日本\u2028"}'
    assert json.loads(json_line({"text": "\ud800"})) == {"text": "\ud800"}
    json_line({"text": "\ud800"}).encode()


def test_error_messages_are_cut_and_escaped() -> None:
    record = RowFailure(0, "input", "InputError", "\x1b[2J" + "x" * 10_000)
    (row,) = run_rows(Echo(), [record], RunStats())
    assert row.value["error"]["message"].startswith("\\x1b[2Jx")
    assert len(row.line) < 700


def test_failures_are_told_one_by_one_then_counted(capsys: pytest.CaptureFixture[str]) -> None:
    failures = Failures()
    for _ in range(MOST_SHOWN + 5):
        failures.add(RowFailure(7, "model", "ValueError", "a\nb"))
    failures.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "row 7 failed: model: ValueError: a\\nb"
    assert lines[-1] == "... and 5 more rows failed; the results say why"
    assert len(lines) == MOST_SHOWN + 1


def test_a_bar_appears_only_after_a_second_and_only_for_a_person(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    now = [100.0]
    monkeypatch.setattr("pipeline_kit.cli.progress.monotonic", lambda: now[0])
    for person in (True, False):
        monkeypatch.setattr("pipeline_kit.cli.progress.is_terminal", lambda stream, there=person: there)
        asked: list[int] = []

        def count(asked: list[int] = asked) -> int:
            asked.append(1)
            return 10

        with ProgressBar(count) as bar:
            bar.advance()
            assert asked == []
            now[0] += 1.5
            bar.advance()
            with bar.paused():
                bar.advance()
        assert asked == ([1] if person else [])
        assert ("/10" in capsys.readouterr().err) == person


def test_the_summary_says_what_happened() -> None:
    stats = RunStats(rows=2000, failed=3, truncated_rows=4, tokens=75, padded_tokens=100)
    text = summary(stats, Device("cpu", "float32", 1), 2.0)
    assert text == (
        "2,000 rows, 3 failed, 4 truncated in 2.00 s (1,000 rows/s, 38 tokens/s), padding 25.0%, cpu float32, 1 thread"
    )
    assert "threads" not in summary(stats, Device("cuda:0", "bfloat16", 4), 0.0)


def test_a_table_shows_rows_without_obeying_them(capsys: pytest.CaptureFixture[str]) -> None:
    found = list(run_rows(Echo(), ["[red]x[/red]\x1b[2J", "y!", {"text": "p", "text_pair": "q"}, BAD], RunStats()))
    print_table(found, "a=[b]")
    shown = capsys.readouterr().out
    assert "a=[b]" in shown
    assert "[red]x[/red]\\x1b[2J" in shown
    assert "\x1b" not in shown
    assert "p | q" in shown
    assert "boom" in shown
    assert "line 1: bad" in shown
