"""The configuration space of the simulated PCI devices, as far as anybody reads it: capabilities, AER, ACS.

Owns the bytes, after the PCI Express base specification. Knows nobody who reads.
"""

from pytest_gpuaccept.sim.kernel_files import other_devices
from pytest_gpuaccept.sim.machine import GpuState, Machine

SIZE = 4096
VENDOR_NVIDIA, VENDOR_AMD = 0x10DE, 0x1022
STATUS_LIST = 0x10
EXPRESS_AT, AER_AT, ACS_AT = 0x60, 0x100, 0x150
EXPRESS, AER, ACS = 0x10, 0x0001, 0x000D
REPORTS_ALL = 0x0F
"""Device Control: corrected, non-fatal, fatal errors and unsupported requests are reported."""
ADVISORY = 1 << 13
"""What a device masks of the corrected errors by default."""
RECEIVER_TO_TIMEOUT = 0x11C1
"""Receiver error, bad TLP, bad DLLP, rollover, timeout."""
LINK_ERRORS = 1 << 4 | 1 << 13 | 1 << 17 | 1 << 18
"""Of the uncorrected: data link protocol, flow control, receiver overflow, malformed TLP."""
ACS_SOURCE_VALIDATION = 0x01


def config(machine: Machine, address: str) -> bytes | None:
    """Return the configuration space of a GPU or of the port above it, None for no such device."""
    for gpu in machine.gpus:
        if gpu.p.present and address == gpu.address:
            return _space(gpu, VENDOR_NVIDIA, int(gpu.p.pci_device_id, 16), bridge=False)
        if gpu.p.present and address == gpu.port:
            return _space(gpu, VENDOR_AMD, 0x1483, bridge=True)
    if device := other_devices(machine).get(address):
        reports = machine.host.devices_report or not device.port
        return _bytes(VENDOR_AMD, 0x1234, bridge=not device.port, reports=reports, masked=False)
    return None


def _space(gpu: GpuState, vendor: int, device: int, *, bridge: bool) -> bytes:
    """Return that of a GPU, or of the port above it, which a fault of the card leaves alone."""
    reports, masked = (True, False) if bridge else (gpu.p.aer_reports, gpu.p.aer_masked)
    return _bytes(vendor, device, bridge=bridge, reports=reports, masked=masked)


def _bytes(vendor: int, device: int, *, bridge: bool, reports: bool, masked: bool) -> bytes:
    space = bytearray(SIZE)
    for at, value, length in (
        (0x00, vendor, 2), (0x02, device, 2), (0x06, STATUS_LIST, 2), (0x0E, int(bridge), 1), (0x34, EXPRESS_AT, 1),
        (EXPRESS_AT, EXPRESS, 2), (EXPRESS_AT + 8, REPORTS_ALL if reports else 0, 2),
        (AER_AT, AER | 2 << 16 | ACS_AT << 20, 4), (AER_AT + 0x08, LINK_ERRORS if masked else 0, 4),
        (AER_AT + 0x14, ADVISORY | (RECEIVER_TO_TIMEOUT if masked else 0), 4),
        (ACS_AT, ACS | 1 << 16, 4), (ACS_AT + 6, ACS_SOURCE_VALIDATION if bridge else 0, 2),
    ):  # fmt: skip
        space[at : at + length] = value.to_bytes(length, "little")
    return bytes(space)
