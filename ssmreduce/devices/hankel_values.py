"""Hankel singular values and balancing projections where the arrays are.

The singular values of Yᴴ Z, for all systems of a batch at once, by one singular value decomposition: the
host's short cut by `eigh` is none on a device (see `ssmreduce._array_libraries`).
"""

from __future__ import annotations

from dataclasses import dataclass

from array_api_extra import pad

from ssmreduce._array_libraries import Array, adjoint, namespace, refuted
from ssmreduce._array_routes import NoNativeRoute
from ssmreduce._checks import numeric_array
from ssmreduce.devices.gramian_factors import NativeSystem, native_system
from ssmreduce.systems.diagonal import System


def singular_values(
    system: System, *, horizon: int | None = None, relative_accuracy: bool = False
) -> Array:
    """Native version of `hankel_singular_values`."""
    if relative_accuracy:
        raise NoNativeRoute("values are right relative to themselves on the host only")
    arrays = native_system(system, horizon=horizon)
    Z, Y = arrays.factors()
    return _padded(arrays.xp.linalg.svdvals(adjoint(Y) @ Z), arrays)


@dataclass(frozen=True, eq=False)
class NativeBalance:
    """Gramian factors of dense systems, M = Yᴴ Z, its singular values and right vectors."""

    arrays: NativeSystem
    Z: Array
    Y: Array
    M: Array
    V: Array
    hsv: Array

    @classmethod
    def of(cls, system: System) -> NativeBalance:
        """Factor and decompose.

        Raises
        ------
        NoNativeRoute
            As `NativeSystem.factors`.
        """
        arrays = native_system(system)
        Z, Y = arrays.factors()
        M = adjoint(Y) @ Z
        _, values, Vh = arrays.xp.linalg.svd(M, full_matrices=False)
        return cls(arrays, Z, Y, M, adjoint(Vh), _padded(values, arrays))

    def projections(self, order: int) -> tuple[Array, Array]:
        """W and T, shape (..., n, order), with Wᴴ T = I; see `hankel.BalancedFactors.projections`.

        Raises
        ------
        NoNativeRoute
            If the factors have fewer columns.
        """
        if order > min(self.M.shape[-2:]):
            raise NoNativeRoute(f"the Gramian factors have fewer than {order} columns")
        xp, V = self.arrays.xp, self.V[..., :, :order]
        root = xp.sqrt(self.hsv[..., None, :order])
        Q, R = xp.linalg.qr(self.M @ V, mode="reduced")
        return (self.Y @ Q) / root, self.Z @ (V @ (xp.linalg.inv(R) * root))


def _padded(values: Array, arrays: NativeSystem) -> Array:
    """As many values as the balanced system has states; what is missing is zero."""
    n = arrays.system.real_order
    # At most n: where B has more columns than there are states the factors have been compressed.
    missing = n - values.shape[-1]
    return pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)]) if missing else values


def tail_sums(hsv: Array) -> Array:
    """Native version of `error_bounds`."""
    hsv = numeric_array(hsv, "hsv", 0)
    xp = namespace(hsv)
    if hsv.ndim == 0 or not xp.isdtype(hsv.dtype, "real floating"):
        raise NoNativeRoute("`hsv` is not a list of real numbers")
    if refuted(hsv[..., :-1] >= hsv[..., 1:]) or refuted(hsv >= 0.0):
        raise NoNativeRoute("`hsv` is not sorted, or not nonnegative")
    tails = xp.flip(xp.cumulative_sum(xp.flip(hsv, axis=-1), axis=-1), axis=-1)
    return 2.0 * pad(tails, [(0, 0)] * (hsv.ndim - 1) + [(0, 1)])
