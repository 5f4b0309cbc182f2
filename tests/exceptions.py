"""Which numerical tests do not run in every array library, and why: the one list.

A module has the mark `every_library`, and each of its tests runs in all of `EVERYWHERE` unless it is named
here; ``tests/meta/test_everywhere.py`` fails where no test has such a name any more. A test that
calls nothing in its library fails there, and belongs into the list.
"""

from __future__ import annotations

from pathlib import Path

import libraries

EVERYWHERE = ["numpy", "numpy-read-only", "strict", "torch", "jax-x64", "jax-x32", "cupy"]
"""Names in `libraries`; CuPy needs a GPU and is skipped, with the reason, where there is none."""

NUMPY_ONLY: dict[str, dict[str, str]] = {
    "it calls what lies below the public functions, which knows NumPy arrays alone": {
        "reduction/test_batches": """
            test_one_blas_thread_means_no_workers
            test_the_first_failure_is_raised_and_threads_are_given_back
            test_workers_have_one_blas_thread_each
            test_workers_see_the_error_state_of_the_caller""",
        "reduction/test_h2_optimal": """
            test_continuous_form_keeps_the_gramian_and_comes_back
            test_plant_solves_its_sylvester_equations
            test_small_errors_are_not_differences_of_squares
            test_unstable_iterates_are_mirrored""",
        "gramians/test_relative_accuracy": """
            test_empty
            test_graded
            test_inputs_are_unchanged
            test_modal_form_is_the_benchmark
            test_not_finite
            test_sensitivity_is_the_published""",
        "equations/test_lyapunov": """
            test_a_solver_called_alone_does_not_depend_on_units
            test_inputs_that_reach_little
            test_lightly_damped_pair_in_a_group
            test_low_rank_iteration
            test_low_rank_iteration_stops_early_where_its_pace_is_too_slow
            test_orders_across_blocks
            test_pairs_of_uneven_states
            test_pairs_that_are_nearly_real
            test_schur_form_of_anything
            test_small_directions_keep_their_digits
            test_structured_matrices_fall_apart""",
        "reduction/test_modal": "test_schur_poles_are_eigenvalues",
        "reduction/test_perturbation": "test_a_singular_state_matrix_is_refused_read_after_the_update",
        "test_responses": "test_products_of_diagonal_systems",
    },
    "no array is in it: order rules, time domains and what is missing, by themselves": {
        "reduction/test_balanced_truncation": """
            test_error_bound_arguments
            test_rules_count_as_they_say
            test_shares_are_reached_and_monotone
            test_shares_out_of_range""",
        "reduction/test_order_rules": """
            test_rounding_is_not_paid_for
            test_too_small_a_budget_is_refused""",
        "systems/test_systems": """
            test_missing_extra_names_the_pip_command
            test_sampling_time
            test_time_is_required""",
    },
    "it is about layers and training, whose weights are read to the host": {
        "reduction/test_order_rules": "test_the_layers_of_a_model_share_a_budget",
        "test_regressions": """
            test_a_failing_decomposition_does_not_end_training
            test_a_registered_class_without_the_arrays_names_them
            test_bfloat16_weights_are_reduced
            test_optimizer_states_of_another_structure_are_refused""",
    },
    "it is about memory, bytes or the line of a warning": {
        "reduction/test_realisation": "test_small_gains_are_named",
        "test_regressions": """
            test_host_arrays_are_of_native_byte_order
            test_logarithms_come_from_from_log_only
            test_memory_of_a_dense_cut""",
        "laws/test_law_arrays": "test_inputs_stay_as_they_are_byte_for_byte",
    },
    "it makes arrays of a library itself": {
        "systems/test_systems": """
            test_array_api_strict
            test_array_api_strict_dense_batch_and_logarithms
            test_decisions_on_traced_values_are_refused
            test_jax_arrays
            test_subclasses_of_arrays
            test_traced_values_are_checked_by_shape_alone""",
    },
    "it takes about a second or more": {
        "reduction/test_batches": """
            test_each_system_is_as_it_is_alone
            test_large_channels_are_not_stacked
            test_sampled_s4d_channels_against_the_oracle
            test_values_of_channels_keep_their_relative_accuracy""",
        "gramians/test_frequency_limited": "test_gramians_and_hsv_of_a_diagonal_system_to_rounding",
        "reduction/test_h2_optimal": """
            test_interpolates_at_its_mirrored_poles
            test_never_worse_than_balanced_truncation
            test_no_small_change_improves_it""",
        "test_hankel": """
            test_near_degenerate_poles
            test_random_systems""",
        "gramians/test_relative_accuracy": """
            test_large_systems_take_the_route_of_others
            test_s4d_channels""",
        "reduction/test_hard_cases": "test_from_one_to_512_inputs_and_outputs",
        "norms/test_norms": """
            test_hankel_norm_is_that_of_the_standard_form
            test_hinf_of_the_benchmarks_agrees_with_slicot
            test_layers_of_256_states
            test_wide_differences_of_layers_hold_their_feedthrough
            test_wide_systems""",
        "reduction/test_perturbation": "test_benchmarks",
        "reduction/test_real_output_gain": "test_gain",
        "test_regressions": "test_memory_of_a_cut",
        "test_responses": "test_many_frequencies_of_a_dense_system",
    },
}

