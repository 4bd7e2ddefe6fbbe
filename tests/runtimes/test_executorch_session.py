"""What is ExecuTorch's own; test_session_contract.py has what every session promises."""

from __future__ import annotations

import pytest

from edgekit.runtimes.executorch_session import _POOL, _Pool


class Binding:
    def __init__(self) -> None:
        self.threads = 4
        self.resets: list[int] = []

    def _threadpool_get_thread_count(self) -> int:
        return self.threads

    def _unsafe_reset_threadpool(self, threads: int) -> None:
        assert _POOL.locked(), "nothing may run while the pool is resized"
        if threads > 64:
            raise RuntimeError("too many")
        self.threads = threads
        self.resets.append(threads)


def test_the_pool_is_resized_only_for_a_session_that_wants_another_size() -> None:
    binding = Binding()
    for threads in (4, 2, 2, 4):
        with _Pool(binding, threads):
            assert binding.threads == threads
    assert binding.resets == [2, 4]


def test_the_pool_is_free_after_an_error_inside_and_after_a_failed_resize() -> None:
    with pytest.raises(ValueError, match="inside"), _Pool(Binding(), 4):
        raise ValueError("inside")
    with pytest.raises(RuntimeError, match="too many"), _Pool(Binding(), 100):
        pass
    assert not _POOL.locked()
