"""What a verdict was computed on, for whoever wonders why it differs elsewhere."""

from __future__ import annotations

import platform

import torch
from torch import nn

from canonize.twins.twin import device_of
from canonize.verify.run import precision_switches


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
    full = all(getattr(holder, attribute) == value for holder, attribute, value in precision_switches())
    return {
        "device": str(device),
        "device name": name,
        "TF32 while verifying": "off" if full else "on",
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
