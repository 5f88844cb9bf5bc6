"""On what terms a module is streamed: what the caller asked for, checked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from penstock.budget import Budget
from penstock.errors import UnsupportedModelError
from penstock.planning import PlanOptions
from penstock.planning.strategies import configured
from penstock.runtime.devices.base import Device
from penstock.runtime.devices.cpu import CpuDevice


@dataclass(frozen=True, slots=True)
class Terms:
    """The byte cap, where the module computes, and how it is planned."""

    budget: Budget
    device: Device
    strategy: str
    options: PlanOptions

    @classmethod
    def of(
        cls,
        budget: int | str | Budget,
        device: str | torch.device | Device,
        strategy: str,
        options: PlanOptions,
    ) -> Terms:
        """The terms that a caller names.

        Raises:
            BudgetError: the budget is no size.
            PlanError: there is no such strategy, or it takes no such options.
            UnsupportedModelError: there is no such device.
        """
        terms = cls(Budget(budget), device_of(device), strategy, options)
        configured(strategy, options)
        return terms


def device_of(device: str | torch.device | Device) -> Device:
    """The device that a caller names.

    Raises:
        UnsupportedModelError: there is none of that name.
    """
    if isinstance(device, Device):
        return device
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = ""
    if kind != "cpu":
        raise UnsupportedModelError(f"device {str(device)!r} is not supported: penstock streams to 'cpu'")
    return CpuDevice()
