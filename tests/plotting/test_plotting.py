"""The pictures: what is drawn and what it is called, without comparing pixels."""

from __future__ import annotations

import dataclasses
import io
import itertools
import sys
from collections.abc import Callable
from typing import Any

import good_calls
import numpy as np
import pytest
from samples import dense_system, linoss_weights, lru_system
from torch_samples import model_and_batches

from ssmreduce import (
    Continuous,
    CutOptions,
    DiagonalStateSpace,
    Discrete,
    StateSpace,
    balance,
    balanced_truncation,
    calibrate,
    diagonalised,
    error_bounds,
    frequency_response,
    h2_optimal,
    hinf_norm,
    impulse_response,
    modal_truncation,
    parallel,
    reduce_layer,
    reduce_model,
    sweep,
)
from ssmreduce.demo.lru import LRU
from ssmreduce.demo.pictures import poles_picture, values_picture
from ssmreduce.errors import (
    ArgumentError,
    MissingBackendError,
    OrderError,
    ShapeError,
    TimeDomainError,
)
from ssmreduce.plotting import (
    plot_agreement,
    plot_errors,
    plot_gain,
    plot_hsv,
    plot_hsv_map,
    plot_impulse,
    plot_layers,
    plot_metric,
    plot_poles,
)
from ssmreduce.training.tracking import ReductionEvent


@pytest.fixture(autouse=True)
def _without_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody had imported it."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # type: ignore[arg-type]


def slow(dt: float = 1.0) -> DiagonalStateSpace:
    return DiagonalStateSpace(
        [0.9, 0.5, 0.1], [[1.0], [1.0], [0.1]], [[1.0, 1.0, 0.1]], time=Discrete(dt)
    )


def fast() -> StateSpace:
    return StateSpace([[-1.0, 2.0], [-2.0, -3.0]], [[1.0], [0.5]], [[1.0, 0.0]], time=Continuous())


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def line(axes: Any, label: str) -> Any:
    (found,) = [each for each in axes.lines if each.get_label() == label]
    return found


def labels(axes: Any) -> tuple[str, str, str]:
    return axes.get_title(), axes.get_xlabel(), axes.get_ylabel()


def rendered(axes: Any) -> bytes:
    buffer = io.BytesIO()
    np.ravel(np.asarray(axes, dtype=object))[0].figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


# --- Values and errors


def test_the_kept_order_and_shares_of_the_energy_are_marked() -> None:
    axes = plot_hsv([8.0, 2.0, 1.0, 0.1], order=2)
    assert axes.get_yscale() == "log"
    assert line(axes, "all 4").get_ydata().tolist() == [8.0, 2.0, 1.0, 0.1]
    # Of 64 + 4 + 1 + 0.01.
    share = 100.0 * 68.0 / 69.01
    (mark,) = [each for each in axes.lines if each.get_label().startswith("2 of 4 kept")]
    assert mark.get_label() == f"2 of 4 kept: {share:.4g} % of Σσ²"
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (2, 2.0)
    reached = {x: line(axes, f"{x} % of Σσ²").get_xdata()[0] for x in ("90", "99", "99.9")}
    assert reached == {"90": 1, "99": 3, "99.9": 3}
    assert [each.get_xdata()[0] for each in axes.lines if len(set(each.get_xdata())) == 1][1] == 2.5
    assert labels(axes) == (
        "Hankel singular values",
        "number of the value",
        "Hankel singular value",
    )


def test_rounding_is_left_out_and_a_batch_is_drawn_as_its_largest_values() -> None:
    axes = plot_hsv([1.0, 1e-3, 1e-14, 0.0], energy=())
    np.testing.assert_array_equal(line(axes, "all 4").get_ydata(), [1.0, 1e-3, np.nan, np.nan])
    axes = plot_hsv([[4.0, 1.0], [3.0, 2.0]], energy=())
    assert line(axes, "largest of 2, 2 each").get_ydata().tolist() == [4.0, 2.0]
    assert legend(axes)[0] == "range of 2 systems"
    assert plot_hsv([0.0, 0.0]).texts[0].get_text() == "all values are 0"


