"""From a continuous pole Λ and a step Δ to a discrete pole λ and input factor s, and back.

zoh:       λ = exp(Λ Δ),                   s = (λ - 1)/Λ
bilinear:  λ = (1 + Λ Δ/2)/(1 - Λ Δ/2),    s = Δ/(1 - Λ Δ/2)
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from ssmreduce._array_libraries import Array, HostArray, is_complex_array, namespace


class Discretisation(Enum):
    """Rule by which a layer makes a continuous system discrete: ``Discretisation.ZOH`` or
    ``BILINEAR``.

    ::

        zoh:       λ = exp(Λ Δ),                   s = (λ - 1)/Λ
        bilinear:  λ = (1 + Λ Δ/2)/(1 - Λ Δ/2),    s = Δ/(1 - Λ Δ/2)

    Λ is a continuous pole, Δ the step, λ the discrete pole and s the factor of its inputs.

    Examples
    --------
    >>> import numpy as np
    >>> from ssmreduce.layers.discretisation import Discretisation
    >>> logarithms, s = Discretisation.BILINEAR.modes(np.array([-1.0]), np.array([1.0]))
    >>> np.exp(logarithms).real.round(6).tolist(), s.round(6).tolist()
    ([0.333333], [0.666667])
    """

    ZOH = "zoh"
    BILINEAR = "bilinear"

    def modes(self, poles: Array, step: Array) -> tuple[Array, Array]:
        """Return log λ, which is Λ Δ or 2 artanh(Λ Δ/2), and s.

        Parameters
        ----------
        poles : (..., n) array
            Λ.
        step : (..., n) array
            Δ, or what broadcasts to it.

        Returns
        -------
        logarithms : (..., n) array
            Complex for the bilinear rule.
        input_factor : (..., n) array
        """
        product = poles * step
        if self is Discretisation.ZOH:
            xp = np if isinstance(poles, np.ndarray) else namespace(poles)
            return product, xp.expm1(product) / poles
        input_factor = step / (1.0 - 0.5 * poles * step)
        product = product if is_complex_array(product) else product + 0j
        return 2.0 * namespace(product).atanh(0.5 * product), input_factor

    def poles(self, logarithms: HostArray, step: HostArray | float) -> HostArray:
        """Return Λ: log λ/Δ, or (2/Δ) tanh(log λ/2).

        Parameters
        ----------
        logarithms : (..., n) array
            log λ.
        step : float or (..., n) array
            Δ, or what broadcasts to it.

        Returns
        -------
        (..., n) array
            The inverse of `modes`.
        """
        if self is Discretisation.ZOH:
            return np.asarray(logarithms / step)
        return np.asarray(2.0 * np.tanh(0.5 * logarithms) / step)


def steps_of_decay(decay: HostArray, poles: HostArray, steps: HostArray) -> HostArray:
    """Return steps Δ with which new poles decay in continuous time as those of a layer do.

    Any step will do for what the layer computes, but for rounding and what it can store. But optimizers
    move Λ by amounts that do not depend on its size: with one step for all states slow modes have small
    Re Λ, and training throws them about.

    Parameters
    ----------
    decay : (..., r) array
        -Re Λ of the new states for a step of 1.
    poles : (..., n) array
        Λ of the layer.
    steps : (..., n) array
        Its steps; the new ones stay within their range.

    Returns
    -------
    (..., r) array
        Δ = decay over the median of -Re Λ, or the median step where that is not positive.
    """
    typical = np.median(-poles.real, axis=-1, keepdims=True)
    median = np.median(steps, axis=-1, keepdims=True)
    divisor = np.where(typical > 0.0, typical, 1.0)
    wanted = np.where(typical > 0.0, decay / divisor, median)
    shortest, longest = (find(steps, axis=-1, keepdims=True) for find in (np.min, np.max))
    return np.asarray(np.clip(wanted, shortest, longest))
