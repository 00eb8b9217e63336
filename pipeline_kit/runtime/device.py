"""Which device, dtype and thread count a model gets."""

from __future__ import annotations

import os

from pipeline_kit.contract.types import Checkpoint, Device
from pipeline_kit.errors import DeviceError
from pipeline_kit.runtime.config import DeviceConfig

DTYPES = ("float32", "bfloat16", "float16")


def resolve_device(config: DeviceConfig, checkpoint: Checkpoint) -> Device:
    """Choose the device that `config` asks for.

    :raises DeviceError: if it is not on this machine; lists what is.
    """
    import torch

    kind = config.name
    present = ["cpu"]
    present += ["cuda"] if torch.cuda.is_available() else []
    present += ["mps"] if torch.backends.mps.is_available() else []
    if kind == "auto":
        kind = "cuda" if "cuda" in present else "mps" if "mps" in present else "cpu"
    if kind not in present:
        raise DeviceError(f"device={kind}: this machine has none that torch can use; it has: {', '.join(present)}")
    name: str = kind
    if kind == "cuda":
        count = torch.cuda.device_count()
        index = torch.cuda.current_device() if config.index is None else config.index
        if index >= count:
            raise DeviceError(f"device.index={index}: this machine has {count} GPU(s), numbered from 0")
        name = f"cuda:{index}"
    elif config.index:
        raise DeviceError(f"device.index={config.index}: only device=cuda has an index")
    dtype: str = config.dtype
    if dtype == "auto":
        # Half precision on a CPU is slow or emulated, and costs the exactness users compare against.
        saved = checkpoint.config.get("dtype", checkpoint.config.get("torch_dtype"))
        dtype = str(saved) if kind == "cuda" and saved in DTYPES else "float32"
    return Device(name, dtype, config.threads or torch.get_num_threads())


def native_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 itself."""
    import torch

    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16", "sve_bf16"))


def has_amx() -> bool:
    """Return whether this CPU has tiles for products in bfloat16."""
    import torch

    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def emulated(dtype: str) -> bool:
    """Return whether this CPU computes in `dtype` by way of float32, which is slower than float32 itself."""
    import torch

    if dtype == "bfloat16":
        return not native_bfloat16()
    return dtype == "float16" and not torch.cpu.get_capabilities().get("avx512_fp16", False)


def available_cpus() -> int:
    """Count the processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
