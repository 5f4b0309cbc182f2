"""Frequency-limited Gramians: those of a system for inputs and outputs in a frequency band.

    P_Ω = (1/2π) ∫_Ω (iω - A)⁻¹ B Bᴴ (iω - A)⁻ᴴ dω,  and with exp(iω) for iω in discrete time,

solves A P_Ω + P_Ω Aᴴ + S B Bᴴ + B Bᴴ Sᴴ = 0 with S = (1/2π) ∫_Ω (iω - A)⁻¹ dω, a logarithm of A. That
right-hand side is indefinite, so the equation yields P_Ω but no factor, and a factor of the formed
P_Ω has lost half its digits. The integral is a sum of squares: with Gauss-Legendre nodes ω_k and
weights w_k its factor is Z = [sqrt(w_k/2π) (iω_k - A)⁻¹ B], and nothing is ever subtracted.

The nodes come from `ssmreduce.gramians.quadrature`. Cost: a pole at distance δ from the axis takes
about 64 log₂(width/δ) of them, each O(n m) for diagonal systems and O(n² m) for dense ones (after one
Schur form), and O(n² m) for the compression to n columns.

Reference: Gawronski and Juang, Int. J. Systems Science 21 (1990).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import linalg

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._array_routes import any_library
from ssmreduce._checks import exact, shown
from ssmreduce._schur import SchurForm
from ssmreduce.equations.smith import compress_columns
from ssmreduce.equations.stability import check_stable, check_stable_form
from ssmreduce.errors import ArgumentError, NonFiniteError, ShapeError
from ssmreduce.gramians.quadrature import Nodes, axis_nodes, circle_nodes
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system, is_complex
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.time_domain import Discrete

_COLUMNS = 4
"""Columns, in multiples of n, that are added to a factor at once if that is many: QR is then a product."""

_WORKING_ENTRIES = 2**21
"""Entries of the columns that are added at once if n is small: 32 MiB."""

_ADVICE = "Split off the unstable part and reduce the rest."

Band = tuple[float, float]
Resolvent = Callable[[Nodes], tuple[HostArray, HostArray]]


@any_library()
def frequency_limited_factors(
    system: System, band: tuple[float, float]
) -> tuple[HostArray, HostArray]:
    """Return Z and Y with P_Ω = Z Zᴴ = (1/2π) ∫_Ω (iω - A)⁻¹ B Bᴴ (iω - A)⁻ᴴ dω, and Q_Ω = Y Yᴴ.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable, without batch axes.
    band : tuple of two floats
        Lowest and highest frequency: rad/s in continuous time (inf is allowed), radians per sample,
        at most π, in discrete time. A system with real arrays or real output is limited to both
        ±[low, high], with low ≥ 0; a complex one to the band as it is written, which may be
        negative.

    Returns
    -------
    Z, Y : (n, k) array
        Factors with at most n columns; real for real systems; (2n, k) for a diagonal system with
        real output, whose states are [Re h; Im h].

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary.
    ArgumentError
        If the band is empty, runs backwards, or leaves the frequencies that the system has.
    ShapeError, NonFiniteError
        If `band` is not two numbers, or the system has batch axes.
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Each row of a factor has an error of a few n eps times its norm. A factor of the formed P_Ω,
    from its eigenvalues, would be right to sqrt(eps) only: all Hankel singular values below 1e-8 σ₁
    would be noise, and those of a narrow band fall fast. A reduction that is balanced in a band has
    no error bound and may be unstable: of 90 truncations of random dense systems with 20 states to
    2, 4 and 6, up to 21 in a narrow band were (diagonal systems then keep the nearest lower order
    that is stable).

    References
    ----------
    Gawronski and Juang, Model reduction in limited time and frequency intervals, Int. J. Systems
    Science 21 (1990).

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce import Continuous, StateSpace
    >>> from ssmreduce.gramians.frequency import frequency_limited_factors
    >>> system = StateSpace([[-2.0]], [[1.0]], [[1.0]], time=Continuous())
    >>> Z, Y = frequency_limited_factors(system, (0.0, 3.0))
    >>> exact = np.arctan(3.0 / 2.0) / (2.0 * np.pi)  # (1/π) ∫₀³ dω/(ω² + 4)
    >>> bool(abs((Z @ Z.T)[0, 0] - exact) < 1e-15)
    True
    """
    check_system(system)
    if system.batch_shape:
        raise ShapeError(
            f"`system` has batch axes {system.batch_shape}; expected a single system. "
            "Index it first: system[0]."
        )
    low, high = check_band(system, band)
    if system.order == 0:
        return np.zeros((0, 0)), np.zeros((0, 0))
    host = system.to_host()
    if isinstance(host, StateSpace):
        resolvent, poles, logarithms = _dense_resolvent(host)
    else:
        resolvent, poles, logarithms = _diagonal_resolvent(host)
    if isinstance(host.time, Discrete):
        nodes = circle_nodes(poles, logarithms, low, high)
    else:
        nodes = axis_nodes(poles, low, high)
    real, n = not is_complex(system), poles.size
    width = max(1, min(n, max(system.inputs, system.outputs)))
    length = max(_COLUMNS * n // width, _WORKING_ENTRIES // (n * width), 1)
    Z, Y = np.zeros((n, 0)), np.zeros((n, 0))
    for block in (each for part in nodes for each in part.blocks(length)):
        columns = resolvent(block)
        Z, Y = _appended(Z, columns[0], real=real), _appended(Y, columns[1], real=real)
    return Z, Y


def check_band(system: System, band: tuple[float, float]) -> Band:
    """Return `band` as two floats that are a band of `system`; see `frequency_limited_factors`."""
    try:
        low, high = (_frequency(edge) for edge in band)
    except (TypeError, ValueError):
        raise ShapeError(
            f"`band` is {shown(band)}; expected two frequencies (low, high). Try band=(0.0, 1.0)."
        ) from None
    if np.isnan(low) or np.isnan(high):
        raise NonFiniteError(
            f"`band` is ({low}, {high}); expected numbers. Use inf for a band without an end."
        )
    if not low < high:
        raise ArgumentError(
            f"`band` is ({low}, {high}), which {'is empty' if low == high else 'runs backwards'}; "
            "expected low < high. Write the lower frequency first, and give the band a width."
        )
    real = not is_complex(system)
    limit = system.time.nyquist
    lowest = 0.0 if real else -limit
    if low < lowest or high > limit:
        mirrored = " The mirrored band is always included for a real system." if real else ""
        raise ArgumentError(
            f"`band` is ({low}, {high}); expected a band within [{exact(lowest)}, {exact(limit)}] "
            f"{system.time.frequency_unit}.{mirrored} Multiply frequencies in Hz by 2π"
            f"{'' if system.time.has_unit else ' dt'}."
        )
    return low, high


def _frequency(edge: object) -> float:
    """A real number of Python or NumPy as a float, NaN and Inf too; TypeError for anything else."""
    number = np.asarray(edge)
    if number.dtype.kind not in "iuf":
        raise TypeError
    return float(number)


def _appended(Z: HostArray, columns: HostArray, *, real: bool) -> HostArray:
    """Z with new columns, compressed; for a real system the mirrored frequencies are added as well."""
    if real:
        columns = np.sqrt(2.0) * np.concatenate([columns.real, columns.imag], axis=1)
    return compress_columns(np.concatenate([Z, columns], axis=1))


def _diagonal_resolvent(host: DiagonalStateSpace) -> tuple[Resolvent, HostArray, HostArray]:
    """Columns of the factors at given nodes; the poles; their logarithms."""
    check_stable(host.eigenvalues, host.time, log_eigenvalues=host.log_eigenvalues, advice=_ADVICE)
    poles = host.eigenvalues.astype(np.complex128)
    logarithms = _logarithms(poles) if host.log_eigenvalues is None else host.log_eigenvalues
    B, C = host.B, adjoint(host.C)
    if host.real_output:
        # h and its mirror image answer with poles λ and conj λ; the real states are their mean
        # and their difference over 2i.
        poles = np.concatenate([poles, poles.conj()])
        logarithms = np.concatenate([logarithms, np.conj(logarithms)])
        B, C = (np.concatenate([G, G.conj()]) for G in (B, C))
    B, C = compress_columns(B), compress_columns(C)

    def resolvent(nodes: Nodes) -> tuple[HostArray, HostArray]:
        weights = nodes.root[:, None] / nodes.distance
        factors = []
        for G, weight in ((B, weights), (C, weights.conj())):
            columns = np.einsum("kn,nm->nkm", weight, G).reshape(len(G), -1)
            if host.real_output:
                plain, mirrored = np.split(columns, 2)
                columns = np.concatenate([plain + mirrored, -1j * (plain - mirrored)]) / 2.0
            factors.append(columns)
        return factors[0], factors[1]

    return resolvent, poles, logarithms


def _dense_resolvent(host: StateSpace) -> tuple[Resolvent, HostArray, HostArray]:
    """The same for a dense system, through its complex Schur form."""
    schur = SchurForm.of(host.A, time=host.time)
    check_stable_form(schur, host.time, host.A, advice=_ADVICE)
    schur = schur.as_complex()
    T, poles = schur.triangle, schur.eigenvalues()
    B, C = compress_columns(host.B), compress_columns(adjoint(host.C))
    B, C = schur.ports(B.astype(np.complex128), C.astype(np.complex128))
    shifted = np.asfortranarray(-T)
    diagonal = np.arange(len(T))

    def resolvent(nodes: Nodes) -> tuple[HostArray, HostArray]:
        factors = [np.empty((len(T), len(nodes.root), G.shape[1]), complex) for G in (B, C)]
        for k, (distance, scale, root) in enumerate(
            zip(nodes.distance, nodes.scale, nodes.root, strict=True)
        ):
            shifted[diagonal, diagonal] = distance / scale
            for factor, G, conjugated in zip(factors, (B, C), (0, 2), strict=True):
                columns, _ = linalg.lapack.ztrtrs(shifted, G, trans=conjugated)
                factor[:, k] = (root / scale) * columns
        Z, Y = (factor.reshape(len(T), -1) for factor in factors)
        return schur.reached(Z), schur.observed(Y)

    return resolvent, poles, _logarithms(poles)


def _logarithms(poles: HostArray) -> HostArray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(poles))
