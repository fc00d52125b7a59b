"""The kernel that runs: its release, the options it was started with, and which of these hide hardware errors.

Owns the list of such options. The metrics are host/machine.py's.
"""

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probe import Site

BLINDFOLDS = (
    "pci=noaer", "pci=nommconf", "pcie_ports=compat", "mce=off", "mce=ignore_ce", "mce=dont_log_ce", "nomce",
    "hest_disable", "edac=off", "noaer", "nowatchdog", "nosoftlockup",
)  # fmt: skip
"""Kernel options that switch off the channel by which a hardware error would be seen."""
KEEP_OUT = ("module_blacklist", "modprobe.blacklist")
"""Options that keep drivers out of the kernel; those of the memory controllers have `edac` in their names."""


def kernel_release(site: Site) -> str:
    """Return the running kernel's release."""
    return _text(site, "/proc/sys/kernel/osrelease")


def kernel_cmdline(site: Site) -> str:
    """Return the options with which the kernel was started, whole."""
    return _text(site, "/proc/cmdline")


def kernel_blindfolds(site: Site) -> str:
    """Return the kernel options that hide hardware errors, `none` when there are none."""
    options = [word.partition("=") for word in kernel_cmdline(site).split()]
    single = [(key, f"{key}{is_}{value}") for key, is_, values in options for value in values.split(",")]
    found = {text for key, text in single if text in BLINDFOLDS or (key in KEEP_OUT and "edac" in text)}
    return " ".join(sorted(found)) or "none"


def _text(site: Site, path: str) -> str:
    """Return a file's text; an empty one says nothing and is refused."""
    text = site.world.read(path)
    if not text:
        message = f"{path} is empty"
        raise Unmeasurable(message)
    return text
