"""S5 of lindermanlab and discretax: weights <-> system (Smith, Warrington and Linderman, ICLR 2023).

With Λ = Lambda_re + i Lambda_im and a step Δ = step_rescale · exp(log_step) for each state,

    zoh:       λ = exp(Λ Δ),                   s = (λ - 1)/Λ,
    bilinear:  λ = (1 + Λ Δ/2)/(1 - Λ Δ/2),    s = Δ/(1 - Λ Δ/2),

    h[k] = λ h[k-1] + s B u[k],   y[k] = φ Re(C h[k]) + D ⊙ u[k],

with φ = 2 where each stored state stands for a conjugate pair (``conj_sym``), else 1. With ``clip_eigs``
the layer runs min(Re Λ, -1e-4) in place of Re Λ. The step is a redundant number for each state: written
states take one with which Λ decays as before, and where that clips, for poles near the unit circle, one that
makes Re Λ = -2e-4. A bidirectional layer runs the same states over the sequence from either end and reads
them with C = [C_f, C_b], in one array or in two: the system here has the outputs of both, [C_f; C_b], with D
in the first half. The error of the layer is then at most sqrt(2) times that of the system.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from ssmreduce._array_libraries import Array, HostArray, is_traced, namespace
from ssmreduce._checks import shown
from ssmreduce.errors import ShapeError, UnsupportedLayerError
from ssmreduce.layers.discretisation import Discretisation, steps_of_decay
from ssmreduce.layers.layer import HasArrays, Layer, Weights, stack_refusal
from ssmreduce.layers.lti import LTILayer, check_decay
from ssmreduce.layers.storage import Packed

_LARGEST_REAL_PART = -1e-4
"""To this Re Λ is clipped, with `clip_eigs`."""

_MARGIN = 2.0
"""Written real parts are below the clip by this factor, so that they keep a gradient in any dtype."""


class S5HalfSpectrum(LTILayer):
    """The S5 of lindermanlab and discretax; its weights may be tracers.

    Weights, for n states and m channels: Lambda_re, Lambda_im (n), log_step (n, 1), B (n, m, 2), C
    (m, n, 2) and D (m). Bidirectional layers have C (m, 2n, 2), or two arrays (m, n, 2).

    Parameters
    ----------
    discretisation : Discretisation
        Rule of the layer.
    conj_sym : bool
        Whether half of the spectrum is stored, one state of each conjugate pair.
    clip_eigs : bool
        Whether the layer clips real parts of Λ to -1e-4 where it uses them.
    bidirectional : bool
        Whether the output matrix is for both directions.
    step_rescale : float
        Factor of all steps.
    C : tuple of str
        Names of the output matrix: of one array, or of one for each direction.

    References
    ----------
    Smith, Warrington and Linderman, Simplified State Space Layers for Sequence Modeling, ICLR 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.s5_jax import S5HalfSpectrum
    >>> weights = {"Lambda_re": np.array([-1.0]), "Lambda_im": np.array([2.0])}
    >>> weights |= {"log_step": np.zeros((1, 1)), "D": np.zeros(1)}
    >>> weights |= {"B": np.ones((1, 1, 2)), "C": np.ones((1, 1, 2))}
    >>> np.log(S5HalfSpectrum().read(weights).poles()).round(6).tolist()
    [(-1+2j)]
    """

    known_by = "Lambda_re"
    poles = ("Lambda_re", "Lambda_im", "log_step")
    feedthrough = "D"
    sizes = ("P", "state_dim", "d_state", "ssm_size")

    def __init__(
        self,
        discretisation: Discretisation = Discretisation.ZOH,
        *,
        conj_sym: bool = True,
        clip_eigs: bool = False,
        bidirectional: bool = False,
        step_rescale: float = 1.0,
        C: tuple[str, ...] = ("C",),
    ) -> None:
        self._discretisation = discretisation
        self._factor = 2.0 if conj_sym else 1.0
        self._clips = clip_eigs
        self.both_directions = bidirectional
        self._step_rescale = step_rescale
        self._B = Packed("B")
        self._C = tuple(map(Packed, C))
        columns = "2n" if bidirectional and len(C) == 1 else "n"
        self.shapes = {
            "Lambda_re": ("n",),
            "Lambda_im": ("n",),
            "log_step": ("n", 1),
            "B": ("n", "m", 2),
            **dict.fromkeys(C, ("m", columns, 2)),
            "D": ("m",),
        }

    @classmethod
    def recognise(cls, layer: Any, has: HasArrays) -> Layer | None:
        """Recognise the arrays of `S5SSM` and `S5SequenceMixer`; options are attributes of the layer."""
        two = has("C1", "C2")
        if not has("Lambda_re", "Lambda_im", "log_step", "B", "D") or not (two or has("C")):
            return None
        if has(Lambda_re=2, Lambda_im=2, B=4):
            raise stack_refusal("S5")
        for name in ("conj_sym", "discretization"):
            if not hasattr(layer, name):
                raise _refusal(
                    f"it has no attribute `{name}`, which says what it computes (arrays of a dict need "
                    "`kind=S5HalfSpectrum(...)`)"
                )
        rule = layer.discretization
        if rule not in [item.value for item in Discretisation]:
            raise _refusal(
                f"`discretization` is {shown(rule)}: a rule that is neither 'zoh' nor 'bilinear'"
            )
        bidirectional = bool(getattr(layer, "bidirectional", two))
        if two and not bidirectional:
            raise _refusal("it has `C1` and `C2`, but `bidirectional` is False")
        return cls(
            Discretisation(rule),
            conj_sym=bool(layer.conj_sym),
            clip_eigs=bool(getattr(layer, "clip_eigs", False)),
            bidirectional=bidirectional,
            step_rescale=_positive(getattr(layer, "step_rescale", 1.0)),
            C=("C1", "C2") if two else ("C",),
        )

    def modes(self, weights: Weights) -> tuple[Array, Array, Array]:
        """Return log λ, s and φ."""
        step = self._step(weights)
        factor = self._factor * namespace(step).ones_like(step)
        return *self._discretisation.modes(self._poles(weights), step), factor

    def pole_weights(self, logarithms: HostArray, weights: Weights) -> dict[str, HostArray]:
        """Return Λ for steps with which it decays as before, or shorter ones where it would be clipped."""
        unit = self._discretisation.poles(logarithms, self._step_rescale)
        old = self._poles(weights), np.exp(weights["log_step"][:, 0])
        return self._poles_at(logarithms, np.log(steps_of_decay(-unit.real, *old)))

    def copied_pole_weights(
        self, logarithms: HostArray, weights: Weights, model: Weights
    ) -> dict[str, HostArray]:
        """Return Λ for the steps of the model, or shorter ones where it would be clipped."""
        return self._poles_at(logarithms, model["log_step"][:, 0])

    def _poles_at(self, logarithms: HostArray, log_step: HostArray) -> dict[str, HostArray]:
        if self._clips:
            check_decay(logarithms, "an S5 layer with `clip_eigs`")
            unit = self._discretisation.poles(logarithms, self._step_rescale)
            log_step = np.minimum(log_step, np.log(unit.real / (_MARGIN * _LARGEST_REAL_PART)))
        # A number of single precision: weights of that dtype hold the very step that Λ is made for.
        new = {"log_step": log_step.astype(np.float32).astype(np.float64)[:, None]}
        poles = self._discretisation.poles(logarithms, self._step(new))
        return new | {"Lambda_re": poles.real, "Lambda_im": poles.imag}

    def matrices(self, weights: Weights) -> tuple[Array, Array]:
        """Return B and C, the two directions of C one below the other."""
        B, parts = self._B.get(weights), [part.get(weights) for part in self._C]
        if self.both_directions and len(parts) == 1:
            n = B.shape[0]
            parts = [parts[0][:, :n], parts[0][:, n:]]
        return B, namespace(B).concat(parts) if len(parts) > 1 else parts[0]

    def matrix_weights(self, B: HostArray, C: HostArray) -> dict[str, HostArray]:
        """Return the arrays of B and C."""
        parts = np.split(C, 2) if self.both_directions else [C]
        if len(self._C) == 1:
            parts = [np.concatenate(parts, axis=1)]
        new = self._B.put(B)
        for storage, part in zip(self._C, parts, strict=True):
            new |= storage.put(part)
        return new

    def check(self, weights: Weights) -> None:
        """Raise `ShapeError` unless the weights fit together."""
        super().check(weights)
        poles = self._poles(weights)
        zoh = self._discretisation is Discretisation.ZOH
        if zoh and not is_traced(poles) and np.any(np.asarray(poles) == 0.0):
            raise ShapeError(
                "`Lambda_re` and `Lambda_im` have a common entry 0; expected none: the layer divides by it "
                "and returns NaN. Set `Lambda_re` to a small negative number there."
            )

    def _poles(self, weights: Weights) -> Array:
        real = weights["Lambda_re"]
        if self._clips:
            xp = namespace(real)
            real = xp.where(real < _LARGEST_REAL_PART, real, _LARGEST_REAL_PART)
        return real + 1j * weights["Lambda_im"]

    def _step(self, weights: Weights) -> Array:
        log_step = weights["log_step"][:, 0]
        return self._step_rescale * namespace(log_step).exp(log_step)


def _positive(step_rescale: Any) -> float:
    """The factor of the steps, refused unless it is a positive number."""
    number = isinstance(step_rescale, Real) and not isinstance(step_rescale, bool)
    if not number or not 0.0 < float(step_rescale) < np.inf:
        raise _refusal(f"`step_rescale` is {shown(step_rescale)}: no positive number")
    return float(step_rescale)


def _refusal(reason: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"this S5 layer cannot be reduced because {reason}; expected the layer of lindermanlab or "
        "discretax with its options as attributes. Register an S5HalfSpectrum for it with "
        "register_layer(...)."
    )
