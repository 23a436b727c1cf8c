"""The device a stage runs on, and how it is made fast and repeatable."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def setup(threads: int) -> torch.device:
    """Choose the GPU if one is visible; fix threads and deterministic algorithms."""
    keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_flush_denormal(True)  # worker threads inherit it, so before there are any
    torch.set_num_threads(threads)
    # as use_deterministic_algorithms, which first spends seconds on importing the compiler
    torch.set_deterministic_debug_mode("error")
    # Deterministic mode would also fill every new tensor, which costs time and changes nothing.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Let the C library reuse what tensors free instead of returning it to the system.

    Every training step asks for the same large blocks again; having the system clear their pages
    anew costs a tenth of a step on a CPU. Only glibc offers the setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the largest it takes
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 1 << 28)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for `bf16`, nothing for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def freeze(module: nn.Module, device: torch.device) -> nn.Module:
    """Evaluation mode, no parameter gradients, channels-last, on the device.

    A batch normalisation behind a convolution of an `nn.Sequential` becomes part of it: the same
    function with one pass less. A frozen module is for use, not for saving.
    """
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.Sequential):
            fold_normalisation(part)
    return place(module.requires_grad_(False), device)


def fold_normalisation(layers: nn.Sequential) -> None:
    """Fold each frozen batch normalisation into the convolution before it, in place."""
    for index in range(len(layers) - 1):
        convolution, normalisation = layers[index], layers[index + 1]
        if isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d) and isinstance(
            normalisation, nn.BatchNorm2d
        ):
            transposed = isinstance(convolution, nn.ConvTranspose2d)
            layers[index] = fuse_conv_bn_eval(convolution, normalisation, transposed)
            layers[index + 1] = nn.Identity().eval()


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move to the device, with convolutions channels-last where that is faster.

    A CPU is slower at normalising groups of channels-last maps, so a network that does so stays
    as it is there.
    """
    module.to(device)
    if device.type == "cpu" and any(isinstance(part, nn.GroupNorm) for part in module.modules()):
        return module
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:  # Module.to would refuse one of five
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return module


def describe() -> str:
    """The hardware in words, for cards and footers."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The CPU's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
