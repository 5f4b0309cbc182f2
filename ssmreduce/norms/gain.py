"""The gain of a system at one frequency: the largest singular value of G(z).

`Gain` adds up the transfer functions of several systems (a system, or a system less a reduced one)
and their feedthroughs: O(n p m) per frequency in closed form for a diagonal system, O(n² min(m, p)) or
O(n³) for a dense one (`ssmreduce.systems.transfer`). Both are backward stable: what is evaluated
belongs to a matrix within c n eps ‖A‖ of A, which at a distance d between z and the spectrum moves the
gain by a relative n eps ‖A‖/d. Gains that are only compared come from modes instead (`modes`).

Where both sides are wide the singular value may be taken from a power iteration, which only ever
underestimates. Points where a pole has rounded onto the boundary have no value and count as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ssmreduce._array_libraries import HostArray, adjoint
from ssmreduce._lapack import safe_unit
from ssmreduce.errors import ShapeError, TimeDomainError
from ssmreduce.norms.modes import DenseModes, DiagonalModes
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_single, is_complex
from ssmreduce.systems.state_space import StateSpace
from ssmreduce.systems.transfer import Product

_EXACT_WIDTH = 16
"""Up to this many inputs or outputs G(z) is decomposed; above, power iteration is cheaper."""

_WORKING_ENTRIES = 2**22
"""Complex numbers held at once while a transfer function is evaluated: 64 MiB."""


class Gain:
    """σ_max of G(z) = Σ s_i G_i(z) + D on the stability boundary, for systems G_i and signs s_i.

    Parameters
    ----------
    terms : tuple of (float, StateSpace or DiagonalStateSpace)
        Signs and systems of equal sizes and time domain, without batch axes; see `check_alike`.
    """

    def __init__(self, *terms: tuple[float, System]) -> None:
        self.signs = [sign for sign, _ in terms]
        self.parts = [
            DiagonalModes(system) if isinstance(system, DiagonalStateSpace) else DenseModes(system)
            for _, system in terms
        ]
        self.systems = [part.system for part in self.parts]
        self.time = self.systems[0].time
        self.is_dense = any(isinstance(x, StateSpace) and x.order for x in self.systems)
        self.real = all(x.real_output or not is_complex(x) for x in self.systems)
        D = [s * x.D for s, x in zip(self.signs, self.systems, strict=True)]
        self.D: HostArray = np.sum(D, axis=0)
        self.outputs, self.inputs = self.D.shape
        self._length = max(1, _WORKING_ENTRIES // max(1, self.D.size))

    @cached_property
    def by_modes(self) -> Gain:
        """The same gain by modes, where dense systems have good ones: cheap, and right to some 1e-9."""
        systems = [part.diagonalised() for part in self.parts]
        return Gain(*zip(self.signs, systems, strict=True))

    def at(self, omega: HostArray, iterations: int | None = None) -> HostArray:
        """Return σ_max(G) at every frequency, that of D at ω = ∞.

        It is 0 where a pole has rounded onto the point. With `iterations` lower bounds where both sides are
        wide.
        """
        if min(self.inputs, self.outputs) <= _EXACT_WIDTH:
            iterations = None
        if iterations is not None and not self.is_dense:
            return _power_iteration(*self._products(omega), self.inputs, omega.size, iterations)
        gains = np.zeros(omega.size)
        for start in range(0, omega.size if self.D.size else 0, self._length):
            chunk = slice(start, start + self._length)
            some = omega[chunk]
            values = np.zeros((some.size, self.outputs, self.inputs), dtype=np.complex128)
            finite = np.isfinite(some)
            at = slice(None) if finite.all() else finite
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                z = self.time.point(some[at])
                if z.size:
                    for sign, part in zip(self.signs, self.parts, strict=True):
                        values[at] += sign * part.matrices(z)
                values += self.D
            values[~np.all(np.isfinite(values), axis=(-2, -1))] = 0.0
            if iterations is None:
                gains[chunk] = largest_singular_values(values)
            else:
                products = _columnwise(values), _columnwise(adjoint(values))
                gains[chunk] = _power_iteration(*products, self.inputs, len(values), iterations)
        return gains

    def _products(self, omega: HostArray) -> tuple[Product, Product]:
        """G(z_k) v_k and G(z_k)ᴴ v_k for diagonal systems, without forming any G."""

        def summed(D: HostArray, products: Sequence[Product]) -> Product:
            def apply(vectors: HostArray) -> HostArray:
                image = D @ vectors if np.any(D) else np.zeros((len(D), omega.size), complex)
                with np.errstate(invalid="ignore", over="ignore"):
                    for sign, product in zip(self.signs, products, strict=True):
                        image += sign * product(vectors)
                image[:, ~np.all(np.isfinite(image), axis=0)] = 0.0
                return image

            return apply

        z = self.time.point(omega)
        forward, backward = zip(*(part.products(z) for part in self.parts), strict=True)
        return summed(self.D, forward), summed(adjoint(self.D), backward)


def largest_singular_values(matrices: HostArray) -> HostArray:
    """σ_max of every matrix of a stack, shape (K, p, m); in closed form where a side is 1 or 2.

    σ² is the largest eigenvalue of a Gram matrix, of two rows [[a, b], [conj b, d]]: sums of nonnegative
    numbers, right to their last digits.
    """
    unit = safe_unit(matrices)
    if unit != 1.0:
        return unit * largest_singular_values(matrices / unit)
    if matrices.shape[1] > matrices.shape[2]:
        matrices = adjoint(matrices)
    if matrices.shape[1] > 2:
        return np.asarray(np.sqrt(np.linalg.eigvalsh(matrices @ adjoint(matrices))[:, -1]))
    squares = np.square(matrices.real) + np.square(matrices.imag)
    if matrices.shape[1] == 1:
        return np.asarray(np.sqrt(np.sum(squares, axis=(1, 2))))
    a, d = np.moveaxis(np.sum(squares, axis=2), 1, 0)
    one, two = np.moveaxis(matrices, 1, 0)
    b = np.abs(np.sum(one * two.conj(), axis=1))
    return np.asarray(np.sqrt(0.5 * (a + d) + np.hypot(0.5 * (a - d), b)))


def _power_iteration(
    forward: Product, backward: Product, inputs: int, count: int, iterations: int
) -> HostArray:
    """Lower bounds of `count` largest singular values, from products with columns."""
    vectors = np.random.default_rng(0).standard_normal((inputs, count)).astype(np.complex128)
    gains = np.zeros(count)
    for left in reversed(range(iterations)):
        norm = np.linalg.norm(vectors, axis=0)
        image = forward(vectors / np.where(norm > 0, norm, 1.0))
        gains = np.maximum(gains, np.linalg.norm(image, axis=0))
        if left:
            vectors = backward(image)
    return gains


def check_alike(first: System, other: System) -> None:
    """Raise unless both are maps between the same signals in the same time, without batch axes."""
    for system in (first, other):
        check_single(system)
    if first.time != other.time:
        raise TimeDomainError(
            f"`second` has time {other.time} but `first` has {first.time}; expected the same. "
            "Convert one of them before you compare."
        )
    sizes = [(x.C.shape[-2], x.B.shape[-1]) for x in (first, other)]
    if sizes[0] != sizes[1]:
        raise ShapeError(
            f"`second` has (outputs, inputs) = {sizes[1]} but `first` has {sizes[0]}; expected the "
            "same. Only maps between the same signals have a difference."
        )


def _columnwise(matrices: HostArray) -> Product:
    """Multiply column k by the k-th matrix."""

    def apply(vectors: HostArray) -> HostArray:
        columns = np.moveaxis(vectors, -1, 0)[..., None]
        return np.moveaxis((matrices @ columns)[..., 0], 0, -1)

    return apply
