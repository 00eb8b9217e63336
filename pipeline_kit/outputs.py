"""From a batch's tensors on the device to each row's arrays on the CPU."""

from __future__ import annotations

from math import isfinite
from typing import Any

from pipeline_kit.errors import ExampleError, StageError
from pipeline_kit.types import ModelOutput, RowOutput, TokenBatch

__all__ = ["check_finite", "split_rows"]


def split_rows(output: ModelOutput, batch: TokenBatch) -> list[RowOutput]:
    """Copy each tensor to the CPU once and cut it into rows without padding.

    :returns: for each row of `batch`, its arrays by name, floats as float32; views, not copies.
    :raises StageError: if a tensor's first dimension is not ``B``, or a per-token one's second not ``T``.
    """
    count, width = batch.input_ids.shape
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, tensor in output.tensors.items():
        per_token = name in output.per_token
        if tensor.shape[0] != count or (per_token and tensor.shape[1] != width):
            raise StageError(
                f"the model gave '{name}' with shape {list(tensor.shape)} for a batch of {count} rows, {width} tokens"
            )
        array = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
        for i, length in enumerate(batch.lengths.tolist()):
            value = array[i]
            if per_token and length < width:
                value = value[:length] if batch.side == "right" else value[width - length :]
            rows[i][name] = value
    return list(rows)


def check_finite(output: ModelOutput, batch: TokenBatch) -> None:
    """Check what a model returned before anything is made of it: a sigmoid would hide what is infinite.

    What stands at padding does not count.

    :raises ExampleError: if a number of some row is not finite.
    """
    for name, tensor in output.tensors.items():
        # Where a number is not finite, the sum is not either: one pass, which the usual batch needs no more of.
        if not tensor.is_floating_point() or isfinite(float(tensor.float().sum())):
            continue
        bad = ~tensor.isfinite()
        if name in output.per_token and tensor.shape[:2] == batch.attention_mask.shape:
            bad[batch.attention_mask == 0] = False
        if bad.any():
            raise ExampleError(f"the model's '{name}' for this example are not all finite numbers")
