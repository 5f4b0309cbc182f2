"""Penalties that make a layer easy to reduce while it trains: Hankel nuclear norm and modal l1 norm.

All take a system whose arrays are tensors that ask for a gradient, tracers of JAX, or neither, and
return a number per system, of the same library. The Hankel nuclear norm is exact and computed on the
host, at the cost of both Gramians and a singular value decomposition. Its lazy form
takes these once in many steps (`ssmreduce.derivatives.frozen`), with the weights G = ½ W Wᴴ and H = ½ T Tᴴ
of the derivative of Σ σ_i.

References: Forgione, Mejari and Piga, arXiv 2403.14833 (2024); Schwerdtner, Berman and Peherstorfer,
Hankel singular value regularization for highly compressible state space models, NeurIPS 2025.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from ssmreduce._checks import positive_count
from ssmreduce._namespace import Array, HostArray, is_complex_array, is_traced
from ssmreduce.derivatives.dispatch import apply, differentiable
from ssmreduce.derivatives.frozen import FrozenAdjoint, freeze, frozen_value
from ssmreduce.derivatives.rule import Pullback
from ssmreduce.errors import ShapeError, UnsupportedEquationError
from ssmreduce.hankel import balance_factors, hankel_singular_values, hsv_rule
from ssmreduce.norms._common import check_stable
from ssmreduce.systems.diagonal import DiagonalStateSpace, System, check_system
from ssmreduce.systems.pytree import arrays_of
from ssmreduce.time_domain import Discrete

_RESOLVED = 100.0
"""c of c eps σ₁: in the precision of the penalty, directions of smaller values would add rounding of
the order eps σ₁/σ_i to the gradient, 1 % at this limit, and each is worth less than that limit."""


def hankel_nuclear_norm(system: System) -> Array:
    """Sum of the Hankel singular values, Σ σ_i, with its derivative.

    Parameters
    ----------
    system : StateSpace or DiagonalStateSpace
        Stable; with any leading batch axes.

    Returns
    -------
    float or (...) array
        Of the library of the system's arrays where a derivative is asked for.

    Raises
    ------
    UnstableSystemError
        If a pole lies on or outside the stability boundary; inside ``jax.jit`` as an error of the
        callback.

    Notes
    -----
    The sum is symmetric in equal values, so it has a derivative where they are double; values below
    4 n eps σ₁ are rounding and contribute none. Cost O(n³), (2n)³ for a real output.

    References
    ----------
    Fazel, Hindi and Boyd, ACC 2001, for the nuclear norm in place of the order.

    Examples
    --------
    >>> import torch
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.regularizers import hankel_nuclear_norm
    >>> B = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
    >>> C = torch.tensor([[2.0]], dtype=torch.float64)
    >>> pole = torch.tensor([0.5], dtype=torch.float64)
    >>> hankel_nuclear_norm(DiagonalStateSpace(pole, B, C, time=Discrete())).backward()
    >>> round(float(B.grad), 6)
    2.666667
    """
    check_system(system)
    if differentiable(system):
        return apply(_nuclear_rule, system, ())
    return hankel_singular_values(system).sum(-1)


def _nuclear_rule(system: System) -> tuple[float, Pullback]:
    values, pullback = hsv_rule(system)
    return float(values.sum()), lambda cotangent: pullback(np.full(values.size, cotangent))


def modal_l1(system: DiagonalStateSpace) -> Array:
    """Sum of the dominance of all modes, Σ ‖c_i‖‖b_i‖/(1 - |λ_i|), or /(-Re λ_i), with its derivative.

    A term is the H-infinity norm of the mode c_i b_i/(z - λ_i), and a bound on it where the output is
    real; `modal_truncation` ranks modes by it, and the terms of the modes it removes add up to its error
    bound. So the sum bounds ‖G - D‖∞, and what the penalty shrinks is what a cut would cost. As in
    the group lasso a norm, not its square, is shrunk: whole modes become zero.

    Parameters
    ----------
    system : DiagonalStateSpace
        Stable; with any leading batch axes.

    Returns
    -------
    float or (...) array
        Of the library of the system's arrays.

    Raises
    ------
    ShapeError
        If the system is not diagonal.
    UnstableSystemError
        If a pole lies on or outside the stability boundary, and values can be looked at.

    Notes
    -----
    Cost O(n (m + p)). At ‖c_i‖‖b_i‖ = 0 and λ_i = 0 the derivative taken is 0, one of the subgradients.

    References
    ----------
    Green and Limebeer, Linear Robust Control, Prentice Hall 1995, section 9.2; Varga, Mathematical
    Modelling of Systems 1 (1995).

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.regularizers import modal_l1
    >>> system = DiagonalStateSpace([0.5, -0.9], [[3.0], [1.0]], [[2.0, 0.1]], time=Discrete())
    >>> round(float(modal_l1(system)), 12)
    13.0
    """
    check_system(system)
    if not isinstance(system, DiagonalStateSpace):
        raise ShapeError(
            "`system` is a StateSpace, whose modes are not at hand; expected a DiagonalStateSpace. "
            "Try diagonalised(system)."
        )
    if not any(map(is_traced, arrays_of(system))):
        check_stable(system)
    xp = array_api_compat.array_namespace(system.B)
    sizes = _norm(xp, system.B, axis=-1) * _norm(xp, system.C, axis=-2)
    if not isinstance(system.time, Discrete):
        margin = -_real(xp, system.eigenvalues)
    elif system.log_eigenvalues is not None:
        margin = -xp.expm1(_real(xp, system.log_eigenvalues))
    else:
        margin = 1.0 - _norm(xp, system.eigenvalues[..., None], axis=-1)
    return xp.sum(sizes / margin, axis=-1)


def _norm(xp: Any, array: Array, axis: int) -> Array:
    """Euclidean norm along an axis, whose derivative at zero is zero and not NaN."""
    parts = (xp.real(array), xp.imag(array)) if is_complex_array(array) else (array,)
    squares = sum(xp.sum(part * part, axis=axis) for part in parts)
    nonzero = squares > 0
    return xp.where(nonzero, xp.sqrt(xp.where(nonzero, squares, 1.0)), 0.0)


def _real(xp: Any, array: Array) -> Array:
    return xp.real(array) if is_complex_array(array) else array


class LazyHankelNuclearNorm:
    """Hankel nuclear norm whose Gramians and balancing vectors are renewed every k steps only.

    Between two refreshes the penalty is a quadratic function of the weights, with the value and the gradient
    of Σ σ_i at the refresh. `refresh` looks at values and stays outside ``jax.jit``; `penalty` goes inside,
    with the state as an argument.

    Parameters
    ----------
    every : int
        Steps k between two refreshes.

    Raises
    ------
    OrderError
        If `every` is not a positive int.

    Notes
    -----
    `refresh` costs what `hankel_nuclear_norm` does with its gradient. `penalty` costs O(n² (m + p)) for a
    diagonal system and O(n³), a few matrix products, for a dense one. How far the gradient stays right as
    the weights move, and what it costs beside a training step, is in the documentation.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from ssmreduce import read_system
    >>> from ssmreduce.demo.lru import LRU
    >>> from ssmreduce.regularizers import LazyHankelNuclearNorm
    >>> layer = LRU(16, 2, rng=np.random.default_rng(0))
    >>> lazy = LazyHankelNuclearNorm(every=200)
    >>> gradient = jax.jit(jax.grad(lambda layer, state: lazy.penalty(read_system(layer), state)))
    >>> for step in range(3):
    ...     if lazy.due(step):
    ...         state = lazy.refresh(read_system(layer))
    ...     slope = gradient(layer, state)
    >>> slope.B_re.shape
    (16, 2)
    """

    def __init__(self, every: int = 200) -> None:
        self.every = positive_count(every, "every", "the number of steps between two refreshes")

    def due(self, step: int) -> bool:
        """Whether step number `step` needs a fresh state: 0, k, 2k, ..."""
        return step % self.every == 0

    def refresh(self, system: System) -> FrozenAdjoint:
        """Return the state for `penalty`: arrays of the library, dtype and device of the system's.

        Parameters
        ----------
        system : StateSpace or DiagonalStateSpace
            Stable; with any leading batch axes. Its arrays have values: not inside ``jax.jit``.

        Raises
        ------
        UnsupportedEquationError
            If an array is a tracer of JAX.
        UnstableSystemError
            If a pole lies on or outside the stability boundary.
        """
        check_system(system)
        if any(map(is_traced, arrays_of(system))):
            raise UnsupportedEquationError(
                "`system` has traced arrays, which have no values yet; expected a call outside jax.jit and "
                "jax.grad. Pass the state that it returns into the jitted function."
            )
        host = system.to_host()
        eps = _eps(system)
        parts = [_refreshed(host[index], eps) for index in np.ndindex(host.batch_shape)]

        def stacked(arrays: tuple[HostArray, ...]) -> Array:
            together = np.stack(arrays).reshape((*host.batch_shape, *arrays[0].shape))
            return _like(together, system)

        return FrozenAdjoint(
            stacked(tuple(part.offset for part in parts)),
            stacked(tuple(part.inputs for part in parts)),
            stacked(tuple(part.outputs for part in parts)),
            tuple(map(stacked, zip(*(part.dynamics for part in parts), strict=True))),
        )

    def penalty(self, system: System, state: FrozenAdjoint) -> Array:
        """Return the quadratic continuation of Σ σ_i from the last refresh, one number per system.

        Parameters
        ----------
        system : StateSpace or DiagonalStateSpace
            Of the sizes and the kind that `refresh` saw; tracers and tensors that ask for a gradient.
        state : FrozenAdjoint
            What `refresh` returned.

        Raises
        ------
        ShapeError
            If the state belongs to a system of another order: refresh after a cut.
        """
        expected = 2 * system.order if isinstance(system, DiagonalStateSpace) else system.order
        if state.inputs.shape[-1] != expected or state.offset.shape != system.batch_shape:
            raise ShapeError(
                f"`state` was made for {state.inputs.shape[-1]} real states and batch axes "
                f"{tuple(state.offset.shape)}, but `system` has {expected} and {system.batch_shape}; "
                "expected the same. Call refresh(system) after a layer was cut."
            )
        return frozen_value(system, state)


def _refreshed(system: System, eps: float) -> FrozenAdjoint:
    balanced = balance_factors(system)
    resolved = balanced.hsv > _RESOLVED * eps * balanced.hsv[0]
    weights = balanced.gramian_derivatives(np.ones(min(balanced.rank, int(resolved.sum()))))
    return freeze(system, float(balanced.hsv.sum()), balanced.factors.whole(), weights)


def _eps(system: System) -> float:
    """Unit of the least precise array of the system."""
    dtypes = [str(array.dtype).rsplit(".", maxsplit=1)[-1] for array in arrays_of(system)]
    return max(float(np.finfo(dtype).eps) for dtype in dtypes)


def _like(host: HostArray, system: System) -> Array:
    """Bring an array from the host to the library, precision and device of the system's arrays."""
    B = system.B
    xp = array_api_compat.array_namespace(B)
    single = _eps(system) > np.finfo(np.float64).eps
    names = ("complex64", "float32") if single else ("complex128", "float64")
    dtype = getattr(xp, names[0] if np.iscomplexobj(host) else names[1])
    return xp.asarray(host, dtype=dtype, device=array_api_compat.device(B))
