"""`FrequencyWeighting`: a frequency band or weights, for Gramians that count some frequencies more."""

from __future__ import annotations

from dataclasses import dataclass

from ssmreduce._array_libraries import HostArray
from ssmreduce.errors import ArgumentError
from ssmreduce.gramians.frequency import frequency_limited_factors
from ssmreduce.gramians.weighted import weighted_factors
from ssmreduce.systems.diagonal import System


@dataclass(frozen=True, eq=False)
class FrequencyWeighting:
    """A frequency band, or an input weight, an output weight, or both weights.

    Parameters
    ----------
    band : tuple of two floats, optional
        See `frequency_limited_factors`.
    input_weight, output_weight : StateSpace or DiagonalStateSpace, optional
        See `weighted_factors`.
    """

    band: tuple[float, float] | None = None
    input_weight: System | None = None
    output_weight: System | None = None

    @classmethod
    def chosen(
        cls,
        horizon: int | None,
        band: tuple[float, float] | None,
        input_weight: System | None,
        output_weight: System | None,
    ) -> FrequencyWeighting | None:
        """Return what the arguments of `balance` ask for; None if all frequencies count alike.

        Raises
        ------
        ArgumentError
            If two of a horizon, a band and weights are given.
        """
        weights = {"input_weight": input_weight, "output_weight": output_weight}
        given = [
            name for name, value in (("horizon", horizon), ("band", band)) if value is not None
        ]
        given += [name for name, value in weights.items() if value is not None][:1]
        if len(given) > 1:
            raise ArgumentError(
                f"`{given[0]}` and `{given[1]}` are both given; expected one of a horizon, a band and "
                "weights. A band can be written as a weight: a band-pass filter."
            )
        if not given or horizon is not None:
            return None
        return cls(band, input_weight, output_weight)

    @property
    def keeps_stability(self) -> bool:
        """Whether the truncated system is stable by theorem: one weight only."""
        return self.band is None and (self.input_weight is None or self.output_weight is None)

    def factors(self, system: System) -> tuple[HostArray, HostArray]:
        """Return the Gramian factors Z and Y of one system with this weighting."""
        if self.band is not None:
            return frequency_limited_factors(system, self.band)
        return weighted_factors(system, self.input_weight, self.output_weight)
