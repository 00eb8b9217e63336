"""Runs the command line on random output paths with links, stray files and kills around it, and looks at what is left.

A process of its own, as ``job_killer.py`` is and for the same reason. Usage: ``storm_folders.py FOLDER SEED TRIALS``;
prints one line of JSON. It ends with an error at the first trial that breaks a promise.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from echo_job import echo, job_config
from job_killer import die_before, run

import pipeline_kit.compose.build
from pipeline_kit.cli.app import main
from pipeline_kit.cli.selection import Selection

ROWS = 7
STRAY = ["part-00077.jsonl", "part-00001.jsonl", "part-00002.jsonl", "part-00000.retry-1.jsonl", "part-00000.npy"]
STRAY += ("_dead/part-00000.jsonl", "_dead/part-00001.jsonl", "_dead/note", "_receipts/part-00000.json", "part-x.jsonl")
STRAY += ("_receipts/part-00009.json", "_receipts/part-00001.begun.json", "_lock", "_SUCCESS", "_manifest.json")
STRAY += (".DS_Store", "._part-00000.jsonl", "Thumbs.db", ".nfs0001", "notes.txt", ".pipeline-kit-notes.tmp")
OUTPUTS = ("out", "out/", "./out", "deep/../out", "deep/out", "out.jsonl", "deep/out.jsonl", "none/out", "linked/out")
ACTIONS = ("run", "run", "kill", "kill", "retry", "restart")


class Broken(Exception):
    """A promise was broken."""


class Trial:
    """One folder in which everything happens, and what must still be there at the end."""

    def __init__(self, folder: Path, seed: random.Random) -> None:
        self.folder, self.seed = folder, seed
        self.theirs: list[bytes] = []
        self.faulty = seed.random() < 0.4
        self.output = seed.choice(OUTPUTS)
        self.trail: list[str] = [self.output]
        for path in (folder / "deep", folder / "elsewhere"):
            path.mkdir(parents=True)
        (folder / "linked").symlink_to("deep")
        rows = [{"text": f"row {i}" + ("~p" if self.faulty and i == 4 else ""), "id": f"r{i}"} for i in range(ROWS)]
        (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    @property
    def path(self) -> Path:
        return Path(os.path.normpath(self.folder / self.output))

    def new(self) -> bytes:
        """Content that nobody else has."""
        self.theirs.append(f"theirs {len(self.theirs)} {self.seed.random()}\n".encode())
        return self.theirs[-1]

    def disturb(self) -> None:
        """Put a file or a link of somebody else where a run may write; what is there is never replaced."""
        out, name = self.path, self.seed.choice(STRAY)
        target = out / name if out.is_dir() else out
        if os.path.lexists(target) or not target.parent.is_dir():
            return
        how = self.seed.choice(("file", "file", "file", "link", "dangling", "folder link", "folder", "pipe"))
        self.trail.append(f"{how} {target.relative_to(self.folder)}")
        if how == "file" and target == out:
            target.write_bytes(b"replaced, since the user named it\n")
        elif how == "file":
            target.write_bytes(self.new())
        elif how == "link":
            victim = self.folder / "elsewhere" / f"victim-{len(self.theirs)}"
            victim.write_bytes(self.new())
            target.symlink_to(victim)
        elif how == "dangling":
            target.symlink_to(self.folder / "elsewhere" / "none")
        elif how == "folder link":
            target.symlink_to(self.folder / "elsewhere", target_is_directory=True)
        elif how == "pipe":
            os.mkfifo(target)
        else:
            target.mkdir()
            (target / "file").write_bytes(self.new())

    def act(self) -> int | None:
        """Run the command; None if it was killed."""
        action = self.seed.choice(ACTIONS)
        self.trail.append(action)
        words = ["run", "--input", "in.jsonl", "--output", self.output, "--quiet"]
        words += [f"--{action}"] if action in ("retry", "restart") else []
        codes: list[int] = []
        if action == "kill":
            step = self.seed.randrange(1, 60)

            def killed() -> None:
                die_before(step)
                quietly(words)

            return None if not run(killed) else quietly(words)
        codes.append(quietly(words))
        return codes[0]

    def look(self, code: int | None) -> None:
        """See that what is somebody else's is as it was, and that a run that was well left what it should."""
        self.trail.append(f"code {code}")
        found = {}
        for above, _, names in os.walk(self.folder):
            for path in (Path(above) / name for name in names):
                if path.is_file() and not path.is_symlink():
                    found[path] = path.read_bytes()
        for content in self.theirs:
            if content not in found.values():
                raise Broken(f"{content!r} is gone")
        if any(self.folder / "elsewhere" in path.parents and data not in self.theirs for path, data in found.items()):
            raise Broken("a link was followed")
        if code not in (0, 1, 2, None):
            raise Broken(f"exit code {code}")
        success = self.path / "_SUCCESS"  # a link or a file of somebody else makes a run refuse the folder
        if code == 0 or (code == 1 and success in found and found[success] not in self.theirs):
            self.look_whole(code, found)

    def look_whole(self, code: int, found: dict[Path, bytes]) -> None:
        """See that all rows are there, once, and nothing else among them."""
        mine = [path for path in found if path.parent == self.path.parent or self.path in path.parents]
        left = [path.name for path in mine if path.suffix == ".tmp" and found[path] not in self.theirs]
        if left:
            raise Broken(f"left over: {left}")
        if not self.path.is_dir():
            ids = [json.loads(line).get("label") for line in self.path.read_bytes().splitlines()]
            if ids != [f"row {i}" for i in range(ROWS)]:
                raise Broken(f"{self.path.name} holds {ids}")
            return
        if code == 1 and not self.faulty:
            return  # refused, and a run before was whole
        shards = sorted(path for path in self.path.glob("part-0*.jsonl"))
        if code == 0 and any(found.get(path) in self.theirs or path.is_symlink() for path in shards):
            raise Broken("a file of somebody else is among the shards")
        if code == 0:
            written, dead = ids_of(shards), ids_of(sorted((self.path / "_dead").glob("part-*.jsonl")))
            if sorted(written + dead) != [f"r{i}" for i in range(ROWS)] or not (self.path / "_SUCCESS").is_file():
                raise Broken(f"written {written}, dead {dead}")
            if bool(dead) or self.faulty:
                raise Broken("exit code 0, and a row failed")


