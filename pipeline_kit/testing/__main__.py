"""Write a tiny checkpoint to try a pipeline on: ``python -m pipeline_kit.testing FOLDER --head HEAD``.

Its weights are random, so its answers mean nothing; it shows what a task takes and gives, in a second.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline_kit.builtin.models.hf.heads import HEAD_KINDS
from pipeline_kit.testing.checkpoints import ARCHITECTURES, tiny_checkpoint


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m pipeline_kit.testing", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--head", default="sequence-classification", choices=sorted(HEAD_KINDS))
    parser.add_argument("--architecture", default="bert", choices=sorted(ARCHITECTURES))
    parser.add_argument("--labels", nargs="+", default=["NEGATIVE", "POSITIVE"])
    args = parser.parse_args()
    try:
        tiny_checkpoint(args.folder, args.architecture, head=args.head, labels=args.labels)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
