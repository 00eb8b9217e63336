"""Phrases that docstrings, messages, help texts and docs do not use. One test that lists all faults."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
THINGS = "kind|label|list|token|string|text|column|JSON|folder|file|number|subcommand|regular|option"
BANNED = {
    r"^(?:Gives? (?!up)|Tells? |Says? |Hears? )": "Return, Print, Report, Receive",
    rf"(?<!there )\bis no (?:{THINGS})\b": "is not a",
    r"\bh[eo]ld against (?!what)": "compare with",
    r"\btaken? up again\b": "resume",
    r"\bgo(?:es)? on (?:with|where)\b|\bto go on\b": "continue, resume",
    r"\b(?:model|tokenizer|postprocessor|call|user|graph|network|layer) (?:gave|gives)\b": "returned, passed",
    r"[;:] give (?!every|the example)": "pass",
    r"\btells? (?:nothing|of)\b": "report",
    r"\b(?:is|are) told of\b": "receive",
    r"\b(?:is|are) said\b": "is printed, is reported",
    r"\bhears?\b": "receive",
    r"\b(?:that|label|value|name) is none\b": "unknown",
    r"\bgives no\b": "does not return",
    r"\berrors? that may pass\b": "transient error",
    r"\bmade again\b": "retried, run again",
    r"\bgives? way\b": "is truncated, is dropped",
    r"\bown affair\b": "up to the implementation",
    r"\bset aside\b": "moved, frozen",
    r"\bfound out\b|\bfind out\b": "check, measure",
    r"\bas ever\b": "as before",
    r"\bthe very\b": "the same",
    r"\bwhoever\b": "the caller",
    r"\bof one's own\b": "your own",
    r"\bby its absence\b": "delete the marker",
    r"\bcomes? to nothing\b": "fail",
    r"\bof no use\b": "useless",
}
"""By pattern, what stands there instead."""


def prose() -> list[tuple[str, str]]:
    """Every line of the package's strings and of the docs, with its place."""
    found = []
    for path in (ROOT / "pipeline_kit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [(f"{path.relative_to(ROOT)}:{node.lineno}", line.strip()) for line in node.value.splitlines()]
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        found += [(f"{path.relative_to(ROOT)}:{number}", line) for number, line in lines]
    return found


def test_plain_words() -> None:
    faults = [f"{at}: {line} ({use})" for at, line in prose() for bad, use in BANNED.items() if re.search(bad, line)]
    assert not faults, "\n".join(faults)


def test_h13_every_page_that_promises_exactness_names_what_rounds() -> None:
    for page in ("README.md", "docs/configuration.md", "docs/speed.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert all(word in text for word in ("1e-5", "bfloat16", "0.003", "int8", "0.12")), page
