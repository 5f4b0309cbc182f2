"""S4D: weights <-> systems (Gu, Gupta, Goel and Ré, NeurIPS 2022), one system for each channel.

With a step Δ for each channel and poles Λ of its own,

    h[k] = λ h[k-1] + s b u[k],   y[k] = 2 Re(c h[k]),

where λ and s follow from Λ and Δ (see `ssmreduce.layers.discretisation`). `S4D` is the minimal layer,
Λ = -exp(log_A_real) + i A_imag by zero-order hold with b = 1; `S4Diagonal` is the one of the full
repository with all its options, Λ = -T(A_real) - i T(A_imag). The feedthrough is a parameter of the
block around the kernel, not of the kernel: systems here have none. All channels have equally many
states, so a channel that needs fewer gets states with c = 0.
"""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from ssmreduce._array_libraries import Array, HostArray, namespace
from ssmreduce.layers.discretisation import Discretisation, steps_of_decay
from ssmreduce.layers.layer import (
    HasArrays,
    Layer,
    Shapes,
    Weights,
    refusal,
    unsaid,
    wrong_shape,
)
from ssmreduce.layers.lti import LTILayer, check_decay
from ssmreduce.layers.storage import Packed, Storage, Whole
from ssmreduce.layers.transforms import inverse_transformed, transformed

_refusal = partial(
    refusal, "S4D", expected="a linear time-invariant layer with poles of its own for each channel"
)


class S4D(LTILayer):
    """The minimal S4D kernel, one system for each channel; its weights may be tracers.

    With Λ = -exp(log_A_real) + i A_imag and Δ = exp(log_dt), by zero-order hold,

    ::

        h[k] = λ h[k-1] + s u[k],   y[k] = 2 Re(c h[k]).

    Weights, for H channels of n states: C (H, n, 2), log_A_real, A_imag (H, n), log_dt (H).

    Parameters
    ----------
    C : Storage, optional
        Where c is: by default in one real array with real and imaginary parts; discretax has it
        complex.
    log_real : str
        Name of the logarithms of -Re Λ.

    References
    ----------
    Gu, Gupta, Goel and Ré, On the Parameterization and Initialization of Diagonal State Space
    Models, NeurIPS 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.s4d import S4D
    >>> weights = {"log_A_real": np.zeros((3, 2)), "A_imag": np.ones((3, 2)), "log_dt": np.zeros(3)}
    >>> system = S4D().read(weights | {"C": np.ones((3, 2, 2))})
    >>> system.batch_shape, system.order, np.log(system.poles()[0]).round(6).tolist()
    ((3,), 2, [(-1+1j), (-1+1j)])
    """

    known_by = "log_dt"
    poles: tuple[str, ...] = ("log_A_real", "A_imag")
    stores_input = False

    def __init__(self, C: Storage | None = None, *, log_real: str = "log_A_real") -> None:
        self._C: Storage = Packed("C") if C is None else C
        self._log_real = log_real
        self.poles = (log_real, "A_imag")
        pair = (2,) if isinstance(self._C, Packed) else ()
        self.shapes = {
            **dict.fromkeys(self.poles, ("H", "n")),
            **dict.fromkeys(self._C.names, ("H", "n", *pair)),
            "log_dt": ("H",),
        }

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Layer | None:
        """Recognise the arrays of `S4DKernel`, or of the kernel of discretax."""
        if has(C=3, log_A_real=2, A_imag=2, log_dt=1):
            return cls()
        if has(C=2, log_a_real=2, A_imag=2, log_dt=1):
            return cls(Whole("C"), log_real="log_a_real")
        return None

    def modes(self, weights: Weights) -> tuple[Array, Array, Array]:
        """Return log λ = Λ Δ, ones and 2 s."""
        logarithms, s = Discretisation.ZOH.modes(self._poles(weights), self._step(weights))
        one = namespace(weights["A_imag"]).ones_like(weights["A_imag"])
        return logarithms, one, 2.0 * s

    def pole_weights(self, logarithms: HostArray, weights: Weights) -> dict[str, HostArray]:
        """Return the weights of Λ for the steps as they are."""
        check_decay(logarithms, "an S4D layer")
        poles = logarithms / self._step(weights)
        return {self._log_real: np.log(-poles.real), "A_imag": poles.imag}

    def matrices(self, weights: Weights) -> tuple[Array, Array]:
        """Return b = 1 and c."""
        C = self._C.get(weights)
        xp = namespace(weights["A_imag"])
        return xp.ones((*C.shape, 1), dtype=weights["A_imag"].dtype), C[:, None, :]

    def matrix_weights(self, B: HostArray, C: HostArray) -> dict[str, HostArray]:
        """Return the array of c."""
        return self._C.put(C[:, 0, :])

    def _poles(self, weights: Weights) -> Array:
        log_real = weights[self._log_real]
        return -namespace(log_real).exp(log_real) + 1j * weights["A_imag"]

    def _step(self, weights: Weights) -> Array:
        log_dt = weights["log_dt"]
        return namespace(log_dt).exp(log_dt)[:, None]