DOUBLE_ONLY: dict[str, dict[str, str]] = {
    "its numbers, down to 1e-300 or up to 1e300, are out of the range of 32 bits": {
        "laws/test_law_truncation": "test_extreme_gains_change_nothing_but_the_gain",
        "reduction/test_batches": "test_h2_norms_of_channels_are_taken_together",
        "systems/test_coordinates": "test_units_are_no_singularity_but_dependent_columns_are",
        "gramians/test_frequency_limited": "test_extreme_scales",
        "gramians/test_gramians": "test_diagonal_gramians_keep_small_entries",
        "reduction/test_h2_optimal": "test_scales_of_input_and_output_scale_the_error",
        "test_hankel": "test_wide_magnitudes_of_states_do_not_matter",
        "gramians/test_relative_accuracy": """
            test_extreme_norms
            test_overflow_is_an_error
            test_residues_over_many_decades
            test_scaling_of_states_does_not_matter""",
        "reduction/test_hard_cases": """
            test_gains_of_1e150
            test_time_in_units_of_1e100""",
        "equations/test_lyapunov": """
            test_any_unit_of_time
            test_doubling_of_large_factors
            test_extreme_norms
            test_solutions_out_of_range_are_refused""",
        "norms/test_norms": "test_norms_scale_with_the_system",
        "reduction/test_realisation": "test_common_scales_and_silent_channels_do_not_warn",
        "test_regressions": """
            test_extreme_scales_of_the_states
            test_values_beyond_the_range_are_refused""",
        "test_responses": "test_badly_scaled_systems_have_a_dc_gain",
        "systems/test_sampling": "test_large_and_small_inputs_do_not_matter",
    },
    "a pole, a pair or a cancellation that it rests on does not survive rounding to 32 bits": {
        "reduction/test_balanced_truncation": "test_measured_error_sees_sharp_resonances",
        "reduction/test_batches": "test_ranks_that_differ_are_padded_with_states_without_energy",
        "systems/test_coordinates": """
            test_complex_coordinates_of_a_real_system
            test_conjugate_pairs_in_any_order_and_scale""",
        "gramians/test_frequency_limited": """
            test_poles_next_to_the_boundary_inside_the_band
            test_random_sharp_poles_and_bands
            test_small_directions_keep_their_digits_where_a_formed_gramian_loses_half""",
        "reduction/test_hard_cases": """
            test_a_cluster_next_to_the_circle_from_logarithms
            test_a_system_that_transfers_nothing_has_rank_zero
            test_modulus_1_minus_1e_minus_12
            test_modulus_1_minus_1e_minus_12_in_a_real_matrix
            test_real_poles_next_to_the_circle_from_logarithms""",
        "equations/test_lyapunov": """
            test_doubling_that_overflows_is_refused
            test_states_out_of_reach_by_rounding""",
        "norms/test_norms": """
            test_a_chain_of_sections_of_large_gain_is_right
            test_hinf_of_one_resonance_is_known""",
        "reduction/test_perturbation": "test_logarithms_of_poles_near_one_are_used",
        "reduction/test_realisation": """
            test_minimal_realisation_of_dense_systems
            test_minimal_realisation_of_unstable_systems""",
        "test_regressions": """
            test_a_long_filter_in_sections_is_reduced_within_its_bound
            test_logarithms_of_poles_survive_in_batches_and_beside_unstable_ones""",
        "test_responses": """
            test_continuous_simulation_solves_the_equation
            test_integrators_have_no_dc_gain""",
        "systems/test_sampling": """
            test_dense_systems_without_a_logarithm
            test_diagonal_systems_without_a_logarithm
            test_poles_that_the_bilinear_map_sends_to_infinity""",
        "reduction/test_unstable": "test_poles_on_the_boundary_are_kept",
    },
    "its oracle is met to more digits, or more exactly, than 32 bits hold": {
        "laws/test_law_arrays": "test_a_batch_is_its_singles",
        "laws/test_law_values": "test_they_are_real_descending_and_complete",
        "reduction/test_balanced_truncation": """
            test_a_batch_is_its_singles
            test_readout_after_the_update""",
        "gramians/test_frequency_weighting": "test_all_frequencies_are_balanced_truncation",
        "reduction/test_h2_optimal": """
            test_given_start_is_improved_or_returned
            test_real_systems_stay_real_and_keep_what_they_are
            test_start_with_repeated_and_real_poles""",
        "test_hankel": "test_fast_decay_keeps_the_small_values",
        "gramians/test_relative_accuracy": """
            test_balance_has_the_same_rank
            test_yardstick""",
        "reduction/test_hard_cases": "test_wide_frequency_ranges",
        "norms/test_norms": """
            test_rounding_of_a_schur_form_is_no_error_of_a_reduction
            test_a_badly_scaled_basis_does_not_matter
            test_a_difference_holds_its_feedthrough
            test_batches_are_their_single_systems
            test_h2_does_not_see_the_basis""",
        "reduction/test_perturbation": "test_a_batch_is_its_singles",
        "test_responses": """
            test_graded_matrices_keep_their_digits
            test_static_gains""",
        "layers/test_selection": """
            test_scores_are_norms_of_single_modes
            test_unstable_modes_are_kept""",
        "systems/test_systems": "test_logarithms_survive_indexing_and_host",
        "reduction/test_unstable": """
            test_a_batch_of_mixed_stability
            test_the_stable_part_is_reduced""",
        "gramians/test_weighted": """
            test_factors_are_the_weighted_integral
            test_no_weight_and_identity_weights_change_nothing""",
    },
}
"""As above, for libraries that hold 32 bits."""

