"""R9 and R12 in processes of their own: too little memory, and memory that does not grow with the input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import warm
from echo_job import dead_of, ids_of, lines_of, write_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and sizes of memory as Linux has them")


def python(code: str, *argv: object) -> dict[str, int]:
    done = warm.run("-c", code, *argv)
    assert done.returncode == 0, done.err[-3000:]
    found: dict[str, int] = json.loads(done.out)
    return found


LIMITED = """
import json, resource, sys
from pathlib import Path
import torch
from echo_job import EchoModel, echo, job_config, run_echo

class Greedy(EchoModel):
    refused = 0

    def forward(self, batch):
        each = torch.tensor([1 + 3 * (97 in row) for row in batch.input_ids.tolist()])
        try:
            torch.empty(int(each.sum()) << 26, dtype=torch.uint8).fill_(1)  # 64 MiB a row, 256 for one with an a
        except BaseException:
            Greedy.refused += 1
            raise
        return super().forward(batch)

source, out = map(Path, sys.argv[1:])
config = job_config("job.max_failed_rows=null", "output.rows_per_shard=100")
run_echo(config, [source], out.with_name("warm"))
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20), size + (200 << 20)))
run_echo(config, [source], out, build=lambda config: echo(config, model=Greedy()))
print(json.dumps({"refused": Greedy.refused}))
"""


def test_a_process_with_little_memory_halves_its_batches(tmp_path: Path) -> None:
    """Room for two rows at a time: batches are halved, and the one row that never fits is kept aside."""
    texts = [f"row {i}".replace("a", "") for i in range(8)]
    texts[5] = "aaaa"
    rows = write_rows(tmp_path / "in.jsonl", [{"text": text.replace("row", "rw")} for text in texts])
    found = python(LIMITED, rows, tmp_path / "out")
    assert found["refused"] >= 3
    assert ids_of(lines_of(tmp_path / "out")) == [f"in.jsonl:{i + 1}" for i in range(8) if i != 5]
    (letter,) = dead_of(tmp_path / "out")
    assert (letter["id"], letter["stage"]) == ("in.jsonl:6", "model")


GROWTH = """
import json, sys
from pathlib import Path
from echo_job import job_config, run_echo

def size():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10

folder = Path(sys.argv[1])
config = job_config("output.rows_per_shard=500", "job.max_failed_rows=null")
sizes = []
for rows in (1_000, 10_000):
    source = folder / f"in-{rows}.txt"
    with source.open("w") as file:
        for number in range(rows):
            file.write(f"row {number} " + "x" * (number % 300) + ("~p" if number % 50 == 0 else "") + "\\n")
    summary = run_echo(config, [source], folder / f"out-{rows}")
    assert (summary.rows, summary.dead) == (rows, rows // 50)
    sizes.append(size())
print(json.dumps({"once": sizes[0], "ten": sizes[1]}))
"""


def test_ten_times_the_input_takes_no_more_memory(tmp_path: Path) -> None:
    found = python(GROWTH, tmp_path)
    assert found["ten"] - found["once"] < 10 << 20