class S4Diagonal(LTILayer):
    """The kernel `SSMKernelDiag` of the full S4 repository, one system for each channel.

    As `S4D`, with B, with Λ = -T(A_real) - i T(A_imag) and with a choice of T and of the rule.
    Weights, for H channels of n states and c outputs of each: C (c, H, n, 2), B (1, H, n, 2),
    A_real, A_imag (H, n), inv_dt (H, 1 or n).

    Parameters
    ----------
    discretisation : Discretisation
        The kernel's `disc`.
    real_transform, imag_transform, dt_transform : str
        The kernel's transforms of `A_real`, `A_imag` and `inv_dt`: none, exp, relu, sigmoid,
        softplus.
    fast_step : bool
        The kernel's `dt_fast`: whether the step is a transform of sinh(inv_dt).

    References
    ----------
    Gu, Gupta, Goel and Ré, On the Parameterization and Initialization of Diagonal State Space
    Models, NeurIPS 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.s4d import S4Diagonal
    >>> weights = {"A_real": np.zeros((3, 2)), "A_imag": np.ones((3, 2))}
    >>> weights |= {"inv_dt": np.zeros((3, 1))}
    >>> weights |= {"B": np.ones((1, 3, 2, 2)), "C": np.ones((1, 3, 2, 2))}
    >>> np.log(S4Diagonal().read(weights).poles()[0]).round(6).tolist()
    [(-1-1j), (-1-1j)]
    """

    shapes: Shapes = MappingProxyType(
        {
            "A_real": ("H", "n"),
            "A_imag": ("H", "n"),
            "inv_dt": None,
            "B": (1, "H", "n", 2),
            "C": ("c", "H", "n", 2),
        }
    )
    known_by = "inv_dt"
    poles: tuple[str, ...] = ("A_real", "A_imag", "inv_dt")
    sizes = ("N", "d_state")
    caches: tuple[str, ...] = ("dA", "dB", "dC")
    lower_half = True

    def __init__(
        self,
        discretisation: Discretisation = Discretisation.ZOH,
        *,
        real_transform: str = "exp",
        imag_transform: str = "none",
        dt_transform: str = "exp",
        fast_step: bool = False,
    ) -> None:
        self._discretisation = discretisation
        self._real, self._imag = real_transform, imag_transform
        self._dt, self._fast_step = dt_transform, fast_step

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Layer | None:
        """Recognise the arrays of `SSMKernelDiag`, and refuse the variants that are not such systems."""
        if has("P") or not has("A_real", "inv_dt", "B", "C"):
            return None
        if getattr(layer, "is_real", False):
            raise _refusal("`is_real` is True: it cannot store the complex poles of a reduction")
        if not has(A_real=2, A_imag=2, inv_dt=2, B=4, C=4):
            return None
        if not hasattr(layer, "disc"):
            raise unsaid("S4D", "disc", "S4Diagonal(Discretisation.BILINEAR)")
        rule = layer.disc
        if rule not in {item.value for item in Discretisation}:
            raise _refusal(f"`disc` is {rule!r}: its kernel depends on the sequence length")
        return cls(Discretisation(rule), **cls._options(layer))

    @staticmethod
    def _options(layer: Any) -> dict[str, Any]:
        """The options of a kernel object, as arguments of the map."""
        if getattr(layer, "bandlimit", None) is not None:
            raise _refusal("`bandlimit` is set: it masks states by their frequency")
        poles, C = getattr(layer, "A_real", None), getattr(layer, "C", None)
        if poles is not None and C is not None and poles.shape[0] != C.shape[1]:
            raise _refusal("`n_ssm` is below the number of channels: channels share their poles")
        return {
            "real_transform": getattr(layer, "real_transform", "exp"),
            "imag_transform": getattr(layer, "imag_transform", "none"),
            "dt_transform": getattr(layer, "dt_transform", "exp"),
            "fast_step": bool(getattr(layer, "dt_fast", False)),
        }

    def modes(self, weights: Weights) -> tuple[Array, Array, Array]:
        """Return log λ, s and 2."""
        logarithms, s = self._discretisation.modes(self._poles(weights), self._step(weights))
        return logarithms, s, np.full(s.shape, 2.0)

    def pole_weights(self, logarithms: HostArray, weights: Weights) -> dict[str, HostArray]:
        """Return A_real and A_imag for the step of each channel, or steps with which they decay as before."""
        inv_dt = weights["inv_dt"]
        if inv_dt.shape[1] > 1:
            unit = self._discretisation.poles(logarithms, 1.0)
            steps = steps_of_decay(-unit.real, self._poles(weights), self._step(weights))
            inv_dt = inverse_transformed(steps, self._dt)
            inv_dt = np.arcsinh(inv_dt) if self._fast_step else inv_dt
            # A number of single precision: weights of that dtype hold the very step that Λ is made for.
            inv_dt = inv_dt.astype(np.float32).astype(np.float64)
        return self._poles_at(logarithms, inv_dt)

    def copied_pole_weights(
        self, logarithms: HostArray, weights: Weights, model: Weights
    ) -> dict[str, HostArray]:
        """Return A_real and A_imag for the step of each channel, or the steps of the model's states."""
        steps = weights if weights["inv_dt"].shape[1] == 1 else model
        return self._poles_at(logarithms, steps["inv_dt"])

    def _poles_at(self, logarithms: HostArray, inv_dt: HostArray) -> dict[str, HostArray]:
        check_decay(logarithms, "an S4D layer")
        new = {"inv_dt": inv_dt}
        poles = self._discretisation.poles(logarithms, self._step(new))
        new["A_real"] = inverse_transformed(-poles.real, self._real)
        new["A_imag"] = inverse_transformed(-poles.imag, self._imag, positive=True)
        return new

    def matrices(self, weights: Weights) -> tuple[HostArray, HostArray]:
        """Return b, shape (H, n, 1), and c, shape (H, c, n)."""
        B, C = Packed("B").get(weights), Packed("C").get(weights)
        return B[0, :, :, None], np.moveaxis(C, 0, 1)

    def matrix_weights(self, B: HostArray, C: HostArray) -> dict[str, HostArray]:
        """Return the arrays of b and c."""
        return Packed("B").put(B[None, :, :, 0]) | Packed("C").put(np.moveaxis(C, 1, 0))

    def check(self, weights: Weights) -> None:
        """Raise `ShapeError` unless the weights fit together."""
        super().check(weights)
        found, (channels, n) = weights["inv_dt"].shape, weights["A_real"].shape
        if found not in ((channels, 1), (channels, n)):
            raise wrong_shape("inv_dt", found, (channels, 1 if found[1:] == (1,) else n))

    def _poles(self, weights: Weights) -> HostArray:
        real = transformed(weights["A_real"], self._real)
        return np.asarray(-real - 1j * transformed(weights["A_imag"], self._imag))

    def _step(self, weights: Weights) -> HostArray:
        inv_dt = np.sinh(weights["inv_dt"]) if self._fast_step else weights["inv_dt"]
        return transformed(inv_dt, self._dt)
