"""One model behind llama-cpp-python.

Owns the library's log from its first line, the model and its context. Must not time, loop over repetitions or write
records. llama_cpp is handed in by the caller.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

OURS = "n_gpu_layers", "n_ctx", "n_batch", "n_ubatch", "flash_attn", "n_threads"
"""Parameters that the library takes as they are."""


class LlamaModel:
    """A model of a file, all of whose layers are to lie on the GPUs unless told."""

    def __init__(self, llama_cpp: Any, path: str, settings: dict[str, Any]) -> None:
        """Take the library, whose log is ours from now on: CUDA tells of itself once, at the first call."""
        self._lib, self._path = llama_cpp, path
        self._settings = {name: settings[name] for name in OURS if name in settings}
        self._text: list[bytes] = []
        self._callback = llama_cpp.llama_log_callback(lambda _level, text, _data: self._text.append(text))
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        self.version = str(llama_cpp.__version__)
        self.supports_gpu_offload = bool(llama_cpp.llama_supports_gpu_offload())
        self._llm: Any = None

    def load(self) -> None:
        """Load the model; raises ValueError when the file is none."""
        split = self._lib.LLAMA_SPLIT_MODE_LAYER
        self._llm = self._lib.Llama(self._path, split_mode=split, seed=0, verbose=True, **self._settings)
        self._lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def logged(self) -> list[str]:
        """Return the lines that were logged since this was last asked; they come in pieces."""
        text, self._text = b"".join(self._text), []
        return [line for line in text.decode(errors="replace").splitlines() if line.strip()]

    def vocabulary(self) -> int:
        """Return how many tokens the model knows."""
        return int(self._llm.n_vocab())

    def forget(self) -> None:
        """Empty the context: a prompt that begins as the last one did would not be computed again."""
        self._llm.reset()
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._llm.ctx), True)  # noqa: FBT003 - data too

    def kept(self) -> int:
        """Return how many tokens are computed already: those that a prompt which begins alike would not compute."""
        return int(self._llm.n_tokens)

    def evaluate(self, tokens: Sequence[int]) -> None:
        """Compute these tokens, and wait until it is done."""
        self._llm.eval(tokens)
        self._lib.llama_synchronize(self._llm.ctx)

    def answer(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """Yield `count` greedy tokens behind a prompt."""
        said = self._llm.generate(list(prompt), top_k=1, temp=0.0, repeat_penalty=1.0, reset=True)
        for _ in range(count):
            yield int(next(said))
