"""What a system does to a signal: simulation, impulse response, frequency response."""

from __future__ import annotations

import numpy as np

from ssmreduce._namespace import HostArray, adjoint, to_double
from ssmreduce.errors import ShapeError, TimeDomainError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

_WORKING_ENTRIES = 2**22
"""Complex numbers held at once while a transfer function is evaluated: 64 MiB."""


def simulate(system: System, inputs: HostArray) -> HostArray:
    """Output of a discrete system for an input sequence, from rest.

    x[k] = A x[k-1] + B u[k], y[k] = C x[k] + D u[k] where the system reads after its update, else
    y[k] = C x[k] + D u[k], x[k+1] = A x[k] + B u[k].

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Discrete, without batch axes.
    inputs : (L, m) array
        Input sequence.

    Returns
    -------
    (L, p) array
        Output sequence; real where the system's output is.

    Raises
    ------
    TimeDomainError
        If the system is continuous.
    ShapeError
        If `inputs` is not (L, m), or the system has batch axes.

    Notes
    -----
    Cost O(L n (m + p)) for diagonal systems, O(L n (n + m + p)) for dense ones.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.systems.response import simulate
    >>> system = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    >>> simulate(system, [[1.0], [0.0], [0.0]]).ravel().tolist()
    [0.0, 1.0, 0.5]
    """
    host = _single_discrete(system)
    signal = to_double(inputs)
    if signal.ndim != 2 or signal.shape[1] != host.inputs:
        raise ShapeError(
            f"`inputs` has shape {signal.shape}; expected (L, {host.inputs}) for a system with "
            f"{host.inputs} inputs. Put time first."
        )
    driven = _each_row(host.B, signal)
    states = np.empty((len(signal), host.order), dtype=np.result_type(driven, _state_dtype(host)))
    x = np.zeros(host.order, dtype=states.dtype)
    for k, drive in enumerate(driven):
        if host.read_after_update:
            x = _advance(host, x) + drive
            states[k] = x
        else:
            states[k] = x
            x = _advance(host, x) + drive
    output = _each_row(host.C, states)
    if isinstance(host, DiagonalStateSpace) and host.real_output:
        output = output.real
    return output + _each_row(host.D, signal)


def impulse_response(system: System, length: int) -> HostArray:
    """First `length` Markov parameters of a discrete system, shape (length, p, m).

    D, C B, C A B, ... or, read after the update, D + C B, C A B, C A² B, ...

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.systems.response import impulse_response
    >>> system = DiagonalStateSpace(
    ...     [0.5], [[1.0]], [[1.0]], time=Discrete(), read_after_update=True
    ... )
    >>> impulse_response(system, 3).ravel().tolist()
    [1.0, 0.5, 0.25]
    """
    pulses = np.zeros((length, system.inputs))
    columns = []
    for j in range(system.inputs):
        pulses[0] = 0.0
        pulses[0, j] = 1.0
        columns.append(simulate(system, pulses))
    return np.stack(columns, axis=-1)


def frequency_response(system: System, omega: HostArray) -> HostArray:
    """Transfer function C (zI - A)⁻¹ B + D on the stability boundary; times z where read after update.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Without batch axes. Real outputs give the transfer function of the real system.
    omega : (K,) array
        Angles in radians per sample (discrete, z = exp(i ω)) or rad/s (continuous, z = i ω).

    Returns
    -------
    (K, p, m) complex array
        Values G(z).

    Notes
    -----
    Cost O(K n p m) for diagonal systems, O(K n³) for dense ones.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.systems.response import frequency_response
    >>> system = DiagonalStateSpace([0.5], [[1.0]], [[1.0]], time=Discrete())
    >>> bool(abs(frequency_response(system, [0.0])[0, 0, 0] - 2.0) < 1e-15)
    True
    """
    return StatePart(system).matrices(omega) + to_double(system.D)