def test_other_values_are_called_what_they_are_and_curves_look_different() -> None:
    axes = plot_hsv([2.0, 1.0], name="singular value by data", label="a", energy=())
    assert (axes.get_ylabel(), axes.get_title()) == (
        "singular value by data",
        "Singular value by data",
    )
    assert plot_hsv([3.0, 1.0], label="b", energy=(), ax=axes) is axes
    one, two = line(axes, "a"), line(axes, "b")
    assert one.get_color() != two.get_color()
    assert one.get_linestyle() != two.get_linestyle()


def test_errors_and_a_metric_against_order() -> None:
    axes = plot_errors(
        [3, 1, 2],
        {"error bound": [0.0, 4.0, 1.0], "measured error": [None, 3.0, 0.5]},
        metric=[0.9, 0.5, np.nan],
        metric_name="accuracy",
    )
    assert axes.get_yscale() == "log"
    bound = line(axes, "error bound")
    assert bound.get_xdata().tolist() == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(bound.get_ydata(), [4.0, 1.0, np.nan])
    np.testing.assert_array_equal(line(axes, "measured error").get_ydata(), [3.0, 0.5, np.nan])
    right = axes.figure.axes[-1]
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [0.5, np.nan, 0.9])
    assert right.get_ylabel() == "accuracy"
    assert legend(axes) == ["error bound", "measured error", "accuracy (right)"]
    assert plot_errors([1], {}).texts[0].get_text() == "no error above 0 is known"


# --- Systems


def test_poles_in_the_unit_disk_and_the_half_plane() -> None:
    axes = plot_poles([0.9, 0.5j, -0.5j], [0.9], time=Discrete())
    before, after = axes.collections
    assert before.get_offsets().tolist() == [[0.9, 0.0], [0.0, 0.5], [0.0, -0.5]]
    assert after.get_offsets().tolist() == [[0.9, 0.0]]
    assert legend(axes) == ["3 before", "1 after"]
    circle = axes.lines[0]
    np.testing.assert_allclose(np.hypot(circle.get_xdata(), circle.get_ydata()), 1.0)
    folded = plot_poles([0.5j, -0.5j], time=Discrete(), folded=True)
    assert folded.collections[0].get_offsets().tolist() == [[0.0, 0.5], [0.0, 0.5]]
    assert folded.get_ylabel() == "|Im λ|"
    outside = plot_poles([2.0], time=Discrete())
    assert outside.get_xlim()[1] > 2.0
    half = plot_poles([-1.0 + 1j], time=Continuous())
    assert labels(half) == ("Poles", "Re λ (1/s)", "Im λ (rad/s)")
    assert set(half.lines[0].get_xdata()) == {0.0}


def test_labels_of_fast_poles_do_not_overlap() -> None:
    axes = plot_poles(2e5 * np.linspace(-1.0, -0.01, 6), time=Continuous())
    axes.figure.canvas.draw()
    low, high = axes.get_xlim()
    shown = [each for each in axes.get_xticklabels() if low <= each.get_position()[0] <= high]
    boxes = [each.get_window_extent() for each in shown]
    assert len(boxes) > 2
    assert all(one.x1 < two.x0 for one, two in itertools.pairwise(boxes))


