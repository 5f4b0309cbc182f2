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


def test_other_threads_change_nothing() -> None:
    """Whoever asks first is obeyed alone: a worker of another library shall not be that one."""
    with threadpool_limits(2, user_api="blas"):
        before: list[int] = counts()
        seen: list[list[int]] = []

        def body() -> None:
            with one_blas_thread():
                seen.append(counts())

        other = threading.Thread(target=body)
        other.start()
        other.join()
        assert seen == [before]
        with one_blas_thread():
            assert set(counts()) == {1}
        assert counts() == before


def test_only_small_systems_are_limited() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = counts()
        with threads_for(1000):
            assert counts() == before
        with threads_for(10):
            assert set(counts()) == {1}
