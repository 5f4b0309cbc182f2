"""Which numerical tests do not run in every array library, and why: the one list.

A module has the mark `every_library`, and each of its tests runs in all of `EVERYWHERE` unless it is named here;
``tests/meta/test_everywhere.py`` fails where a name is none of a test any more. No list is needed for
tests that call nothing in the library: they fail there.
"""

from __future__ import annotations

from pathlib import Path

EVERYWHERE = ["numpy", "numpy-read-only", "strict", "torch", "jax-x64", "jax-x32", "cupy"]
"""Names in `libraries`; CuPy needs a GPU and is skipped, with the reason, where there is none."""

NUMPY_ONLY: dict[str, dict[str, str]] = {
    "it calls what lies below the public functions, which knows NumPy arrays alone": {
        "test_batches": """
            test_one_blas_thread_means_no_workers
            test_the_first_failure_is_raised_and_threads_are_given_back
            test_workers_have_one_blas_thread_each
            test_workers_see_the_error_state_of_the_caller""",
        "test_h2_optimal": """
            test_continuous_form_keeps_the_gramian_and_comes_back
            test_plant_solves_its_sylvester_equations
            test_small_errors_are_not_differences_of_squares
            test_unstable_iterates_are_mirrored""",
        "test_hankel_accuracy": """
            test_empty
            test_graded
            test_inputs_are_unchanged
            test_modal_form_is_the_benchmark
            test_not_finite
            test_sensitivity_is_the_published
            test_vectors""",
        "test_lyapunov": """
            test_inputs_that_reach_little
            test_lightly_damped_pair_in_a_group
            test_low_rank_iteration
            test_orders_across_blocks
            test_pairs_of_uneven_states
            test_pairs_that_are_nearly_real
            test_schur_form_of_anything
            test_small_directions_keep_their_digits
            test_structured_matrices_fall_apart""",
        "test_modal": "test_schur_poles_are_eigenvalues",
        "test_perturbation": "test_a_singular_state_matrix_is_refused_read_after_the_update",
    },
    "no array is in it: order rules, time domains and what is missing, by themselves": {
        "test_balanced_truncation": """
            test_error_bound_arguments
            test_rules_count_as_they_say
            test_shares_are_reached_and_monotone
            test_shares_out_of_range""",
        "test_order_rules": """
            test_rounding_is_not_paid_for
            test_too_small_a_budget_is_refused""",
        "test_systems": """
            test_missing_extra_names_the_pip_command
            test_sampling_time
            test_time_is_required""",
    },
    "it is about layers and training, whose weights are read to the host": {
        "test_order_rules": "test_the_layers_of_a_model_share_a_budget",
        "test_regressions": """
            test_a_failing_decomposition_does_not_end_training
            test_a_registered_class_without_the_arrays_names_them
            test_bfloat16_weights_are_reduced
            test_optimizer_states_of_another_structure_are_refused""",
    },
    "it is about memory, bytes or the line of a warning": {
        "test_realisation": "test_drowned_channels_are_named",
        "test_regressions": """
            test_host_arrays_are_of_native_byte_order
            test_logarithms_come_from_from_log_only""",
        "laws/test_law_arrays": "test_inputs_stay_as_they_are_byte_for_byte",
    },
    "it makes arrays of a library itself": {
        "test_systems": """
            test_array_api_strict
            test_array_api_strict_dense_batch_and_logarithms
            test_jax_arrays
            test_traced_values_are_checked_by_shape_alone""",
    },
}

DOUBLE_ONLY: dict[str, dict[str, str]] = {}
"""As above, for libraries that hold 32 bits."""


def reasons(module: str, test: str) -> list[str]:
    """Why a test does not run in other libraries than NumPy."""
    return [why for why, tests in NUMPY_ONLY.items() if test in tests.get(module, "").split()]


def libraries_of(path: Path, test: str) -> list[str]:
    """Where a test runs."""
    module = path.relative_to(Path(__file__).parent).with_suffix("").as_posix()

    def named(exceptions: dict[str, dict[str, str]]) -> bool:
        return any(test in tests.get(module, "").split() for tests in exceptions.values())

    if named(NUMPY_ONLY):
        return ["numpy"]
    return [name for name in EVERYWHERE if name != "jax-x32" or not named(DOUBLE_ONLY)]