def ids_of(paths: list[Path]) -> list[str]:
    return [json.loads(line)["id"] for path in paths for line in path.read_bytes().splitlines()]


def quietly(words: list[str]) -> int:
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    if "internal error" in told.getvalue() or "Traceback" in told.getvalue():
        raise Broken(told.getvalue())
    return code


def storm(folder: Path, seed: int, trials: int) -> dict[str, Any]:
    options = ("job.max_failed_rows=null", "input.id=id", "output.rows_per_shard=2")
    config = job_config(*options)
    os.fsync = lambda fd: None  # as in job_killer.py
    Selection.compositions = lambda *_: [([], config)]  # type: ignore[method-assign]
    pipeline_kit.compose.build.build = echo  # type: ignore[assignment]
    codes: Counter[str] = Counter()
    gc.freeze()
    for number in range(trials):
        source = random.Random(f"{seed} {number}")
        trial = Trial(folder / f"trial-{number}", source)
        os.chdir(trial.folder)
        try:
            for _ in range(source.randrange(2, 5)):
                for _ in range(source.choice((0, 0, 1, 2))):
                    trial.disturb()
                code = trial.act()
                trial.look(code)
                codes[str(code)] += 1
        except Exception as error:
            raise SystemExit(f"trial {number}: {type(error).__name__}: {error}\n  {'; '.join(trial.trail)}") from error
    return {"trials": trials, "codes": codes}


if __name__ == "__main__":
    folder, seed, trials = sys.argv[1:]
    sys.stdout.write(json.dumps(storm(Path(folder), int(seed), int(trials))) + "\n")
