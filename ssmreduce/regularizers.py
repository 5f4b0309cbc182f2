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

import numpy as np

from ssmreduce._array_libraries import (
    Array,
    HostArray,
    array_eps,
    common_dtype,
    from_host,
    imaginary_part,
    in_library_of,
    is_traced,
    namespace,
    real_part,
)
from ssmreduce._array_routes import announce_transfer, deciding_array
from ssmreduce._checks import check_instance, positive_count, whole_number
from ssmreduce.derivatives.dispatch import apply, differentiable
from ssmreduce.derivatives.frozen import FrozenAdjoint, freeze, frozen_value, kind_of
from ssmreduce.derivatives.rule import Pullback
from ssmreduce.errors import ShapeError, UnsupportedEquationError
from ssmreduce.gramians.batch import in_batch_shape, map_indices
from ssmreduce.hankel import balance_factors, hankel_singular_values, hsv_rule
from ssmreduce.norms.stability import check_stable
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
    ArgumentTypeError
        If `system` is not a system.
    ShapeError
        If a batch has no systems.

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
    if differentiable(system):
        return apply(_nuclear_rule, system, (), name="hankel_nuclear_norm")
    values = hankel_singular_values(system)
    return namespace(values).sum(values, axis=-1)


def _nuclear_rule(system: System) -> tuple[float, Pullback]:
    values, pullback = hsv_rule(system)
    return float(values.sum()), lambda cotangent: pullback(np.full(values.size, cotangent))