@pytest.mark.parametrize("system", [slow(), fast()], ids=["discrete", "continuous"])
def test_gains_are_those_of_the_frequency_response(system: Any) -> None:
    reduction = balanced_truncation(system, 1)
    omega = np.array([0.05, 0.3, 2.0])
    axes = plot_gain(system, reduction.system, bound=reduction.error_bound, omega=omega)
    full, reduced = (frequency_response(each, omega) for each in (system, reduction.system))
    expected = {"full": full, "reduced": reduced, "error": full - reduced}
    for label, values in expected.items():
        gain = 20.0 * np.log10(np.abs(values[:, 0, 0]))
        np.testing.assert_allclose(line(axes, label).get_ydata(), gain, atol=1e-6)
        np.testing.assert_array_equal(line(axes, label).get_xdata(), omega)
    bound = 20.0 * np.log10(reduction.error_bound)
    assert line(axes, f"error bound ({bound:.1f} dB)").get_ydata()[0] == pytest.approx(bound)
    unit = "rad/sample" if isinstance(system.time, Discrete) else "rad/s"
    assert labels(axes) == ("Gain", f"frequency ({unit})", "gain (dB)")


def test_chosen_frequencies_reach_the_peak_and_the_nyquist_frequency() -> None:
    system = DiagonalStateSpace(
        [0.999 * np.exp(0.7j)], [[1.0]], [[1.0]], time=Discrete(0.01), real_output=True
    )
    axes = plot_gain(system)
    full = line(axes, "full")
    assert full.get_xdata()[-1] == pytest.approx(np.pi / 0.01)
    assert set(line(axes, "Nyquist frequency").get_xdata()) == {np.pi / 0.01}
    peak = 20.0 * np.log10(hinf_norm(system).lower)
    assert np.max(full.get_ydata()) == pytest.approx(peak, abs=0.01)
    assert axes.get_xlabel() == "frequency (rad/s)"


def test_the_gain_of_a_complex_system_is_the_larger_of_both_signs() -> None:
    system = DiagonalStateSpace([0.9j], [[1.0]], [[1.0]], time=Discrete())
    axes = plot_gain(system, omega=[1.0, np.pi / 2])
    both_signs = frequency_response(system, [1.0, -1.0, np.pi / 2, -np.pi / 2])[:, 0, 0]
    expected = np.abs(both_signs).reshape(2, 2).max(axis=1)
    np.testing.assert_allclose(line(axes, "full").get_ydata(), 20.0 * np.log10(expected))
    assert "the larger of both signs" in axes.get_xlabel()


def test_the_largest_gain_of_a_batch() -> None:
    batch = good_calls.channels()
    axes = plot_gain(batch, omega=[0.5])
    gains = [np.abs(frequency_response(batch[k], [0.5])[0, 0, 0]) for k in range(2)]
    assert line(axes, "full (largest of 2)").get_ydata()[0] == pytest.approx(
        20.0 * np.log10(max(gains))
    )


def test_impulse_responses_of_the_channel_with_most_energy() -> None:
    system = dense_system(np.random.default_rng(4), 5, 3, 2)
    reduction = balanced_truncation(system, 2)
    axes = plot_impulse(system, reduction.system, length=30)
    energy = np.sum(impulse_response(system, 30) ** 2, axis=0)
    output, entry = np.unravel_index(np.argmax(energy), energy.shape)
    assert axes.get_title() == f"Impulse response from u[{entry}] to y[{output}]"
    for label, each in {"full": system, "reduced": reduction.system}.items():
        np.testing.assert_allclose(
            line(axes, label).get_ydata(), impulse_response(each, 30)[:, output, entry], atol=1e-12
        )
    chosen = plot_impulse(system, channel=(1, 2), length=30)
    assert chosen.get_title() == "Impulse response from u[2] to y[1]"
    assert chosen.get_xlabel() == "sample"


def test_impulse_responses_over_seconds_and_of_batches() -> None:
    axes = plot_impulse(slow(0.1), length=5)
    np.testing.assert_allclose(axes.lines[0].get_xdata(), 0.1 * np.arange(5))
    assert axes.get_xlabel() == "time (s)"
    times = np.linspace(0.0, 2.0, 9)
    axes = plot_impulse(fast(), times=times)
    expected = impulse_response(fast(), times=times)[:, 0, 0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected)
    # Without times all but a thousandth of the energy is drawn: of exp(-t) with its poles -2 ± i √3.
    last = plot_impulse(fast()).lines[0].get_xdata()[-1]
    assert 1.0 < last < 8.0
    title = plot_impulse(good_calls.channels(), channel=(1, 0, 0)).get_title()
    assert title == "Impulse response of system 1 from u[0] to y[0]"


