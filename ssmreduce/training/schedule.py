"""When to try a cut: `ReductionSchedule`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from ssmreduce._checks import is_number, positive_count, shown, whole_number
from ssmreduce.errors import OrderError

_MOST_ATTEMPTS = 10_000
"""All of them are looked through at every step."""


@dataclass(frozen=True)
class ReductionSchedule:
    """A few attempts, evenly spaced, early in the run: four in the first tenth by default.

    Attempt i = 1 ... k is due after step start + i (stop - start)/k, both as shares of the run. Few
    attempts mean few distinct shapes; every new shape costs a compilation.

    Parameters
    ----------
    total_steps : int
        Optimizer steps of the whole run.
    start, stop : float
        Where in the run attempts lie, as shares with 0 ≤ start < stop ≤ 1.
    attempts : int
        How many.

    Raises
    ------
    OrderError
        If a number is out of range.

    References
    ----------
    CompreSSM, arXiv 2510.02823: the ranking of states settles in about the first tenth.

    Examples
    --------
    >>> from ssmreduce import ReductionSchedule
    >>> ReductionSchedule(2000).steps
    (50, 100, 150, 200)
    """

    total_steps: int
    _: KW_ONLY
    start: float = 0.0
    stop: float = 0.1
    attempts: int = 4

    def __post_init__(self) -> None:
        total = positive_count(self.total_steps, "total_steps", "the optimizer steps of the run")
        attempts = positive_count(self.attempts, "attempts", "how often to try, 4 by default")
        if self.attempts > _MOST_ATTEMPTS:
            raise OrderError(
                f"`attempts` is {self.attempts}; expected at most {_MOST_ATTEMPTS}. Try 4: each new shape "
                "costs a compilation."
            )
        shares = is_number(self.start) and is_number(self.stop)
        if not shares or not 0.0 <= self.start < self.stop <= 1.0:
            raise OrderError(
                f"`start` is {shown(self.start)} and `stop` is {shown(self.stop)}; expected shares of the "
                "run with 0 <= start < stop <= 1."
            )
        vars(self).update(total_steps=total, attempts=attempts)
        vars(self).update(start=float(self.start), stop=float(self.stop))

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps after which an attempt is due, ascending, without repeats."""
        width = (self.stop - self.start) / self.attempts
        shares = [self.start + (i + 1) * width for i in range(self.attempts)]
        return tuple(sorted({max(1, round(share * self.total_steps)) for share in shares}))

    def due(self, step: int) -> bool:
        """Tell whether an attempt is due after update number `step` (the first is 1)."""
        return whole_number(step, "step", "the number of updates done") in self.steps