def modal_l1(system: DiagonalStateSpace) -> Array:
    """Sum of the dominance of all modes, Σ ‖c_i‖‖b_i‖/(1 - |λ_i|), or /(-Re λ_i), with its
    derivative.

    A term is the H-infinity norm of the mode c_i b_i/(z - λ_i), and a bound on it where the output
    is real; `modal_truncation` ranks modes by it, and the terms of the modes it removes add up to
    its error bound. So the sum bounds ‖G - D‖∞, and what the penalty shrinks is what a cut would
    cost. As in the group lasso a norm, not its square, is shrunk: whole modes become zero.

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
    ArgumentTypeError
        If `system` is not a system.

    Notes
    -----
    Cost O(n (m + p)). At ‖c_i‖‖b_i‖ = 0 and λ_i = 0 the derivative taken is 0, one of the
    subgradients.

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
    like = deciding_array(system)
    state, B, C = common_dtype(*(in_library_of(x, like) for x in arrays_of(system)[:3]))
    xp = namespace(B)
    if isinstance(system.time, Discrete) and system.log_eigenvalues is None:
        margin = 1.0 - _norm(state[..., None], axis=-1)  # which has a derivative at zero
    else:
        margin = system.time.distance(state, state)
    return xp.sum(_norm(B, axis=-1) * _norm(C, axis=-2) / margin, axis=-1)


def _norm(array: Array, axis: int) -> Array:
    """Euclidean norm along an axis, whose derivative at zero is zero and not NaN."""
    xp = namespace(array)
    squares = xp.sum(real_part(array) ** 2 + imaginary_part(array) ** 2, axis=axis)
    nonzero = squares > 0
    return xp.where(nonzero, xp.sqrt(xp.where(nonzero, squares, 1.0)), 0.0)


class LazyHankelNuclearNorm:
    """Hankel nuclear norm whose Gramians and balancing vectors are renewed every k steps only.

    Between two refreshes the penalty is a quadratic function of the weights, with the value and the
    gradient of Σ σ_i at the refresh. `refresh` looks at values and stays outside ``jax.jit``;
    `penalty` goes inside, with the state as an argument.

    Parameters
    ----------
    every : int
        Steps k between two refreshes.

    Raises
    ------
    ArgumentError
        If `every` is not a positive int.

    Notes
    -----
    `refresh` costs what `hankel_nuclear_norm` does with its gradient. `penalty` costs O(n² (m + p))
    for a diagonal system and O(n³), a few matrix products, for a dense one. How long the gradient
    stays accurate as the weights move, and the cost relative to a training step, are in the
    documentation.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from ssmreduce import read_system
    >>> from ssmreduce.demo.lru import LRU
    >>> from ssmreduce.regularizers import LazyHankelNuclearNorm
    >>> layer = LRU(16, 2, rng=np.random.default_rng(0))
    >>> lazy = LazyHankelNuclearNorm(every=500)
    >>> gradient = jax.jit(jax.grad(lambda layer, state: lazy.penalty(read_system(layer), state)))
    >>> for step in range(3):
    ...     if lazy.due(step):
    ...         state = lazy.refresh(read_system(layer))
    ...     slope = gradient(layer, state)
    >>> slope.B_re.shape
    (16, 2)
    """

    def __init__(self, every: int = 500) -> None:
        self.every = positive_count(every, "every", "the number of steps between two refreshes")

    def due(self, step: int) -> bool:
        """Whether step number `step` needs a fresh state: 0, k, 2k, ...

        Raises
        ------
        ArgumentError
            If `step` is not an int.
        """
        meaning = "the number of optimizer steps, counted from 0"
        return whole_number(step, "step", meaning) % self.every == 0

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
        ArgumentTypeError
            If `system` is not a system.
        """
        check_system(system)
        if any(map(is_traced, arrays_of(system))):
            raise UnsupportedEquationError(
                "`system` has traced arrays, which have no values yet; expected a call outside jax.jit and "
                "jax.grad. Pass the state that it returns into the jitted function."
            )
        announce_transfer(
            "LazyHankelNuclearNorm.refresh", "Gramians are balanced on the host", system
        )
        host, like, eps = system.to_host(), deciding_array(system), array_eps(*arrays_of(system))
        single = eps > np.finfo(np.float64).eps
        if single:  # `penalty` widens half precision
            eps = float(np.finfo(np.float32).eps)
        parts = map_indices(host, lambda index: _refreshed(host[index], eps))

        def stacked(arrays: list[HostArray]) -> Array:
            together = np.asarray(in_batch_shape(arrays, host.batch_shape))
            if single:
                dtype = np.complex64 if np.iscomplexobj(together) else np.float32
                together = together.astype(dtype)
            return from_host(together, like)

        return FrozenAdjoint(
            stacked([part.offset for part in parts]),
            stacked([part.inputs for part in parts]),
            stacked([part.outputs for part in parts]),
            tuple(stacked([*column]) for column in zip(*(x.dynamics for x in parts), strict=True)),
            parts[0].made_for,
        )

    def penalty(self, system: System, state: FrozenAdjoint) -> Array:
        """Return the quadratic continuation of Σ σ_i from the last refresh, one number per system.

        Parameters
        ----------
        system : StateSpace or DiagonalStateSpace
            Of the kind, time, sizes and batch axes that `refresh` saw; tracers and tensors that ask
            for a gradient.
        state : FrozenAdjoint
            What `refresh` returned.

        Raises
        ------
        ShapeError
            If the state belongs to another kind of system, one of another order say: refresh after
            a cut.
        ArgumentTypeError
            If `system` is not a system.
        ArgumentError
            If `state` is not what `refresh` returns.
        """
        check_system(system)
        check_instance(state, FrozenAdjoint, "state", "refresh(system)")
        found, made_for = kind_of(system), state.made_for
        axes, expected = system.batch_shape, tuple(state.offset.shape)
        if (found, axes) != (made_for, expected):
            raise ShapeError(
                f"`system` is a {found}, batch axes {axes}, but `state` was made for a {made_for}, batch "
                f"axes {expected}; expected the same. Call refresh(system) after a layer was cut."
            )
        return frozen_value(system, state)


def _refreshed(system: System, eps: float) -> FrozenAdjoint:
    if system.order == 0:
        none = np.zeros((0, 0))
        return freeze(system, 0.0, (none, none), (none, none))
    balanced = balance_factors(system)
    resolved = balanced.hsv > _RESOLVED * eps * balanced.hsv[0]
    weights = balanced.gramian_derivatives(np.ones(min(balanced.rank, int(resolved.sum()))))
    return freeze(system, float(balanced.hsv.sum()), balanced.factors.whole(), weights)
