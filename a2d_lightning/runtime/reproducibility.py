"""What the last bits of a run depend on besides its settings and its state."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment_fingerprint(device: torch.device) -> dict[str, Any]:
    """Of this process, by the name that a person would give them."""
    return {
        "torch": str(torch.__version__),
        "ale-py": version("ale-py"),
        "torch's threads": torch.get_num_threads(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, in words."""
    return [f"{name} was {value} and is {now.get(name)}" for name, value in was.items() if value != now.get(name)]


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
