"""Laws of what goes in and out: inputs stay as they are, layouts and batches do not matter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from samples import EPS, Array
from strategies import (
    System,
    assert_within,
    dense,
    scale_of,
    state_matrix,
    systems,
    with_matrices,
)

from ssmreduce import (
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    balanced_truncation,
    controllability_gramian,
    hankel_singular_values,
    observability_gramian,
)
from ssmreduce.errors import UnstableSystemError
from ssmreduce.norms import hinf_difference

pytestmark = [
    pytest.mark.every_library,
    # A port that rounding alone connects may have a tiny gain, which does not matter here.
    pytest.mark.filterwarnings("ignore::ssmreduce.errors.ScalingWarning"),
]

C = 20.0

FUNCTIONS: dict[str, Callable[[System], Any]] = {
    "hsv": lambda system: hankel_singular_values(system),
    "P": lambda system: controllability_gramian(system),
    "Q": lambda system: observability_gramian(system),
    "truncation": lambda system: balance(system).truncate(1).system.B,
    "hinf": lambda system: hinf_difference(system, system, grid=8, refinements=1),
}
"""Everything that computes with a system. New functions belong here."""


def arrays_of(system: System) -> list[Array]:
    return [state_matrix(system), system.B, system.C, system.D]


@pytest.mark.parametrize("name", FUNCTIONS)
@given(system=systems(max_order=6))
def test_inputs_stay_as_they_are_byte_for_byte(name: str, system: System) -> None:
    assume(name != "truncation" or balance(system).rank > 0)
    before = [array.tobytes() for array in arrays_of(system)]
    first = FUNCTIONS[name](system)
    assert [array.tobytes() for array in arrays_of(system)] == before
    # The same again, from arrays that cannot be written to.
    for array in arrays_of(system):
        array.setflags(write=False)
    np.testing.assert_array_equal(FUNCTIONS[name](system), first)


@given(systems(max_order=6))
def test_results_share_no_memory_with_the_inputs(system: System) -> None:
    results = [f(system) for f in (controllability_gramian, observability_gramian)]
    results.append(hankel_singular_values(system))
    for result in results:
        assert result.flags.writeable
        assert not any(np.shares_memory(result, array) for array in arrays_of(system))


@given(systems(), st.sampled_from(["fortran", "strided", "reversed"]))
def test_the_layout_in_memory_does_not_matter(system: System, layout: str) -> None:
    def laid_out(array: Array) -> Array:
        if layout == "fortran":
            return np.asfortranarray(array)
        if layout == "reversed":
            return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), dtype=array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]

    A, B, readout = (laid_out(x) for x in arrays_of(system)[:3])
    other = with_matrices(system, A, B, readout)
    error = hankel_singular_values(system) - hankel_singular_values(other)
    # BLAS may take another path: equal up to rounding only.
    assert_within(error, C * scale_of(system).rounding)


@given(st.one_of([systems(max_order=6, batch_shape=(count,)) for count in (1, 2, 3)]))
def test_a_batch_is_its_singles(batch: System) -> None:
    singles = [batch[k] for k in range(len(batch.B))]
    for name in ("hsv", "P", "Q"):
        found = FUNCTIONS[name](batch)
        for k, single in enumerate(singles):
            np.testing.assert_array_equal(found[k], FUNCTIONS[name](single))
    assume(all(balance(s).rank > 0 for s in singles))
    try:
        reduction = balanced_truncation(batch, 1)
    except UnstableSystemError:
        # All that a system transfers is rounding, and its cut is refused: alone as well.
        with pytest.raises(UnstableSystemError):
            list(map(partial(balanced_truncation, order=1), singles))
        return
    for k, single in enumerate(singles):
        alone = balanced_truncation(single, 1)
        assert reduction.error_bound is not None
        assert np.asarray(reduction.error_bound)[k] == alone.error_bound
        found_system: Any = reduction.system[k]
        # Channels are cut in stacked arrays, whose BLAS may add up in another order.
        amplified = 1.0 if alone.slot_map is None else float(alone.slot_map.condition)
        for found, expected in zip(arrays_of(found_system), arrays_of(alone.system), strict=True):
            allowed = C * 8 * EPS * amplified * np.abs(expected).max(initial=0.0)
            np.testing.assert_allclose(found, expected, rtol=0.0, atol=allowed)


@given(systems(max_order=6))
def test_single_precision_is_read_as_it_is(system: System) -> None:
    single = with_matrices(
        system,
        *(
            x.astype(np.complex64 if np.iscomplexobj(x) else np.float32)
            for x in arrays_of(system)[:3]
        ),
    )
    # Rounding to float32 may carry a pole over the boundary; then there is nothing to compare.
    poles = np.asarray(dense(single).poles())
    outside = (
        np.abs(poles) >= 1 - 1e-7 if isinstance(system.time, Discrete) else poles.real >= -1e-7
    )
    assume(not outside.any())
    double = with_matrices(
        system,
        *(x.astype(np.complex128 if np.iscomplexobj(x) else float) for x in arrays_of(single)[:3]),
    )
    np.testing.assert_array_equal(hankel_singular_values(single), hankel_singular_values(double))


@given(systems(max_order=5))
def test_lists_are_arrays(system: System) -> None:
    options: dict[str, Any] = {"time": system.time, "read_after_update": system.read_after_update}
    A, B, readout = (x.tolist() for x in arrays_of(system)[:3])
    if isinstance(system, DiagonalStateSpace):
        other: System = DiagonalStateSpace(A, B, readout, real_output=system.real_output, **options)
    else:
        other = StateSpace(A, B, readout, **options)
    np.testing.assert_array_equal(hankel_singular_values(other), hankel_singular_values(system))


@given(systems(max_order=6))
def test_a_system_differs_from_itself_by_rounding(system: System) -> None:
    gain = hinf_difference(system, system, grid=8, refinements=1)
    assert gain <= EPS * scale_of(system).gramians
