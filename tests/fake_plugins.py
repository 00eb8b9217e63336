"""Plugins that seem to be installed: a package and its dist-info in a folder on ``sys.path``."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pipeline_kit

__all__ = ["BODY", "ROOT", "install", "installed_by_hand", "marker"]

ROOT = Path(pipeline_kit.__file__).parents[1]

BODY = '''
from dataclasses import dataclass
from pathlib import Path
from pipeline_kit import option

Path({marker!r}).touch()

@dataclass
class Config:
    """Options."""

    limit: int = option(3, "a number", minimum=1)

def register(registry):
    registry.postprocessor({stage!r}, "{package}.stage:Stage", Config, summary="for a test")
'''
"""A module that leaves a file behind when it is imported, and registers one stage."""


def marker(site: Path, package: str) -> Path:
    """The file that importing a package made with `BODY` leaves behind."""
    return site / f"{package}.imported"


def install(
    site: Path, package: str, *, name: str | None = None, stage: str | None = None, body: str = BODY, value: str = ""
) -> str:
    """Put a plugin into `site`.

    :param name: of the entry point; the package's without ``pk_`` if not given.
    :param stage: what it registers; the entry point's name if not given.
    :param body: its source, in which ``{marker!r}``, ``{stage!r}`` and ``{package}`` are filled in.
    :param value: of the entry point; ``package:register`` if not given.
    :returns: its distribution and version, as errors name it.
    """
    name = name or package.removeprefix("pk_")
    (site / package).mkdir(parents=True)
    source = body.replace("{marker!r}", repr(str(marker(site, package))))
    source = source.replace("{stage!r}", repr(stage or name)).replace("{package}", package)
    (site / package / "__init__.py").write_text(source, encoding="utf-8")
    distribution = package.replace("pk_", "dist-of-")
    info = site / f"{distribution.replace('-', '_')}-0.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.7\n", encoding="utf-8")
    entry = f"[pipeline_kit.plugins]\n{name} = {value or package + ':register'}\n"
    (info / "entry_points.txt").write_text(entry, encoding="utf-8")
    return f"{distribution} 0.7"


def installed_by_hand(plugin: Path, site: Path) -> dict[str, str]:
    """Make a distribution importable and its entry points known to a new process, without pip.

    :param plugin: its folder, with pyproject.toml and src.
    :param site: an empty folder.
    :returns: the environment of the process.
    """
    project = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}\n" for name, value in project["entry-points"]["pipeline_kit.plugins"].items()]
    (info / "entry_points.txt").write_text("[pipeline_kit.plugins]\n" + "".join(lines))
    path = os.pathsep.join([str(plugin / "src"), str(site), str(ROOT)])
    kept = {key: value for key, value in os.environ.items() if key != "PIPELINE_KIT_PLUGINS"}
    return kept | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


POISON = """
from dataclasses import dataclass

from pipeline_kit import Postprocessor


@dataclass
class Config:
    pass


class Poison(Postprocessor):
    def __init__(self, config, context):
        pass

    def __call__(self, examples, encodings, outputs):
        if "poison" in examples:
            raise ValueError("cannot swallow this")
        return [{"text": example, "score": float("nan") if example == "nan" else 0.5} for example in examples]


def register(registry):
    registry.postprocessor("poison", __name__ + ":Poison", Config)
"""
"""A plugin, as a file: ``postprocessor=poison`` fails on a text that says so."""

TASK = '''
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline_kit import Model, ModelOutput, Postprocessor, option
from pipeline_kit.kit import Evaluator, Metrics, Verdict, VECTOR, value_of


@dataclass
class MoodConfig:
    """Options."""

    loud: bool = option(False, "in capitals")


class Mood(Postprocessor):
    best_first = frozenset({"moods"})

    def __init__(self, config, context):
        self.loud, self.labels = config.loud, context.checkpoint.labels

    def prepare(self, example):
        fields = {"text": example} if isinstance(example, str) else dict(example)
        return (str(fields.get("tone") or "") + fields["text"],)

    def __call__(self, examples, encodings, outputs):
        found = []
        for windows in outputs:
            logits = windows[0]["logits"].tolist()
            order = sorted(range(len(logits)), key=lambda i: -logits[i])
            name = self.labels[order[0]].upper() if self.loud else self.labels[order[0]].lower()
            moods = [{"name": self.labels[i], "points": logits[i]} for i in order]
            found.append({"mood": name, "logits": logits, "moods": moods})
        return found

    def cells(self, example, result):
        return {"mood": "(" + result["mood"] + ")"}


class MoodEvaluator(Evaluator):
    fields = ("who",)

    def __init__(self, context):
        self.context, self.rows, self.right = context, 0, 0

    def read(self, gold, example):
        return (str(gold), example["who"])

    def add(self, gold, results):
        found = value_of(results[0], "mood")
        self.rows, self.right = self.rows + 1, self.right + (found == gold[0])
        return Verdict(found == gold[0], gold[0], found)

    def metrics(self):
        return Metrics({"hits": self.right / self.rows}, (f"the first label was {self.context.first}",))


@dataclass
class EvenConfig:
    """Options."""

    head: Literal["even-head"] | None = option(None, "the head")


class Even(Model):
    safe_padding_sides = frozenset({"left", "right"})

    def __init__(self, config, context):
        self.count, self.head = len(context.checkpoint.labels), context.head

    def forward(self, batch):
        assert self.head == "even-head"
        return ModelOutput({"logits": torch.zeros(len(batch.input_ids), self.count)})


def register(registry):
    moods = {"list": {"struct": {"name": "string", "points": "float64"}}}
    gives = {"mood": "string", "logits": VECTOR, "moods": moods}
    registry.postprocessor("mood", __name__ + ":Mood", MoodConfig, gives=gives, summary="moods")
    registry.model("even", __name__ + ":Even", EvenConfig, summary="all labels alike")
    registry.task(
        "mood-detection",
        "mood",
        head="sequence-classification",
        takes=("text", "tone?"),
        evaluator=__name__ + ":MoodEvaluator",
        aliases=("mood-of",),
        parameters=("postprocessor.loud",),
        summary="The mood of a text.",
        run='--text "I love this."',
        tip="postprocessor.loud=true",
    )
    registry.task("even-moods", "mood", head="even-head", model="even", summary="No mood at all.")
    registry.task("odd-moods", "mood", head="odd-head", summary="A head that no model has.")
'''
"""A plugin, as a file or a package, with tasks of its own: one evaluated, one with a head of its own, one broken."""