class StatePart:
    """The transfer function without feedthrough, at many points of the stability boundary at once.

    As matrices, or as products with one vector per point: those cost two matrix products for all
    points of a diagonal system together.
    """

    def __init__(self, system: System) -> None:
        self.system = _single(system)
        self.discrete = isinstance(system.time, Discrete)

    def matrices(self, omega: HostArray) -> HostArray:
        """Return G(z_k), shape (K, p, m)."""
        host, z = self.system, self._points(omega)
        width = host.order if isinstance(host, StateSpace) else min(host.inputs, host.outputs)
        length = max(1, _WORKING_ENTRIES // (host.order * width))
        blocks = [self._block(z[i : i + length]) for i in range(0, max(z.size, 1), length)]
        return np.asarray(self._advanced(z)[:, None, None] * np.concatenate(blocks))

    def products(self, omega: HostArray, vectors: HostArray) -> HostArray:
        """Return G(z_k) v_k as columns, shape (p, K), for columns v_k, shape (m, K)."""
        host, z = self.system, self._points(omega)
        return self._advanced(z) * self._product(z, vectors, host.B, host.C, mirrored=False)

    def adjoint_products(self, omega: HostArray, vectors: HostArray) -> HostArray:
        """Return G(z_k)ᴴ v_k as columns, shape (m, K), for columns v_k, shape (p, K)."""
        host, z = self.system, self._points(omega)
        B, C = adjoint(host.C), adjoint(host.B)
        return self._advanced(z).conj() * self._product(z.conj(), vectors, B, C, mirrored=True)

    def _block(self, z: HostArray) -> HostArray:
        host = self.system
        if isinstance(host, StateSpace):
            shifted = z[:, None, None] * np.eye(host.order) - host.A
            return np.asarray(host.C @ np.linalg.solve(shifted, host.B[None]))
        value = _resolvent(host, z)
        if host.real_output:
            value = 0.5 * (value + _resolvent(host, z.conj()).conj())
        return value

    def _points(self, omega: HostArray) -> HostArray:
        omega = np.asarray(omega, dtype=np.float64)
        return np.asarray(np.exp(1j * omega) if self.discrete else 1j * omega)

    def _advanced(self, z: HostArray) -> HostArray:
        return z if self.system.read_after_update else np.ones_like(z)

    def _product(
        self, z: HostArray, vectors: HostArray, B: HostArray, C: HostArray, *, mirrored: bool
    ) -> HostArray:
        """C (z - A)⁻¹ B v for one vector per point; with Aᴴ where `mirrored`."""
        host = self.system
        if isinstance(host, StateSpace):
            A = adjoint(host.A) if mirrored else host.A
            shifted = z[:, None, None] * np.eye(host.order) - A
            driven = np.moveaxis(B @ vectors, -1, 0)[..., None]
            return np.asarray(C @ np.moveaxis(np.linalg.solve(shifted, driven)[..., 0], 0, -1))
        poles = (host.eigenvalues.conj() if mirrored else host.eigenvalues)[:, None]
        value = C @ ((B @ vectors) / (z - poles))
        if host.real_output:
            other = C.conj() @ ((B.conj() @ vectors) / (z - poles.conj()))
            value = 0.5 * (value + other)
        return np.asarray(value)


def _resolvent(host: DiagonalStateSpace, z: HostArray) -> HostArray:
    """C (z - Λ)⁻¹ B at every point; the smaller of B and C carries the points."""
    distance = z[:, None] - host.eigenvalues
    if host.outputs <= host.inputs:
        return np.asarray((host.C / distance[:, None, :]) @ host.B)
    return np.asarray(host.C @ (host.B / distance[:, :, None]))


def _each_row(matrix: HostArray, rows: HostArray) -> HostArray:
    """Apply `matrix` to every row, a vector at one time step."""
    return np.asarray(np.einsum("ij,kj->ki", matrix, rows, optimize=True))


def _advance(host: System, x: HostArray) -> HostArray:
    if isinstance(host, StateSpace):
        return np.asarray(host.A @ x)
    return np.asarray(host.eigenvalues * x)


def _state_dtype(host: System) -> np.dtype[np.generic]:
    return np.asarray(host.A if isinstance(host, StateSpace) else host.eigenvalues).dtype


def _single(system: System) -> System:
    if system.batch_shape:
        raise ShapeError(
            f"`system` has batch axes {system.batch_shape}; expected a single system. "
            "Index it first: system[0]."
        )
    return system.to_host()


def _single_discrete(system: System) -> System:
    if not isinstance(system.time, Discrete):
        raise TimeDomainError(
            "`system` is continuous; expected a discrete system. Discretise it first."
        )
    return _single(system)
