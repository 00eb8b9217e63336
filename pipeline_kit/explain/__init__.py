"""See what happens inside a pipeline: one text, stage by stage."""

from __future__ import annotations