def resonance(omega: float, damping: float) -> StateSpace:
    """With the impulse response ω exp(-ζ ω t) sin(ω t), for small ζ."""
    A = [[0.0, omega], [-omega, -2.0 * damping * omega]]
    return StateSpace(A, [[0.0], [omega]], [[1.0, 0.0]], time=Continuous())


def test_each_period_of_an_impulse_response_has_ten_samples() -> None:
    times = plot_impulse(resonance(100.0, 0.01)).lines[0].get_xdata()
    assert times.size > 400
    assert np.diff(times).max() <= 2.0 * np.pi / 100.0 / 9.9


@pytest.mark.parametrize("change", [lambda system: system, diagonalised])
@pytest.mark.parametrize("damping", [1e-3, 1e-5])
def test_of_many_periods_the_envelope_is_drawn(
    change: Callable[[Any], Any], damping: float
) -> None:
    omega = 2.0 * np.pi * 30e3
    system = change(resonance(omega, damping))
    axes = plot_impulse(system, system)
    assert axes.get_ylabel() == "response: smallest and largest"
    (filled,) = axes.collections
    for values, sign in zip(axes.lines, (1.0, -1.0), strict=True):
        times, width = values.get_xdata(), values.get_xdata()[0]
        assert times[-1] > 4.0 / (damping * omega)
        # The largest value in a column is that at its beginning, or up to a period later.
        first, last = (np.exp(-damping * omega * (times + shift)) for shift in (-width, 0.0))
        assert np.all(sign * values.get_ydata() <= omega * first)
        assert np.all(sign * values.get_ydata() >= 0.9 * omega * last)
        corner = filled.get_paths()[0].get_extents()
        extreme = corner.y1 if sign > 0.0 else corner.y0
        assert extreme == pytest.approx(values.get_ydata()[0])


def test_a_fast_mode_does_not_hide_a_slow_one() -> None:
    slowly = StateSpace([[-1.0]], [[100.0]], [[1.0]], time=Continuous())
    system = parallel(slowly, resonance(1e4, 1e-4))
    axes = plot_impulse(system, slowly)
    high, low = (values.get_ydata() for values in axes.lines)
    times, width = axes.lines[0].get_xdata(), 2.0 * axes.lines[0].get_xdata()[0]
    np.testing.assert_allclose(high, 100.0 * np.exp(-(times - width / 2.0)))
    np.testing.assert_allclose(low, 100.0 * np.exp(-(times + width / 2.0)))
    corners = axes.collections[0].get_paths()[0].get_extents()
    assert 9.5e3 < corners.y1 < 1.02e4
    assert -1e4 < corners.y0 < -9.4e3


def test_of_a_long_response_a_thousand_samples_are_drawn() -> None:
    system = DiagonalStateSpace([0.99999], [[1.0]], [[1.0]], time=Discrete())
    assert len(plot_impulse(system).lines[0].get_xdata()) == 1000
    growing = DiagonalStateSpace([1.5], [[1.0]], [[1.0]], time=Discrete())
    assert len(plot_impulse(growing).lines[0].get_xdata()) == 20


# --- Training


def test_the_heat_map_ends_where_states_end() -> None:
    axes = plot_hsv_map(
        [0, 10, 30],
        [[4.0, 2.0, 0.0], [[4.0, 1.0, 0.1], [2.0, 2.0, 0.1]], [4.0]],
        kept=[2, 1, 1],
        cuts={15: "3 → 1", 16: "again", 25: "undone"},
    )
    mesh = axes.collections[0]
    table = np.ma.filled(mesh.get_array(), np.nan)
    # The least positive value stands for 0, and the largest over channels for them.
    np.testing.assert_array_equal(table, [[4.0, 4.0, 4.0], [2.0, 2.0, np.nan], [0.1, 0.1, np.nan]])
    np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [-5.0, 5.0, 20.0, 40.0])
    assert line(axes, "kept").get_ydata().tolist() == [2.5, 1.5, 1.5]
    assert [text.get_text() for text in axes.texts] == ["3 → 1, again", "undone"]
    bar = axes.figure.axes[-1]
    assert bar.get_ylabel() == "Hankel singular value"
    assert plot_hsv_map([1], [[0.0]]).texts[0].get_text() == "all values are 0"


