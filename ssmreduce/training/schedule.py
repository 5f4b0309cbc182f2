"""When to try a cut: `ReductionSchedule`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ssmreduce._checks import is_number, positive_count, shown, whole_number
from ssmreduce.errors import ArgumentError

_MOST_ATTEMPTS = 10_000
"""All of them are looked through at every step."""

_APART = 25
"""Steps between attempts, and before the first: more than a warm-up of a tenth has in a run of 250 steps, and
enough for Adam's mean of gradients, over ten of them, to settle after a cut."""

_MOST_SHOWN = 8
"""Steps in a repr."""


@dataclass(frozen=True, init=False)
class ReductionSchedule:
    """A few attempts, evenly spaced, early in the run: four in the first tenth by default.

    Attempt i = 1 ... k is due after step start + i (stop - start)/k, both as shares of the run. Few
    attempts mean few distinct shapes; every new shape costs a compilation. `at` takes the steps themselves.

    Parameters
    ----------
    total_steps : int
        Optimizer steps of the whole run.
    start, stop : float
        Where in the run attempts lie, as shares with 0 ≤ start < stop ≤ 1.
    attempts : int, optional
        How many. By default four, or in a short run as many as are 25 steps apart: one at least, which is not
        due before step 25 or half of the run. Attempts inside of a warm-up cut what is not learned yet.

    Attributes
    ----------
    steps : tuple of int
        Steps after which an attempt is due, ascending, without repeats.

    Raises
    ------
    ArgumentError
        If a number is out of range.

    References
    ----------
    CompreSSM, arXiv 2510.02823: the ranking of states settles in about the first tenth.

    Examples
    --------
    >>> from ssmreduce import ReductionSchedule
    >>> ReductionSchedule(2000).steps
    (50, 100, 150, 200)
    >>> ReductionSchedule(160).steps
    (25,)
    """

    steps: tuple[int, ...]

    def __init__(
        self,
        total_steps: int,
        *,
        start: float = 0.0,
        stop: float = 0.1,
        attempts: int | None = None,
    ) -> None:
        total = positive_count(total_steps, "total_steps", "the optimizer steps of the run")
        count = 4 if attempts is None else positive_count(attempts, "attempts", "how often to try")
        if count > _MOST_ATTEMPTS:
            raise ArgumentError(
                f"`attempts` is {attempts}; expected at most {_MOST_ATTEMPTS}. Try 4: each new shape "
                "costs a compilation."
            )
        if not (is_number(start) and is_number(stop)) or not 0.0 <= start < stop <= 1.0:
            raise ArgumentError(
                f"`start` is {shown(start)} and `stop` is {shown(stop)}; expected shares of the "
                "run with 0 <= start < stop <= 1."
            )
        first, length, earliest = float(start), float(stop) - float(start), 1
        if attempts is None:
            count = max(1, min(count, int(round(length * total, 6)) // _APART))
            earliest = min(_APART, max(1, total // 2))
        shares = [first + (i + 1) * length / count for i in range(count)]
        self._set(max(earliest, round(share * total)) for share in shares)

    @classmethod
    def at(cls, *steps: int) -> ReductionSchedule:
        """Return the schedule with an attempt after each of these steps.

        Parameters
        ----------
        *steps : int
            Numbers of updates, positive.

        Returns
        -------
        ReductionSchedule
            With these steps, ascending, without repeats.

        Raises
        ------
        ArgumentError
            If none is given, or one is not a positive int.

        Examples
        --------
        >>> from ssmreduce import ReductionSchedule
        >>> ReductionSchedule.at(100, 400)
        ReductionSchedule.at(100, 400)
        """
        if not 0 < len(steps) <= _MOST_ATTEMPTS:
            raise ArgumentError(
                f"`steps` are {len(steps)} numbers; expected 1 to {_MOST_ATTEMPTS}. Write "
                "ReductionSchedule.at(100, 400)."
            )
        schedule = object.__new__(cls)
        schedule._set(
            positive_count(step, "steps", "the numbers of updates done") for step in steps
        )
        return schedule

    def _set(self, steps: Iterable[int]) -> None:
        vars(self).update(steps=tuple(sorted(set(steps))))

    def __repr__(self) -> str:
        steps = [str(step) for step in self.steps]
        if len(steps) > _MOST_SHOWN:
            steps = [*steps[: _MOST_SHOWN - 2], "...", steps[-1]]
        return f"ReductionSchedule.at({', '.join(steps)})"

    def due(self, step: int) -> bool:
        """Tell whether an attempt is due after update number `step` (the first is 1)."""
        return whole_number(step, "step", "the number of updates done") in self.steps

    def outlook(self, step: int) -> str:
        """Say for a message what comes after the attempt that was due after `step`.

        :meta private:
        """
        later = [at for at in self.steps if at > step]
        return (
            f"the next attempt is due after step {later[0]}" if later else "it was the last attempt"
        )
