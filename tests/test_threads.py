"""BLAS threads are limited while a body runs, and given back."""

from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from ssmreduce._threads import one_blas_thread, threads_for


def counts() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_restored_after_nested_bodies_and_errors() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = counts()
        with one_blas_thread():
            with one_blas_thread():
                assert set(counts()) == {1}
            assert set(counts()) == {1}
        assert counts() == before
        with pytest.raises(ValueError, match="inner"), one_blas_thread():
            raise ValueError("inner")
        assert counts() == before


def test_overlapping_bodies_leave_nothing_behind() -> None:
    """One that starts inside another in its own thread, and outlasts it."""
    with threadpool_limits(2, user_api="blas"):
        before, inside, release = counts(), threading.Event(), threading.Event()

        def body() -> None:
            with one_blas_thread():
                inside.set()
                release.wait(timeout=30)

        other = threading.Thread(target=body)
        with one_blas_thread():
            other.start()
            assert inside.wait(timeout=30)
            assert set(counts()) == {1}
        release.set()
        other.join()
        assert counts() == before


@pytest.mark.parametrize("first", ["main", "worker"])
def test_others_may_set_threads_afterwards(first: str) -> None:
    """Our limit keeps no Python thread from setting its own, not even while we wait in another."""
    seen: list[list[int]] = []
    done = threading.Event()

    def own_limit() -> None:
        with threadpool_limits(1, user_api="blas"):
            seen.append(counts())

    def limit_and_wait() -> None:
        with one_blas_thread():
            pass
        done.set()
        done.wait(timeout=30)

    if first == "main":
        with one_blas_thread():
            pass
        other = threading.Thread(target=own_limit)
        other.start()
        other.join()
    else:
        other = threading.Thread(target=limit_and_wait)
        other.start()
        assert done.wait(timeout=30)
        own_limit()
        other.join()
    assert set(seen[0]) == {1}


def test_only_systems_that_gain_nothing_are_limited() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = counts()
        for large_or_tiny in (10, 1000):
            with threads_for(large_or_tiny):
                assert counts() == before
        for order, ports in ((100, 1), (10, 300)):
            with threads_for(order, ports):
                assert set(counts()) == {1}
