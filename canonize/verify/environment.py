"""What a verdict was computed on, for whoever wonders why it differs elsewhere."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import nn

from canonize.twins.twin import device_of

_TF32_STEP = 2.0**-10


def uses_tf32(device: torch.device | None) -> bool:
    """Whether torch may compute float32 in TF32 on a device, which is for the process to say and is left as it is."""
    if device is None or device.type != "cuda":
        return False
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        # The newer interface: torch refuses to read the older flags once a user has set these.
        holders = [backends.cuda.matmul]
        holders += [getattr(backends.cudnn, name) for name in ("conv", "rnn") if hasattr(backends.cudnn, name)]
        return any(holder.fp32_precision == "tf32" for holder in holders)
    return bool(backends.cuda.matmul.allow_tf32 or backends.cudnn.allow_tf32)


def rounding_step(dtype: torch.dtype, device: torch.device | None) -> float:
    """The relative step of a dtype, in which products are rounded on a device."""
    step = torch.finfo(dtype).eps
    return max(step, _TF32_STEP) if dtype == torch.float32 and uses_tf32(device) else step


def environment(model: nn.Module) -> dict[str, str]:
    """Device, precision switches while verifying, threads and versions.

    Parameters
    ----------
    model : nn.Module
        The reference; its first parameter says the device.

    Returns
    -------
    dict
        Of strings, for reports.
    """
    device = device_of(model) or torch.device("cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": str(device),
        "device name": name,
        "TF32 while verifying": "on" if uses_tf32(device) else "off",
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
