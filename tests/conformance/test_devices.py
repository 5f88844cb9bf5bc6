from __future__ import annotations

from penstock.runtime.devices.base import Device
from penstock.runtime.devices.cpu import CpuDevice

from ..adversary import AdversarialDevice  # noqa: TID252
from .device import DeviceConformance


class TestCpuDevice(DeviceConformance):
    def make(self) -> Device:
        return CpuDevice()


class TestAdversarialDevice(DeviceConformance):
    """The device that tests the runtime has to be a proper device itself."""

    def make(self) -> Device:
        return AdversarialDevice(seed=1)
