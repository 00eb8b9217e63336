"""Which device, dtype and thread count a model gets, and what it sets for the whole process."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

from pipeline_kit.contract.types import Checkpoint, Device
from pipeline_kit.errors import DeviceError
from pipeline_kit.runtime.config import DeviceConfig

DTYPES = ("float32", "bfloat16", "float16")

# mallopt(3): what to set, and to how many bytes. The first is the most that every glibc takes.
_MMAP_THRESHOLD, _LARGEST_ON_HEAP = -3, 32 * 2**20
_TRIM_THRESHOLD, _MOST_FREE = -1, 256 * 2**20

# oneDNN, and torch's layer over it, keep what they compile for each size of a product: by themselves 1,024, half a GiB.
_COMPILED, _MOST_COMPILED = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), "256"


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


def prepare_process(device: Device) -> None:
    """Set what a model on `device` needs of the whole process: torch's CPU threads, kept memory, fewer compiled sizes.

    By itself glibc returns the memory of a batch's activations after each batch. The next batch then waits for the
    system to clear the same pages again, for a tenth of its time. Up to 256 MiB of freed memory are kept instead.

    oneDNN compiles each product anew for each number of tokens. 256 kept ones are enough for some fifty lengths of
    single texts; batches were as fast with 64 as with 1,024. The libraries read the variables when they first compute.
    What a user has set is left alone.
    """
    import torch

    if torch.get_num_threads() != device.threads:
        torch.set_num_threads(device.threads)
    for name in _COMPILED:
        os.environ.setdefault(name, _MOST_COMPILED)
    if device.kind == "cpu" and sys.platform == "linux":
        with suppress(AttributeError, OSError):  # a C library other than glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
            mallopt(_TRIM_THRESHOLD, _MOST_FREE)


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