HOST_ONLY: dict[str, dict[str, str]] = {
    "small values of diagonal and badly scaled systems keep fewer digits on a device, or underflow": {
        "gramians/test_relative_accuracy": """
            test_balance_has_the_same_rank
            test_nearly_real_poles
            test_opposite_residues_at_one_pole_cancel
            test_overflow_is_an_error
            test_real_systems_stay_real
            test_residues_over_many_decades
            test_yardstick
            test_zero_weights_and_repeated_poles""",
        "reduction/test_hard_cases": """
            test_a_system_that_transfers_nothing_has_rank_zero
            test_badly_scaled_states""",
        "equations/test_lyapunov": "test_extreme_norms",
        "norms/test_norms": "test_norms_scale_with_the_system",
        "test_regressions": "test_extreme_scales_of_the_states",
    },
    "on a device it is done in another way, without what the test looks at": {
        "reduction/test_batches": "test_each_system_is_as_it_is_alone",
        "reduction/test_hard_cases": "test_badly_scaled_inputs_and_outputs",
        "equations/test_lyapunov": """
            test_diagonal_matrices
            test_low_rank_iteration_in_discrete_time""",
    },
    "it compares a lower bound of a peak, found without eigenvalues on a device, to all digits": {
        "norms/test_norms": """
            test_a_chain_of_sections_of_large_gain_is_right
            test_level_set_finds_the_norm_from_any_start""",
    },
    "it expects the same bits as from another function": {
        "norms/test_norms": "test_batches_are_their_single_systems",
        "reduction/test_unstable": """
            test_a_stable_system_is_reduced_as_ever
            test_the_stable_part_is_reduced""",
    },
}
"""As above, for arrays on a device; found with the device that array-api-strict makes up."""


def libraries_of(path: Path, test: str) -> list[str]:
    """Where a test runs."""
    module = path.relative_to(Path(__file__).parent).with_suffix("").as_posix()

    def excepted(exceptions: dict[str, dict[str, str]]) -> bool:
        return any(test in tests.get(module, "").split() for tests in exceptions.values())

    left_out = set(EVERYWHERE[1:]) if excepted(NUMPY_ONLY) else set()
    if excepted(DOUBLE_ONLY):
        left_out.add("jax-x32")
    if excepted(HOST_ONLY):
        left_out.update(libraries.ELSEWHERE)
    return [name for name in EVERYWHERE if name not in left_out]