def test_agreement() -> None:
    axes = plot_agreement([0, 10], [0.5, 1.0], [-0.5, 1.0], settled=10)
    assert line(axes, "same states kept (overlap)").get_ydata().tolist() == [0.5, 1.0]
    assert line(axes, "settled at step 10").get_xdata()[0] == 10
    assert axes.get_ylim()[0] < -0.5


def test_a_metric_against_time_with_the_cuts_on_the_curve() -> None:
    runs = {"full": ([0.0, 2.0], [10.0, np.nan]), "reduced": ([0.0, 2.0], [10.0, 20.0])}
    axes = plot_metric(runs, cuts={"reduced": [0.5]}, name="test accuracy (%)")
    np.testing.assert_array_equal(line(axes, "full").get_ydata(), [10.0, np.nan])
    cut = line(axes, "cut")
    assert (cut.get_xdata()[0], cut.get_ydata()[0]) == (0.5, 12.5)
    assert labels(axes)[1:] == ("wall-clock time (s)", "test accuracy (%)")
    with pytest.raises(ShapeError, match="`cuts` has the labels"):
        plot_metric(runs, cuts={"other": [1.0]})


# --- Layers


def test_layers_before_and_after() -> None:
    states, errors = plot_layers(
        ["a", "b"], [64, 32], [20, 32], errors={"error bound": [0.5, None], "measured": [0.1, 0.0]}
    )
    assert [text.get_text() for text in states.texts] == ["64 → 20", "32 → 32"]
    assert [bar.get_width() for bar in states.patches] == [64, 32, 20, 32]
    assert [text.get_text() for text in states.get_yticklabels()] == ["a", "b"]
    np.testing.assert_array_equal(line(errors, "error bound").get_xdata(), [0.5, np.nan])
    assert errors.get_xscale() == "log"


def test_long_names_keep_what_tells_them_apart() -> None:
    names = [f"backbone.encoder.stages.{k}.blocks.mixer.ssm.inner_layer" for k in range(3)]
    states, _ = plot_layers(names, [4] * 3, [2] * 3)
    shown = [text.get_text() for text in states.get_yticklabels()]
    assert shown == [f"…stages.{k}.blocks…" for k in range(3)]
    states, _ = plot_layers(["x" * 50], [4], [2])
    assert len(states.get_yticklabels()[0].get_text()) <= 36


# --- Results


def check_reduction(axes: Any, name: str) -> None:
    assert axes.shape == (2, 2)
    assert axes[0, 0].get_ylabel() == name
    assert axes[1, 0].get_title().startswith("Gain")
    assert axes[0, 1].get_title() == "Poles"
    assert rendered(axes).startswith(b"\x89PNG")


def test_a_reduction() -> None:
    reduction = balanced_truncation(lru_system(np.random.default_rng(1), 8, 2), 3)
    axes = reduction.plot()
    check_reduction(axes, "Hankel singular value")
    assert f"{reduction.real_order} of 16 kept" in legend(axes[0, 0])[1]
    assert axes[0, 0].get_xlabel() == "number of the value (2 per stored state)"
    assert legend(axes[0, 1]) == ["8 before", f"{reduction.order} after"]
    assert [text.split(" (")[0] for text in legend(axes[1, 0])] == [
        "full",
        "reduced",
        "error",
        "error bound",
        "Nyquist frequency",
    ]


