"""python-control, scipy.signal and pyMOR: in and out, time base and transfer function kept."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import control
import numpy as np
import pytest
import scipy.signal
from samples import EPS, lru_system
from transfer import KINDS, TIMES, assert_same_map, random_system, transfer

from ssmreduce import Continuous, Discrete, StateSpace, hinf_norm
from ssmreduce.adapters.control import from_control, to_control
from ssmreduce.adapters.pymor import from_pymor, to_pymor
from ssmreduce.adapters.scipy_signal import from_scipy, to_scipy
from ssmreduce.errors import ArgumentTypeError, MissingBackendError, ShapeError, TimeDomainError
from ssmreduce.responses import frequency_response

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pymor.models.iosys import LTIModel

REAL = ["real dense", "real output", "real diagonal"]


def without_states(time: Any) -> StateSpace:
    return StateSpace(np.zeros((0, 0)), np.zeros((0, 2)), np.zeros((1, 0)), [[1.0, 2.0]], time=time)


# --- python-control


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", REAL)
def test_control_and_back(rng: np.random.Generator, kind: str, after: bool) -> None:
    for time in TIMES:
        system = random_system(rng, kind, time, after=after and time != Continuous())
        theirs = to_control(system)
        assert theirs.dt == (0 if time == Continuous() else 0.1)
        for point in (0.3 + 0.2j, 2j):
            expected = transfer(system, point)
            limit = 1e3 * EPS * np.abs(expected).max()
            np.testing.assert_allclose(theirs(point), expected, rtol=0, atol=limit)
        assert_same_map(from_control(theirs), system, 100 * EPS)
        empty = from_control(to_control(without_states(time)))
        assert empty.order == 0
        assert empty.time == time
        assert empty.D.tolist() == [[1.0, 2.0]]


def test_useless_states_are_kept() -> None:
    system = StateSpace(np.diag([0.5, 0.2]), [[1.0], [0.0]], [[1.0, 0.0]], time=Discrete())
    assert to_control(system).nstates == 2


def test_time_bases_of_control() -> None:
    def build(dt: Any) -> Any:
        return control.ss([[0.5]], [[1.0]], [[1.0]], [[0.0]], dt)

    assert from_control(build(0)).time == Continuous()
    assert from_control(build(True)).time == Discrete()
    assert from_control(build(True), Discrete(0.2)).time == Discrete(0.2)
    assert from_control(build(0.1)).time == Discrete(0.1)
    assert from_control(build(0.1), Discrete(0.1)).time == Discrete(0.1)
    assert from_control(build(None), Continuous()).time == Continuous()
    assert from_control(build(None), Discrete(0.3)).time == Discrete(0.3)
    with pytest.raises(TimeDomainError, match=r"dt=None.*time=Continuous\(\) or time=Discrete"):
        from_control(build(None))
    for dt, time in (
        (0, Discrete()),
        (True, Continuous()),
        (0.1, Discrete(0.2)),
        (0.1, Continuous()),
    ):
        with pytest.raises(TimeDomainError, match=r"`time` is .* but `sys` has dt="):
            from_control(build(dt), time)
    bad: Any = 0.1
    with pytest.raises(TimeDomainError, match=r"`time` is 0\.1"):
        from_control(build(0), bad)


@pytest.mark.parametrize("dt", [0, 0.1])
def test_control_transfer_functions(dt: float) -> None:
    single = control.tf([1.0, 2.0], [1.0, 0.4, 0.3], dt)
    many = control.tf(
        [[[1.0], [2.0, 1.0]], [[0.5, 0.1], [3.0]]],
        [[[1.0, 0.5], [1.0, 0.2]], [[1.0, 0.1], [1.0, 0.3]]],
        dt,
    )
    static = control.tf([3.0], [2.0], dt)
    for theirs in (single, many, static):
        system = from_control(theirs)
        for point in (0.7j, 1.5 + 0.1j):
            np.testing.assert_allclose(
                transfer(system, point), np.atleast_2d(theirs(point)), rtol=1e6 * EPS
            )
        assert system.time == (Discrete(dt) if dt else Continuous())
    assert from_control(static).order == 0
    with pytest.raises(ShapeError, match="higher degree"):
        from_control(control.tf([1.0, 0.0, 0.0], [1.0, 1.0], dt))


def test_wide_transfer_functions_need_slycot(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise control.ControlMIMONotImplemented("no slycot")

    monkeypatch.setattr(control, "ss", missing)
    wide = control.tf([[[1.0], [2.0]]], [[[1.0, 1.0], [1.0, 2.0]]], 0)
    with pytest.raises(MissingBackendError, match=r"1 outputs and 2 inputs.*ssmreduce\[slycot\]"):
        from_control(wide)


# --- scipy.signal


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", REAL)
def test_scipy_and_back(rng: np.random.Generator, kind: str, after: bool) -> None:
    for time in TIMES:
        system = random_system(rng, kind, time, m=1, p=1, after=after and time != Continuous())
        theirs = to_scipy(system)
        response = scipy.signal.dfreqresp if time != Continuous() else scipy.signal.freqresp
        _, values = response(theirs, [0.3, 2.0])
        points = [0.3j, 2j] if time == Continuous() else np.exp([0.3j, 2j])
        expected = np.array([transfer(system, z)[0, 0] for z in points])
        # SciPy goes through polynomial coefficients.
        np.testing.assert_allclose(values, expected, rtol=1e6 * EPS * np.abs(expected).max())
        assert_same_map(from_scipy(theirs), system, 100 * EPS)
        empty = from_scipy(to_scipy(without_states(time)))
        assert empty.order == 0
        assert empty.time == time


def test_time_bases_of_scipy() -> None:
    assert from_scipy(scipy.signal.dlti([1.0], [1.0, 0.5])).time == Discrete()
    assert from_scipy(scipy.signal.dlti([1.0], [1.0, 0.5], dt=0.2)).time == Discrete(0.2)
    assert from_scipy(scipy.signal.lti([1.0], [1.0, 0.5])).time == Continuous()


@pytest.mark.parametrize("dt", [None, 0.1])
def test_scipy_transfer_functions(dt: float | None) -> None:
    flags: dict[str, Any] = {} if dt is None else {"dt": dt}
    cases = [
        ([1.0, 2.0], [2.0, 0.4, 0.3]),
        ([3.0, 1.0, 2.0], [2.0, 0.4, 0.3]),
        ([3.0], [2.0]),
        ([1.0, 2.0j], [1.0, 0.4 + 1j, 0.3]),
    ]
    for numerator, denominator in cases:
        system = from_scipy(scipy.signal.TransferFunction(numerator, denominator, **flags))
        assert system.order == len(denominator) - 1
        for point in (0.7j, 1.5 + 0.1j):
            expected = np.polyval(numerator, point) / np.polyval(denominator, point)
            np.testing.assert_allclose(transfer(system, point), [[expected]], rtol=100 * EPS)
    two = scipy.signal.TransferFunction([[1.0, 2.0], [0.0, 3.0]], [1.0, 0.5], **flags)
    np.testing.assert_allclose(
        transfer(from_scipy(two), 1j), [[(1j + 2) / (1j + 0.5)], [3 / (1j + 0.5)]]
    )
    with pytest.raises(ShapeError, match="degree 2 over a denominator of degree 1"):
        from_scipy(scipy.signal.TransferFunction([1.0, 0.0, 1.0], [1.0, 1.0], **flags))


ROOTS = {
    "all real": ([-1.0, -2.0], [-0.5, -0.7, -3.0], 2.0),
    "pairs": ([0.1 + 2j, 0.1 - 2j, -4.0], [-0.5 + 1j, -0.5 - 1j, -0.1 + 3j, -0.1 - 3j], 0.3),
    "one zero, even poles": ([-4.0], [-0.5 + 1j, -0.5 - 1j], 0.3),
    "odd everything": ([-4.0], [-0.5 + 1j, -0.5 - 1j, -2.0], 0.3),
    "as many zeros as poles": ([-4.0, 1j, -1j], [-0.5 + 1j, -0.5 - 1j, -2.0], -0.3),
    "no zeros": ([], [-1.0], 2.0),
    "nothing": ([], [], 2.5),
    "complex": ([1j], [-0.5 + 1j, -0.5 - 2j], 0.3),
    "complex gain": ([], [-0.5 + 1j, -0.5 - 1j], 0.3j),
    "equal": ([-1.0, -1.0], [-0.5 + 1j, -0.5 - 1j, -0.5 + 1j, -0.5 - 1j], 1.0),
}


@pytest.mark.parametrize("name", ROOTS)
def test_scipy_zeros_and_poles(name: str) -> None:
    zeros, poles, gain = ROOTS[name]
    system = from_scipy(scipy.signal.ZerosPolesGain(zeros, poles, gain))
    assert system.order == len(poles)
    assert np.iscomplexobj(system.D) == ("complex" in name)
    for point in (0.7j, 1.5 + 0.1j):
        expected = gain * np.prod(point - np.array(zeros)) / np.prod(point - np.array(poles))
        np.testing.assert_allclose(transfer(system, point), [[expected]], rtol=1e3 * EPS)


@pytest.mark.parametrize("order", [7, 20])
def test_sections_keep_the_response_of_a_long_filter(order: int) -> None:
    zeros, poles, gain = scipy.signal.butter(order, 0.1, output="zpk")
    theirs = scipy.signal.ZerosPolesGain(zeros, poles, gain, dt=True)
    omega = np.geomspace(1e-3, 3.0, 100)
    points = np.exp(1j * omega)
    expected = np.array([gain * np.prod(z - zeros) / np.prod(z - poles) for z in points])
    found = frequency_response(from_scipy(theirs), omega)[:, 0, 0]
    # The gain is at most 1; inside the sections signals are up to 1e4 times larger.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e4 * EPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        canonical = theirs.to_ss()
    lost = frequency_response(from_scipy(canonical), omega)[:, 0, 0]
    if order == 20:  # why we do not go that way
        assert np.abs(lost - expected).max() > 1e-2


@pytest.mark.parametrize("band", ["bandpass", "bandstop"])
@pytest.mark.parametrize(
    ("design", "arguments"),
    [("ellip", (6, 0.1, 60)), ("cheby2", (6, 60)), ("cheby1", (5, 0.1)), ("butter", (6,))],
)
@pytest.mark.parametrize("edges", [(1e3, 1e5), (1.0, 1e6), (20.0, 20e3)])
def test_sections_of_a_wide_band_have_no_large_gains(
    design: str, arguments: tuple[float, ...], band: str, edges: tuple[float, float]
) -> None:
    """Zeros belong beside poles of their size, and slow sections between fast ones."""
    filters = getattr(scipy.signal, design)
    zpk = filters(*arguments, edges, band, analog=True, output="zpk")
    system = from_scipy(scipy.signal.ZerosPolesGain(*zpk))
    omega = np.geomspace(0.01 * edges[0], 100.0 * edges[1], 400)
    _, expected = scipy.signal.freqs_zpk(*zpk, worN=omega)
    np.testing.assert_allclose(frequency_response(system, omega)[:, 0, 0], expected, atol=1e-8)
    assert hinf_norm(system).lower == pytest.approx(1.0, abs=1e-7)
    if edges == (20.0, 20e3):
        zpk = filters(*arguments, edges, band, fs=96e3, output="zpk")
        system = from_scipy(scipy.signal.ZerosPolesGain(*zpk, dt=True))
        _, expected = scipy.signal.freqz_zpk(*zpk, worN=omega[omega < np.pi])
        found = frequency_response(system, omega[omega < np.pi])[:, 0, 0]
        np.testing.assert_allclose(found, expected, atol=1e-7)


def test_improper_and_wide_zeros() -> None:
    with pytest.raises(ShapeError, match="degree 2 over a denominator of degree 1"):
        from_scipy(scipy.signal.ZerosPolesGain([1.0, 2.0], [0.5], 1.0))


# --- pyMOR


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pymor_and_back(rng: np.random.Generator, kind: str, after: bool) -> None:
    for time in TIMES:
        system = random_system(rng, kind, time, after=after and time != Continuous())
        model = to_pymor(system)
        assert model.sampling_time == (0 if time == Continuous() else 0.1)
        for point in (0.3 + 0.2j, 2j):
            expected = transfer(system, point)
            limit = 1e3 * EPS * np.abs(expected).max()
            np.testing.assert_allclose(
                model.transfer_function.eval_tf(point), expected, rtol=0, atol=limit
            )
        back = from_pymor(model)
        assert_same_map(back, system, 100 * EPS)
        assert np.iscomplexobj(back.A) == ("complex" in kind)
        empty = from_pymor(to_pymor(without_states(time)))
        assert empty.order == 0
        assert empty.time == time


def test_pymor_descriptors_are_refused() -> None:
    A, B, C = -np.eye(2), np.ones((2, 1)), np.ones((1, 2))
    with pytest.raises(ShapeError, match=r"E other than the identity.*solve\(E, A\)"):
        from_pymor(LTIModel.from_matrices(A, B, C, E=2 * np.eye(2)))
    same = from_pymor(LTIModel.from_matrices(A, B, C, E=np.eye(2)))
    np.testing.assert_array_equal(same.A, A)
    assert same.D.tolist() == [[0.0]]


def test_pymor_sparse_operators() -> None:
    import scipy.sparse

    A = scipy.sparse.csc_array(-np.eye(3))
    model = LTIModel.from_matrices(A, np.ones((3, 1)), np.ones((1, 3)))
    assert type(from_pymor(model).A) is np.ndarray


# --- All of them

EXPORTS = {"python-control": to_control, "scipy.signal": to_scipy}


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("kind", ["complex dense", "complex diagonal"])
def test_complex_systems_are_not_cast(rng: np.random.Generator, kind: str, name: str) -> None:
    system = random_system(rng, kind, Discrete(0.1))
    with pytest.raises(ShapeError, match=rf"complex but {name} holds real.*real_form"):
        EXPORTS[name](system)


def test_scipy_drops_imaginary_parts() -> None:
    """Why complex systems are refused: a test that fails once SciPy is mended."""
    A, B, C = (
        np.array([[-1 + 0.3j, 0.2], [0, -0.9 - 0.4j]]),
        np.array([[1.0], [1j]]),
        np.ones((1, 2)),
    )
    theirs = scipy.signal.StateSpace(A, B, C, np.zeros((1, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scipy.signal.freqresp(theirs, [0.3])[1][0]
    expected = transfer(StateSpace(A, B, C, time=Continuous()), 0.3j)[0, 0]
    assert abs(found - expected) > 0.1 * abs(expected)


@pytest.mark.parametrize("export", [to_control, to_scipy, to_pymor])
def test_layers_and_batches(rng: np.random.Generator, export: Any) -> None:
    layer = lru_system(rng, 4, 2)
    imported = {to_control: from_control, to_scipy: from_scipy, to_pymor: from_pymor}[export]
    back = imported(export(layer))
    assert back.order == 8
    assert not np.iscomplexobj(back.A)
    assert_same_map(back, layer, 1e3 * EPS)
    batch = random_system(rng, "real dense", Continuous(), batch=(2,))
    with pytest.raises(ShapeError, match=r"batch axes \(2,\)"):
        export(batch)
    with pytest.raises(ArgumentTypeError, match="expected a StateSpace"):
        export(np.eye(3))


@pytest.mark.parametrize("function", [from_control, from_scipy, from_pymor])
def test_other_objects_are_refused(function: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"numpy\.ndarray; expected a"):
        function(np.eye(3))


@pytest.mark.parametrize(
    ("module", "extra", "functions"),
    [
        ("control", "control", (from_control, to_control)),
        ("pymor.models.iosys", "pymor", (from_pymor, to_pymor)),
    ],
)
def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str, functions: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for function in functions:
        with pytest.raises(MissingBackendError, match=rf"pip install 'ssmreduce\[{extra}\]'"):
            function(without_states(Continuous()))


def test_exports_are_copies(rng: np.random.Generator) -> None:
    system = random_system(rng, "real dense", Continuous())
    theirs = to_control(system)
    ours = from_control(theirs)
    assert not np.shares_memory(ours.A, theirs.A)
