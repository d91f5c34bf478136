"""Is there such a device here?"""

from __future__ import annotations

import torch


class DeviceError(ValueError):
    """torch cannot compute there."""


def usable_device(device: str | torch.device) -> torch.device:
    """The device, once something lay on it.

    Raises:
        DeviceError: it is no device, or none that torch can use on this machine, in one line.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    # torch has one of them for each kind of device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise DeviceError(
            f"device: expected one that torch can use here ({here}), got {str(device)!r}: {reason}; `robustbev doctor` tells "
            "what this machine can run"
        ) from error
    return found
