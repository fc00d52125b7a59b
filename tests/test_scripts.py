"""The scripts of the live children: what they make of the shell that the suite was started from."""

import sys

import pytest

from pytest_gpuaccept.world import LiveWorld

TORCH = """
import os
seen = os.environ.get("CUDA_VISIBLE_DEVICES")

class version:
    cuda = "13.0"

class cuda:
    @staticmethod
    def init():
        if seen is not None:
            raise RuntimeError("No CUDA GPUs are available")

    get_device_capability = staticmethod(lambda number: (8, 9))
    get_arch_list = staticmethod(lambda: ["sm_89"])

__version__ = "2.9.0"
"""


@pytest.mark.parametrize("visible", ["", "3", None])
def test_the_check_of_torch_does_not_heed_what_the_shell_hides(tmp_path, monkeypatch, visible):
    """The loads name their GPU by its UUID: a shell without GPUs must not hold them back."""
    (tmp_path / "torch.py").write_text(TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert LiveWorld(python=sys.executable).refuses("burn") == ""
