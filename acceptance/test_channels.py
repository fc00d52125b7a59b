"""What would show an error is proven to show one, before anything is loaded."""

import pytest


@pytest.mark.spec("host.log.*")
def test_kernel_log(host, accept):
    """The kernel log is readable, complete and alive."""
    accept(host.channels())


@pytest.mark.spec("gpu.aer.armed")
def test_pcie_errors_are_seen(gpu, accept):
    """Both ends of every GPU's link report their errors, and the kernel counts them."""
    accept(gpu.channels())