@pytest.mark.parametrize(
    ("reduce", "name"),
    [
        (lambda: balanced_truncation(slow(), 3), "Hankel singular value"),  # nothing is cut
        (lambda: balanced_truncation(fast(), 1), "Hankel singular value"),
        (lambda: balanced_truncation(good_calls.channels(), 2), "Hankel singular value"),
        (lambda: balanced_truncation(good_calls.batch(), 2), "Hankel singular value"),
        (lambda: modal_truncation(good_calls.unstable(), 2), "score of the state"),
        (lambda: h2_optimal(slow(), 1), "Hankel singular value"),
        (
            lambda: balanced_truncation(good_calls.unstable(), 2, keep_unstable=True),
            "Hankel singular value",
        ),
        (lambda: balanced_truncation(slow(), 1, horizon=20), "Hankel singular value"),
    ],
)
def test_reductions_of_every_kind(reduce: Callable[[], Any], name: str) -> None:
    check_reduction(reduce().plot(), name)


def test_an_unstable_pole_is_no_hankel_singular_value() -> None:
    system = DiagonalStateSpace([-1.0, 2.0], [[1.0]] * 2, [[1.0] * 2], time=Continuous())
    whole = balanced_truncation(system, 2, keep_unstable=True)
    assert whole.verify(certified=True) == 0.0
    assert legend(whole.plot()[0, 0])[:2] == ["all 1", "1 of 1 kept: 100 % of Σσ²"]
    assert legend(balance(system, keep_unstable=True).plot()[0])[0] == "all 1"
    real = dataclasses.replace(system, real_output=True)
    assert legend(balance(real, keep_unstable=True).plot()[0])[0] == "all 2"


def test_a_balancing() -> None:
    hsv, bound = balance(slow()).plot(2)
    assert legend(hsv)[1].startswith("2 of 3 kept")
    expected = error_bounds(balance(slow()).hsv)
    drawn = line(bound, "error bound").get_ydata()
    np.testing.assert_array_equal(drawn, np.where(expected > 0.0, expected, np.nan))
    assert balance(slow(), horizon=9).plot()[1].texts[0].get_text() == "no error above 0 is known"
    with pytest.raises(OrderError, match="`order` is 4 but there are 3 values"):
        balance(slow()).plot(4)


@pytest.mark.parametrize("library", ["torch", "jax.numpy"])
def test_arrays_of_other_libraries(library: str) -> None:
    xp = pytest.importorskip(library)
    arrays = [[[0.9, 0.5, 0.1]] * 2, [[[1.0]] * 3] * 2, [[[1.0, 0.5, 2.0]]] * 2]
    system = DiagonalStateSpace(*map(xp.asarray, arrays), time=Discrete())
    check_reduction(balanced_truncation(system, 2).plot(), "Hankel singular value")
    assert legend(balance(system).plot(1)[0])[2].startswith("1 of 3 kept")
    check_reduction(modal_truncation(system, 2).plot(), "score of the state")


def test_a_system_without_states() -> None:
    static = StateSpace(
        np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), [[2.0]], time=Discrete()
    )
    assert balance(static).plot()[0].texts[0].get_text() == "there are no stable states"
    gain = plot_gain(static).lines[0].get_ydata()
    np.testing.assert_allclose(gain, 20.0 * np.log10(2.0))
    assert plot_impulse(static, length=3).lines[0].get_ydata().tolist() == [2.0, 0.0, 0.0]


def test_a_sweep() -> None:
    costs = sweep(slow(), [1, 2], metric=lambda system: system.order)
    axes = costs.plot()
    np.testing.assert_array_equal(
        line(axes, "measured error").get_ydata(), [row.measured_error for row in costs.rows]
    )
    assert axes.figure.axes[-1].get_ylabel() == "metric"
    assert legend(sweep(slow(), [1, 2]).plot()) == ["error bound", "measured error"]
    within = sweep(slow(), [1, 2], options=CutOptions(horizon=50))
    assert legend(within.plot()) == ["measured error"]  # there is no bound


