"""Software and hardware that can change results bit for bit."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment_fingerprint(device: torch.device) -> dict[str, Any]:
    """Return the software and hardware that can change results bit for bit.

    Args:
        device: The device of the training.

    Returns:
        Versions of torch and ale-py, number of threads, models of CPU and device, by names that messages can show.
    """
    return {
        "torch": str(torch.__version__),
        "ale-py": version("ale-py"),
        "torch's threads": torch.get_num_threads(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each entry of ``was`` that has another value, or none, in ``now``.

    Args:
        was: The values of an earlier process.
        now: The values of this process.

    Returns:
        One phrase for each difference: ``torch was 2.12 and is 2.13``.
    """
    return [f"{name} was {value} and is {now.get(name)}" for name, value in was.items() if value != now.get(name)]


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
