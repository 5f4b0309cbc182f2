"""From a continuous pole Λ and a step Δ to a discrete pole λ and input factor s, and back.

zoh:       λ = exp(Λ Δ),                   s = (λ - 1)/Λ
bilinear:  λ = (1 + Λ Δ/2)/(1 - Λ Δ/2),    s = Δ/(1 - Λ Δ/2)
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from ssmreduce._namespace import HostArray


class Discretisation(Enum):
    """Rule by which a layer makes a continuous system discrete."""

    ZOH = "zoh"
    BILINEAR = "bilinear"

    def logarithms(self, poles: HostArray, step: HostArray) -> HostArray:
        """Return log λ: Λ Δ, or 2 artanh(Λ Δ/2)."""
        product = poles * step
        if self is Discretisation.ZOH:
            return np.asarray(product)
        return np.asarray(2.0 * np.arctanh(0.5 * product.astype(np.complex128)))

    def poles(self, logarithms: HostArray, step: HostArray) -> HostArray:
        """Return Λ: log λ/Δ, or (2/Δ) tanh(log λ/2)."""
        if self is Discretisation.ZOH:
            return np.asarray(logarithms / step)
        return np.asarray(2.0 * np.tanh(0.5 * logarithms) / step)

    def input_factor(self, poles: HostArray, step: HostArray) -> HostArray:
        """Return s."""
        if self is Discretisation.ZOH:
            return np.asarray(np.expm1(poles * step) / poles)
        return np.asarray(step / (1.0 - 0.5 * poles * step))
