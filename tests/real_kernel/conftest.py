"""Tests that read the machine at hand, whatever it is."""


def pytest_configure(config):
    """Declare the mark of what reads a real kernel: `-m 'not real_kernel'` leaves it out."""
    config.addinivalue_line("markers", "real_kernel: reads the machine at hand, whatever it has")
