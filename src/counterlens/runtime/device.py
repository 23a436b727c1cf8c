"""The device a stage runs on, and how it is made fast and repeatable."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
from torch import nn


def setup(threads: int) -> torch.device:
    """Choose the GPU if one is visible; fix threads and deterministic algorithms."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_flush_denormal(True)  # worker threads inherit it, so before there are any
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode would also fill every new tensor, which costs time and changes nothing.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for `bf16`, nothing for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def freeze(module: nn.Module, device: torch.device) -> nn.Module:
    """Evaluation mode, no parameter gradients, channels-last, on the device."""
    return place(module.requires_grad_(False).eval(), device)


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move to the device, with convolutions channels-last."""
    return module.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


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