def test_a_cut_for_a_horizon_is_drawn_as_far_as_that() -> None:
    axes = balanced_truncation(lru_system(np.random.default_rng(0), 12, 2), 4, horizon=7).plot()
    assert len(axes[1, 1].lines[0].get_xdata()) == 7
    assert axes[1, 0].get_title() == "Gain over all times, cut for 7 steps"


def test_layers_and_models() -> None:
    model = [LRU(16, 4, rng=np.random.default_rng(k)) for k in range(2)]
    result = reduce_model(model, 6)
    for axes in (result.plot(), result.report.plot()):
        assert [text.get_text() for text in axes[0].texts] == ["16 → 6", "16 → 6"]
        bounds = [part.error_bound for part in result.report.values()]
        assert line(axes[1], "error bound").get_xdata().tolist() == bounds
    check_reduction(reduce_layer(model[0], 6).plot(), "Hankel singular value")
    scores = reduce_layer(linoss_weights(), 3, kind="linoss")
    axes = scores.plot()
    check_reduction(axes, "score of the state")
    assert legend(axes[0, 0])[1].startswith(f"3 of {scores.old_order} kept")
    event = ReductionEvent.of(1, "linoss", scores, good_calls.sr.FixedOrder(3))
    assert event.ranked_by == "score of the state"


def test_values_by_data_are_called_so() -> None:
    model, batches = model_and_batches()
    data = calibrate(model, batches)
    report = reduce_model(model, 4, data=data, options=CutOptions(method="balanced")).report
    part, *_ = report.values()
    axes = part.plot()
    assert axes[0, 0].get_ylabel() == "singular value by data"
    assert "output error (relative)" in legend(report.plot()[1])
    event = ReductionEvent.of(1, "layer", part, good_calls.sr.FixedOrder(4))
    assert event.plot()[0].get_ylabel() == "singular value by data"


def test_a_selection_by_data_marks_no_largest_values() -> None:
    model, batches = model_and_batches()
    data = calibrate(model, batches)
    report = reduce_model(model, 4, data=data, options=CutOptions(method="selected")).report
    part, *_ = report.values()
    event = ReductionEvent.of(1, "layer", part, good_calls.sr.FixedOrder(4))
    for axes in (part.plot()[0, 0], event.plot()[0]):
        assert axes.get_ylabel() == "Hankel singular value"
        assert not [text for text in legend(axes) if "kept" in text]


def test_circles_are_on_curves() -> None:
    axes = plot_metric({"a": ([1, 2, 3], [1, 2, 3])}, cuts={"a": [2.5, 9.0]})
    circles = axes.lines[-1].get_ydata()
    np.testing.assert_array_equal(circles, [2.5, np.nan])


def test_an_event() -> None:
    event = dataclasses.replace(good_calls.event(), rolled_back=20)
    values, poles = event.plot()
    assert values.get_title() == "layer, step 10, undone at 20"
    assert values.get_ylabel() == "Hankel singular value"
    assert np.all(poles.collections[0].get_offsets()[:, 1] >= 0.0)
    none = np.zeros(0, complex)
    selective = dataclasses.replace(event, poles_before=none, poles_after=none, ranked_by="score")
    (alone,) = selective.plot()
    assert alone.get_ylabel() == "score"


def test_pictures_of_the_demo() -> None:
    events = [
        dataclasses.replace(good_calls.event(), step=step, layer=layer)
        for step, layer in ((5, "a"), (9, "b"))
    ]
    axes = values_picture(events).axes[0]
    assert legend(axes) == ["step 5, a: 6 → 4 states", "step 9, b: 6 → 4 states"]
    panels = poles_picture(events).axes
    assert [each.get_title() for each in panels] == legend(axes)
    for empty in (values_picture([]), poles_picture([])):
        assert "no cut was made" in [text.get_text() for text in empty.axes[0].texts]


# --- Where they are drawn


