"""Where poles may lie: infinite-horizon Gramians and norms exist for stable systems only.

A pole of a dense system that rounding cannot tell from the stability boundary counts as on it, see
`ssmreduce._poles`; those of a diagonal system are numbers as given.
"""

from __future__ import annotations

from ssmreduce._array_libraries import HostArray
from ssmreduce._checks import exact
from ssmreduce._lapack import frobenius_norm
from ssmreduce._pole_rounding import far
from ssmreduce._poles import are_stable
from ssmreduce._schur import SchurForm
from ssmreduce.errors import UnstableSystemError
from ssmreduce.systems.diagonal import DiagonalStateSpace, System
from ssmreduce.time_domain import Discrete, TimeDomain

_NO_GRAMIAN = "No Gramian exists otherwise. "
_IN_STEPS = (
    "Balance with horizon=L, the length of the sequences it sees, or with keep_unstable=True, or take "
    "split_unstable(system).stable."
)
_IN_TIME = (
    "Look whether the time domain is right; else take split_unstable(system).stable, or "
    "balance(system, keep_unstable=True)."
)
_OF_MATRIX = (
    "Look whether the time domain is right; BartelsStewart() needs no stable `A`, for X itself."
)


def check_stable(
    eigenvalues: HostArray,
    time: TimeDomain,
    *,
    name: str = "`system`",
    log_eigenvalues: HostArray | None = None,
    advice: str | None = None,
) -> None:
    """Raise `UnstableSystemError` unless all eigenvalues are stable.

    Where logarithms are given (discrete time) they decide: a λ that has rounded to modulus 1 is stable if
    its logarithm has a negative real part. `name` says in the message what has the pole, and `advice`
    what to try; without one, what to try where a Gramian was wanted.
    """
    if eigenvalues.size == 0:
        return
    if log_eigenvalues is not None:
        worst, limit, kind = float(log_eigenvalues.real.max()), 0.0, "log |λ|"
    else:
        worst = float(time.growth(eigenvalues).max())
        limit, kind = time.steady_point, time.growth_symbol
    if worst < limit:
        return
    raise _unstable(f"{kind} = {exact(worst)}; expected {kind} < {limit:g}", time, name, advice)


def stable_form(
    balanced: HostArray, time: TimeDomain, A: HostArray, *, name: str = "`system`"
) -> SchurForm:
    """The Schur form of a stable matrix that is balanced, in exact units where rounding might decide.

    Raises
    ------
    UnstableSystemError
        As `check_stable_form`, of the state matrix A before it was balanced.
    NoConvergenceError
        If the QR algorithm fails.
    """
    form = SchurForm.of_balanced(balanced)
    # The real parts are on the diagonal, of pairs too.
    poles = form.eigenvalues() if isinstance(time, Discrete) else form.triangle.diagonal()
    if not (time.distance(poles) > far(len(poles)) * frobenius_norm(form.triangle)).all():
        form = form.decided(time)
        check_stable_form(form, time, A, name=name)
    return form


def check_stable_form(
    form: SchurForm,
    time: TimeDomain,
    A: HostArray | None = None,
    *,
    name: str = "`system`",
    advice: str | None = None,
) -> None:
    """Raise `UnstableSystemError` unless all poles of a dense system are stable, and not only by rounding.

    Where the state matrix A of the form is given, it decides as for `is_stable`; the poles of the form need
    only lie inside.
    """
    stable = bool(form.stable(time).all())
    if A is not None and not stable:
        stable = form.inside(time) and bool(are_stable(A, time))
    if stable:
        return
    poles, doubtful = form.eigenvalues(), ~form.stable(time)
    poles = poles[doubtful] if doubtful.any() else poles
    found, limit, kind = float(time.growth(poles).max()), time.steady_point, time.growth_symbol
    if found >= limit:
        raise _unstable(f"{kind} = {exact(found)}; expected {kind} < {limit:g}", time, name, advice)
    raise _unstable(
        f"{kind} = {exact(found)}, which rounding of the state matrix cannot tell from {limit:g}; expected "
        f"{kind} < {limit:g} by more than that",
        time,
        name,
        advice,
    )


def _unstable(found: str, time: TimeDomain, name: str, advice: str | None) -> UnstableSystemError:
    if advice is None:
        remedy = _IN_STEPS if isinstance(time, Discrete) else _IN_TIME
        advice = _NO_GRAMIAN + (_OF_MATRIX if name == "`A`" else remedy)
    return UnstableSystemError(f"{name} has a pole with {found}. {advice}")


def check_stable_system(system: System, advice: str, *, name: str = "`system`") -> None:
    """Raise `UnstableSystemError` unless all poles of a single system are stable."""
    host = system.to_host()
    if isinstance(host, DiagonalStateSpace):
        check_stable(
            host.eigenvalues,
            host.time,
            name=name,
            log_eigenvalues=host.log_eigenvalues,
            advice=advice,
        )
    elif not are_stable(host.A, host.time):
        form = SchurForm.of(host.A, time=host.time)
        check_stable_form(form, host.time, host.A, name=name, advice=advice)
