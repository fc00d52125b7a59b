"""vLLM and llama.cpp run the fast kernels, at the speed that the hardware allows."""

import pytest


@pytest.mark.spec("vllm.*")
def test_vllm(vllm_engine, accept):
    """vLLM runs the right kernel at the ordered speed."""
    accept(vllm_engine())


@pytest.mark.spec("llamacpp.*")
def test_llamacpp(llamacpp_engine, accept):
    """llama.cpp uses every GPU at the ordered speed."""
    accept(llamacpp_engine())


@pytest.mark.spec("engines.cross")
def test_cross(host, accept):
    """vLLM over all GPUs is faster than llama.cpp over one at a time."""
    accept(host.probe("llamacpp"))
