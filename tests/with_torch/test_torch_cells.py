"""Memory by way of torch: the same words as numpy's, claimed chunk by chunk."""

import numpy as np
import pytest

from pytest_gpuaccept.children import memory, torch_cells

torch = pytest.importorskip("torch")
FREE = 100_000


class Clock:
    """Time that passes while somebody sleeps, and a quarter of a second with each look at it."""

    now = 0.0

    def monotonic(self):
        """Return the seconds passed."""
        self.now += 0.25
        return self.now

    def sleep(self, seconds):
        """Let time pass."""
        self.now += seconds


def cells(free=FREE, chunk=40_000, share=0.95):
    """Return claimed cells on the CPU."""
    made = torch_cells.TorchCells(torch, "GPU-0", "cpu", free, chunk)
    return made, made.claim(share)


def records(gpu):
    """Return the records of a whole test."""
    script = memory.memory(gpu, Clock(), seconds=0, hold_s=1, share=0.95)
    found = [next(script)]
    found += [script.send(None) for _ in range(3)]
    return [*found, script.send({"at": 0.0}), *script]


def test_chunks_are_multiples_of_20_words_and_fill_the_share():
    """Claiming gives arrays of at most a chunk, and tells the bytes that they hold."""
    gpu, claimed = cells()
    lengths = [len(chunk) for chunk in gpu.chunks]
    assert sum(lengths) * 8 == claimed
    assert not any(length % 20 for length in lengths)
    assert 0.95 * FREE - claimed < 20 * 8 * 2
    assert max(lengths) * 8 <= 40_000


def test_out_of_memory_gives_back_one_chunk(monkeypatch):
    """When the next array cannot be had, the last one becomes the room in which comparisons work."""
    made = torch.empty

    def empty(words, **how):
        if len(gpu.chunks) == 2:
            raise torch.cuda.OutOfMemoryError
        return made(words, **how)

    gpu = torch_cells.TorchCells(torch, "GPU-0", "cpu", FREE, 40_000, edge=32)
    monkeypatch.setattr(torch, "empty", empty)
    assert gpu.claim(0.95) == 40_000
    assert len(gpu.chunks) == 1


def test_torch_and_numpy_write_the_same_words():
    """Sums, products, shifts and complements wrap round alike in both libraries."""
    for pattern in (memory.address, *memory.FADES.values(), memory.random(5), memory.every_20th(3, -7)):
        ours = pattern(torch, torch.zeros(60, dtype=torch.int64), 2**40)
        assert ours.tolist() == pattern(np, np.zeros(60, np.int64), 2**40).tolist()


def test_a_whole_test_on_tensors_finds_nothing_and_its_planted_bit():
    """Every pattern runs on torch, in slices too, without a wrong word."""
    gpu = torch_cells.TorchCells(torch, "GPU-0", "cpu", FREE, 40_000, edge=32)
    found = records(gpu)
    assert found[2] == {"kind": "rehearsal", "clean": 0, "found": 1, "place": True}
    assert [r["pattern"] for r in found if r["kind"] == "pass"] == list(memory.PATTERNS)
    assert not any(r["wrong"] for r in found if r["kind"] == "pass")


def test_a_stuck_bit_in_a_tensor_is_found_and_named(monkeypatch):
    """The comparison on tensors names the word and its bit, the sign bit included."""
    gpu = torch_cells.TorchCells(torch, "GPU-0", "cpu", FREE, 40_000, edge=32)

    def read(chunk):
        words = gpu.chunks[chunk].clone()
        if chunk == 1:
            words[9] |= -(2**63)
        return words

    monkeypatch.setattr(gpu, "read", read)
    zeros = next(r for r in records(gpu) if r.get("pattern") == "zeros")
    assert zeros["words"] == [(5009, "0x8000000000000000")]
    assert zeros["bits"] == {"63": 1}


def test_the_first_gpu_is_known_by_the_uuid_that_cuda_tells(monkeypatch):
    """The device's own UUID goes into the records; without one, that by which the process was pinned."""

    class Told:
        uuid = "12ab"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Told())
    assert torch_cells.opened(torch, "GPU-asked").uuid == "GPU-12ab"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: object())
    assert torch_cells.opened(torch, "GPU-asked").uuid == "GPU-asked"