def test_axes_are_drawn_into_and_counted() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots(2, 2)
    assert balanced_truncation(slow(), 1).plot(ax=axes)[1, 1] is axes[1, 1]
    with pytest.raises(ShapeError, match="`ax` has 4 axes; expected 2"):
        balance(slow()).plot(ax=axes)
    with pytest.raises(ArgumentError, match="`ax` is 'here'; expected Matplotlib axes"):
        plot_hsv([1.0], ax="here")  # type: ignore[arg-type]


def test_a_notebook_shows_axes_without_pyplot() -> None:
    # Asked for by IPython; tried in a kernel without "%matplotlib inline".
    axes = plot_hsv([1.0, 0.5])
    assert axes._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert balance(slow()).plot()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_where_pyplot_is_loaded_the_figure_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
    pyplot.switch_backend("agg")
    axes = plot_hsv([1.0, 0.5])
    assert pyplot.gcf() is axes.figure
    assert not hasattr(axes, "_repr_png_")
    pyplot.close("all")


def test_missing_matplotlib_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # type: ignore[arg-type]
    with pytest.raises(MissingBackendError, match=r"pip install 'ssmreduce\[plot\]'"):
        plot_hsv([1.0])


# --- Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot_hsv([1.0, 2.0]), ShapeError, "`hsv` has shape"),
        (lambda: plot_hsv([2.0, 1.0], 3), OrderError, "`order` is 3 but there are 2 values"),
        (lambda: plot_hsv([1.0], energy=(2.0,)), ArgumentError, "`energy` is 2.0"),
        (lambda: plot_errors([], {}), ShapeError, "`orders` has no entries"),
        (lambda: plot_errors([1], {"a": [1.0, 2.0]}), ShapeError, r"`errors\['a'\]` has 2 numbers"),
        (lambda: plot_errors([1], [1.0]), ShapeError, "`errors` is"),
        (lambda: plot_poles([0.5], time=1.0), TimeDomainError, "`time` is 1.0"),
        (lambda: plot_gain(slow(), omega=[0.0, 1.0]), ShapeError, "positive frequencies"),
        (lambda: plot_gain(slow(), fast()), TimeDomainError, "has time"),
        (lambda: plot_gain(slow(), good_calls.channels()), ShapeError, "`reduced` has batch axes"),
        (lambda: plot_impulse(slow(), channel=(0,)), ArgumentError, "`channel` is"),
        (lambda: plot_impulse(slow(), channel=(0, 1)), ArgumentError, "expected indices below"),
        (lambda: plot_impulse(slow(), times=[0.0]), TimeDomainError, "`times`"),
        (lambda: plot_hsv_map([1, 1], [[1.0], [1.0]]), ShapeError, "steps that increase"),
        (lambda: plot_hsv_map([1], [[1.0]], cuts=[3]), ShapeError, "`cuts` is"),
        (lambda: plot_agreement([1], [1.0], [1.0, 2.0]), ShapeError, "`rank_correlation` has 2"),
        (lambda: plot_metric({"a": [1.0]}), ShapeError, r"`curves\['a'\]` has 1 entries"),
        (lambda: plot_layers(["a"], [4], [None]), ShapeError, "no number for some layer"),
        (lambda: plot_layers(["a"], [4, 5], [1]), ShapeError, "`before` has 2 numbers"),
    ],
)
def test_refusals(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("drive", [0.0, 1e-14])
def test_a_fast_mode_that_nothing_drives_makes_no_envelope(drive: float) -> None:
    system = DiagonalStateSpace(
        [-1.0 + 1e4j, -0.5 + 1.0j], [[drive], [1.0]], [[1.0, 1.0]], time=Continuous()
    )
    assert "smallest" not in plot_impulse(system).get_ylabel()
    driven = DiagonalStateSpace(
        [-1.0 + 1e4j, -0.5 + 1.0j], [[1.0], [1.0]], [[1.0, 1.0]], time=Continuous()
    )
    assert "smallest" in plot_impulse(driven).get_ylabel()
