"""`LTILayer`: a layer whose weights parametrise a diagonal discrete system with real output.

Every layer here runs, with stored matrices b and c and factors s and t that belong to its poles,

    h[k] = λ h[k-1] + (s b) u[k],    y[k] = Re((c t) h[k]) + D u[k],

once, or once for each of its channels (leading axes). A class says where λ, b, c and D are and what s
and t are; reading, writing and the way of the optimizer's moments follow from that.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import partial

import array_api_compat
import numpy as np

from ssmreduce._array_libraries import Array, HostArray
from ssmreduce._checks import exact, type_name
from ssmreduce.errors import UnstableSystemError, UnsupportedLayerError
from ssmreduce.gramians.sequences import LayerData, feature_sums
from ssmreduce.hankel import rank_tolerance
from ssmreduce.layers.cut import Candidates
from ssmreduce.layers.diagonal_cut import balanced_layer, does_not_decay
from ssmreduce.layers.layer import Layer, NamedWeights, Weights, WeightStorage
from ssmreduce.layers.lti_cut import LTICut
from ssmreduce.layers.lti_data import DataPlan, data_balancing
from ssmreduce.layers.lti_plan import LTIPlan
from ssmreduce.layers.options import CutOptions
from ssmreduce.layers.read_back import OWN_POLES
from ssmreduce.layers.stored_states import padded, with_real_input
from ssmreduce.reduction.balanced_diagonal import balanced_systems
from ssmreduce.reduction.balanced_system import BalancedSystem
from ssmreduce.reduction.order import MeasuredError, OrderRule
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.time_domain import Discrete

_STEPS = Discrete()
"""The time of layers, which count steps."""

_SMALLEST_MODULUS = 1e-6
"""Poles below decay within one step; at exactly zero the gradients of most layers are NaN."""


class LTILayer(Layer):
    """A linear time-invariant layer: how its weights parametrise a system, cut by balanced
    truncation.

    Attributes
    ----------
    poles : tuple of str
        Weights that hold the poles and what belongs to them: their moments have no image in
        other coordinates.
    feedthrough : str
        Weight that holds D, shape (p, m), or its diagonal, of the first half of the outputs where
        these are of `both_directions`; empty for none.
    stores_input : bool
        Whether the layer has an input matrix. Without one b = 1, and only the products c b count.
    real_input : bool
        Whether the input matrix is real. A state with a complex row of it then takes two.
    carries_matrices : bool
        Whether moments of the matrices can follow a change of coordinates, as those of `poles`
        cannot.
    in_single : tuple of str
        Real weights that the layer uses in single precision, whatever the dtype of the others.
    lower_half : bool
        Whether the pole with negative imaginary part of a conjugate pair is the one to store.

    Notes
    -----
    A class says where λ, b, c and D are in

    ::

        h[k] = λ h[k-1] + (s b) u[k],    y[k] = Re((c t) h[k]) + D u[k];

    reading, writing and the optimizer's moments follow from that. Arguments that methods
    share, besides those of `Layer`:

    logarithms : (..., n) complex array
        log λ of discrete poles.
    system : DiagonalStateSpace
        Discrete, with real output, read after its update.
    B : (..., n, m) array
        b, without s.
    C : (..., p, n) array
        c, without t.

    Examples
    --------
    A layer with weights ``decay``, ``angle``, ``B`` and ``C`` (complex), λ = exp(-exp(decay) + i
    angle):

    >>> import numpy as np
    >>> from ssmreduce.layers.lti import LTILayer
    >>> class MyLayer(LTILayer):
    ...     shapes = {"decay": ("n",), "angle": ("n",), "B": ("n", "m"), "C": ("p", "n")}
    ...     poles = ("decay", "angle")
    ...
    ...     def modes(self, weights):
    ...         logarithms = -np.exp(weights["decay"]) + 1j * weights["angle"]
    ...         one = np.ones(logarithms.shape)
    ...         return logarithms, one, one
    ...
    ...     def pole_weights(self, logarithms, weights):
    ...         return {"decay": np.log(-logarithms.real), "angle": logarithms.imag}
    ...
    ...     def matrices(self, weights):
    ...         return weights["B"], weights["C"]
    ...
    ...     def matrix_weights(self, B, C):
    ...         return {"B": B, "C": C}
    >>> weights = {
    ...     "decay": np.zeros(1),
    ...     "angle": np.ones(1),
    ...     "B": np.ones((1, 2)),
    ...     "C": np.ones((2, 1)),
    ... }
    >>> MyLayer().read(weights).order
    1
    """

    poles: tuple[str, ...] = ()
    feedthrough: str = ""
    stores_input: bool = True
    real_input: bool = False
    carries_matrices: bool = True
    in_single: tuple[str, ...] = ()
    lower_half: bool = False

    @abstractmethod
    def modes(self, weights: Weights) -> tuple[Array, Array, Array]:
        """Return log λ of the discrete poles, s and t, each of shape (..., n)."""

    @abstractmethod
    def pole_weights(self, logarithms: HostArray, weights: Weights) -> dict[str, HostArray]:
        """Return the weights of `poles` for new poles; `weights` are the old ones, from which steps
        may be taken.
        """

    def copied_pole_weights(
        self, logarithms: HostArray, weights: Weights, model: Weights
    ) -> dict[str, HostArray]:
        """Return the weights of `poles` of a copy, with steps of its states as in `model`.

        These are the new weights of the layer that it is a copy of, with which it goes on being averaged.
        """
        return self.pole_weights(logarithms, weights)

    @abstractmethod
    def matrices(self, weights: Weights) -> tuple[Array, Array]:
        """Return b, shape (..., n, m), and c, shape (..., p, n), as they are stored."""

    @abstractmethod
    def matrix_weights(self, B: HostArray, C: HostArray) -> dict[str, HostArray]:
        """Return the weights that store b and c: the inverse of `matrices`."""

    def read(self, weights: Weights) -> System:
        """Return the discrete system that the layer runs, diagonal unless its state matrix is not.

        Raises
        ------
        ShapeError
            If the weights do not fit together.
        NonFiniteError
            If a weight holds NaN or Inf.
        """
        self.check(weights)
        if self.in_single:
            single = {name: weights[name].astype(np.float32) for name in self.in_single}
            doubles = {name: value.astype(np.float64) for name, value in single.items()}
            weights = NamedWeights({**weights, **doubles})
        B, C = self.matrices(weights)
        logarithms, s, t = self.modes(weights)
        D = weights[self.feedthrough] if self.feedthrough else None
        if D is not None:
            xp = array_api_compat.array_namespace(D)
            if D.ndim == 1:
                unit = xp.eye(D.shape[0], dtype=D.dtype, device=array_api_compat.device(D))
                D = D[:, None] * unit
            D = xp.concat([D, xp.zeros_like(D)]) if self.both_directions else D
        return DiagonalStateSpace.from_log(
            logarithms,
            s[..., :, None] * B,
            C * t[..., None, :],
            D,
            time=_STEPS,
            real_output=True,
            read_after_update=True,
        )

    def ports(self, weights: Weights) -> tuple[tuple[int, ...], int, int]:
        """Return the batch axes and the numbers of inputs and outputs."""
        B, C = self.matrices(weights)
        return np.broadcast_shapes(B.shape[:-2], C.shape[:-2]), B.shape[-1], C.shape[-2]

    def resized(self, weights: Weights, order: int) -> dict[str, HostArray]:
        """Return zeros in the shapes of the weights of a layer with `order` states."""
        # The shapes alone matter: what is replaced may be NaN, or anything.
        ones = {name: np.ones(value.shape) for name, value in weights.items()}
        self.check(ones)
        batch, inputs, outputs = self.ports(ones)
        system = DiagonalStateSpace(
            np.full((*batch, order), 0.5),
            np.ones((*batch, order, inputs)),
            np.ones((*batch, outputs, order)),
            time=_STEPS,
            real_output=True,
            read_after_update=True,
        )
        return {name: np.zeros(value.shape) for name, value in self.write(system, ones).items()}

    def scores(self, weights: Weights, horizon: int | None = None) -> HostArray:
        """Return the Hankel singular values by which states are shared out; 0 for rounding."""
        systems = balanced_layer(self.read(weights), horizon).budget_values()
        values: HostArray = np.max(systems, axis=0)
        return np.where(values > rank_tolerance(values), values, 0.0)

    def shares(self, weights: Weights, horizon: int | None) -> tuple[HostArray, HostArray]:
        """Return the Hankel singular values and the diagonal of T Σ Wᴴ, of each system."""
        system = self.read(weights)
        try:
            parts = balanced_systems(system, horizon)
        except UnstableSystemError as error:
            raise does_not_decay(system, "Pass HankelTrace(every, horizon=length).") from error
        hsv = np.stack([part.hsv for part in parts])
        shares = np.stack([_shares(part, system.order) for part in parts])
        batch = system.batch_shape
        return hsv.reshape(*batch, -1), shares.reshape(*batch, shares.shape[-1])

    def data_scores(
        self, weights: Weights, data: LayerData, horizon: int | None = None
    ) -> HostArray | None:
        """Return the values by which ``method="balanced"`` ranks.

        Raises
        ------
        UnstableSystemError
            If the layer is not stable and there is no horizon.
        """
        system = self.read(weights).to_host()
        sums = feature_sums(system, data.fitting, both_directions=self.both_directions)
        parts = data_balancing(self, system, data, horizon, sums)
        return np.stack([part.hsv for part in parts]).reshape(*system.batch_shape, -1)

    def plan(
        self,
        weights: dict[str, HostArray],
        order: int | OrderRule,
        options: CutOptions,
        storage: WeightStorage,
    ) -> LTICut:
        """Cut by balanced truncation, and measure the layer as it would be written."""
        balanced = balanced_layer(self.read(weights), options.horizon)
        truncate = partial(balanced.truncate, common_order=True)
        plan = LTIPlan(self, weights, options, storage, order, truncate)
        return plan.smallest(order) if isinstance(order, MeasuredError) else plan.cut()

    def candidates(
        self,
        weights: dict[str, HostArray],
        order: int | OrderRule,
        options: CutOptions,
        storage: WeightStorage,
        data: LayerData,
    ) -> Candidates:
        """Plan by each method, or the one that is asked for; see `ssmreduce.layers.lti_data`.

        Raises
        ------
        UnsupportedLayerError
            If that is a method for selective layers.
        UnstableSystemError
            If the layer is not stable within the horizon.
        """
        if options.method in ("compensated", "merged"):
            raise UnsupportedLayerError(
                f"`method` is {options.method!r}, but {type(self).__name__} is no selective layer; "
                "expected another. Try 'selected', which fits the weights that read the states, or leave "
                "the layer out with options=CutOptions(exclude=...), and cut it by another call."
            )
        system = self.read(weights).to_host()
        try:
            balanced = balanced_layer(system, options.horizon)
        except UnstableSystemError:
            # Poles of trained layers may lie a little outside of the circle.
            if options.horizon is not None:
                raise
            options = replace(options, horizon=data.horizon)
            balanced = balanced_layer(system, data.horizon)
        truncate = partial(balanced.truncate, common_order=True)
        plan = DataPlan(self, weights, options, storage, order, truncate, system, data)
        return plan.candidates()

    def write(
        self, system: System, weights: Weights, model: Weights | None = None, *, order: int = 0
    ) -> dict[str, HostArray]:
        """Return the weights, all but the feedthrough, of a layer that runs a system.

        Of a copy with the new weights of its `model`; see `copied_pole_weights`. It gets `order` states if
        the system has fewer.

        States without input or output, such as padding, get c = 0, and a pole and input weights from
        which training can revive them.

        Raises
        ------
        UnstableSystemError
            If the layer cannot store a pole.
        UnsupportedLayerError
            If `system` is not diagonal.
        """
        self.check(weights)
        if not isinstance(system, DiagonalStateSpace):
            raise UnsupportedLayerError(
                f"`system` is a {type_name(system)}; expected a DiagonalStateSpace. Start from read(weights)."
            )
        system = system.to_host()
        if self.real_input:
            system = with_real_input(system)
        if order > system.order:
            system = padded(system, order)
        modulus = np.maximum(np.abs(system.eigenvalues), _SMALLEST_MODULUS)
        logarithms = np.log(modulus) + 1j * np.angle(system.eigenvalues)
        B, C = system.B.astype(np.complex128), system.C.astype(np.complex128)
        if self.lower_half:  # Re(c h) does not tell a state from its conjugate
            upper = logarithms.imag > 0.0
            logarithms = np.where(upper, logarithms.conj(), logarithms)
            B = np.where(upper[..., :, None], B.conj(), B)
            C = np.where(upper[..., None, :], C.conj(), C)
        idle = ~np.any(B, axis=-1) | ~np.any(C, axis=-2)
        old, _, _ = self.modes(weights)
        middle = np.argsort(old.real, axis=-1)[..., old.shape[-1] // 2, None]
        typical = np.take_along_axis(old, middle, axis=-1)  # the pole of median decay
        logarithms = np.where(idle, typical, logarithms)
        C = np.where(idle[..., None, :], 0.0, C)
        if self.stores_input:
            B = np.where(idle[..., :, None], 1.0, B)
        else:
            B, C = np.ones_like(B), C * np.swapaxes(B, -1, -2)
        if model is None:
            new = self.pole_weights(logarithms, weights)
        else:
            new = self.copied_pole_weights(logarithms, weights, model)
        for name, value in new.items():
            if not np.all(np.isfinite(value)):
                raise UnstableSystemError(
                    f"`system` has a pole for which `{name}` is not finite; expected poles that the "
                    f"layer can store. Reduce to another order, or keep poles of its own: {OWN_POLES}."
                )
        _, s, t = self.modes({**weights, **new})
        new |= self.matrix_weights(B / s[..., :, None], C / t[..., None, :])
        for name in self.in_single:
            new[name] = new[name].astype(np.float32).astype(np.float64)
        return new


def check_decay(logarithms: HostArray, kind: str) -> None:
    """Raise `UnstableSystemError` unless every |λ| < 1."""
    if np.any(logarithms.real >= 0.0):
        largest = float(np.exp(logarithms.real.max()))
        raise UnstableSystemError(
            f"`system` has a pole with |λ| = {exact(largest)}; {kind} stores |λ| < 1 only. "
            f"Reduce to another order, or keep poles of the layer's own: {OWN_POLES}."
        )


def _shares(part: BalancedSystem, order: int) -> HostArray:
    """The diagonal of T Σ Wᴴ; real and imaginary part of a stored state together."""
    W, T = part.projections(part.rank)
    diagonal = np.real((T * part.hsv[: part.rank] * W.conj()).sum(axis=1))
    shares: HostArray = diagonal.reshape(-1, order).sum(axis=0)
    return shares
