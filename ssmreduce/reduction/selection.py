"""Selection of states: keep the modes of a diagonal system that matter most, poles untouched.

The transfer function is a sum of modes, G(z) = Σ_k c_k b_kᴴ/(z - λ_k) + D with c_k a column of C and
b_kᴴ a row of B. Each mode alone has, with w_k = ‖c_k‖‖b_k‖ and in discrete (continuous) time,

    H∞ norm w/(1 - |λ|) (w/|Re λ|),  Hankel singular value w/(1 - |λ|²) (w/(2|Re λ|)),
    H2 norm w/sqrt(1 - |λ|²) (w/sqrt(2|Re λ|)).

By the triangle inequality the H∞ norms of the removed modes add up to a bound on the error, whatever
the score. Cost O(n (m + p)). Modes are ranked one by one: the joint response of
two with close poles counts in balanced truncation, and not in a selection.

References: Gwak et al. (LAST, H∞ score), arXiv 2411.02824; AIRE-Prune (H2 score), arXiv 2602.00534.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from ssmreduce._array_libraries import HostArray
from ssmreduce._array_routes import any_library
from ssmreduce._checks import is_one_of, shown
from ssmreduce.errors import ArgumentError, ArgumentTypeError, OrderError
from ssmreduce.gramians.batch import in_batch_shape, map_parts, map_systems
from ssmreduce.reduction.batch import assemble, single_systems
from ssmreduce.reduction.order import ErrorBound, FixedOrder, OrderRule, as_rule, divided
from ssmreduce.reduction.report import Reduction
from ssmreduce.systems.diagonal import DiagonalStateSpace, check_system
from ssmreduce.systems.transform import SlotMap

Score = Literal["hankel", "hinf", "h2"]


@any_library()
def state_scores(system: DiagonalStateSpace, score: Score = "hankel") -> HostArray:
    """Scores of the modes of a diagonal system, ‖c_k‖‖b_k‖ over a power of the distance to
    instability.

    Parameters
    ----------
    system : DiagonalStateSpace
        With any leading batch axes.
    score : {"hankel", "hinf", "h2"}
        Hankel singular value, H∞ norm or H2 norm of each mode alone; inf for modes that are not
        stable. Where the output is a real part, the first two are upper bounds and H2 is exact.

    Returns
    -------
    (..., n) array
        One score per stored state, in the order of the eigenvalues.

    Raises
    ------
    ArgumentError
        If the score has another name.
    ArgumentTypeError
        If the system is not diagonal.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    Cost O(n (m + p)).

    References
    ----------
    LAST, arXiv 2411.02824, for the H∞ score; AIRE-Prune, arXiv 2602.00534, for the H2 score.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.reduction.selection import state_scores
    >>> system = DiagonalStateSpace([0.5, 0.0], [[3.0], [1.0]], [[1.0, 5.0]], time=Discrete())
    >>> state_scores(system, "hinf").tolist()
    [6.0, 5.0]
    """
    _check_diagonal(system, score)
    values = map_systems(system, lambda single: _scores(single, score))
    return np.asarray(in_batch_shape(values, system.batch_shape))


@any_library()
def select_states(
    system: DiagonalStateSpace, order: int | OrderRule, score: Score = "hankel"
) -> Reduction:
    """Keep the modes with the highest scores: ‖G - G_r‖∞ ≤ Σ of the H∞ norms of the others.

    Parameters
    ----------
    system : DiagonalStateSpace
        With any leading batch axes. Modes that are not stable are kept.
    order : int or OrderRule
        Number of stored states; own order or more returns the system unchanged. Rules take the
        scores for Hankel singular values (half the H∞ norms, which is what one mode has).
    score : {"hankel", "hinf", "h2"}
        See `state_scores`.

    Returns
    -------
    Reduction
        Kept states are those of `system`, in the same order and scaling.

    Raises
    ------
    OrderError, ArgumentError
        If the order is not positive or below the number of unstable states, the score has another
        name, or an `ErrorBound` is to be met with H2 scores, which bound no H∞ error.
    ArgumentTypeError
        If the system is not diagonal.
    ShapeError
        If a batch has no systems.

    Notes
    -----
    Cost O(n (m + p)). Modes are ranked one by one: the joint response of two with close
    poles counts in balanced truncation, and not in a selection.

    References
    ----------
    LAST, arXiv 2411.02824, for the H∞ score; AIRE-Prune, arXiv 2602.00534, for the H2 score.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> from ssmreduce.reduction.selection import select_states
    >>> system = DiagonalStateSpace([0.5, 0.0], [[3.0], [1.0]], [[1.0, 5.0]], time=Discrete())
    >>> reduction = select_states(system, 1, "hinf")
    >>> reduction.system.eigenvalues.tolist(), reduction.error_bound, reduction.verify()
    ([0.5], 5.0, 5.0)
    """
    _check_diagonal(system, score)
    rule = as_rule(order)
    if score == "h2" and isinstance(rule, ErrorBound):
        raise OrderError(
            '`score` is "h2" but `order` is an ErrorBound on the H-infinity error; expected a score '
            'that bounds it. Try score="hinf".'
        )
    singles = single_systems(system)
    ranked = map_systems(system, lambda single: np.sort(_scores(single, score))[::-1])
    unstable = [int(np.sum(np.isinf(values))) for values in ranked]
    stable = [values[count:] for values, count in zip(ranked, unstable, strict=True)]
    rules = divided(rule, stable, unstable)
    return assemble(system, map_parts(system, _select, singles, rules, [score] * len(singles)))


def subsystem(system: DiagonalStateSpace, kept: HostArray, *, keep_D: bool) -> DiagonalStateSpace:
    """Return the states at the indices `kept` as a system on the host, with D or without."""
    host = system.to_host()
    state = {"eigenvalues": host.eigenvalues[kept]}
    if host.log_eigenvalues is not None:
        state = {"log_eigenvalues": host.log_eigenvalues[kept]}
    D = host.D if keep_D else np.zeros_like(host.D)
    return host.replace(**state, B=host.B[kept], C=host.C[:, kept], D=D)


def embedding(system: DiagonalStateSpace, kept: HostArray) -> tuple[HostArray, SlotMap]:
    """Columns of the identity that belong to the stored states `kept`, and their way back to those.

    Where the output is real, a stored state h has the two real states [Re h; Im h] = 2 Re(v h), with
    v = [1; -i]/2.
    """
    n, r = system.order, kept.size
    identity = np.eye(r)
    if not system.real_output:
        poles = system.poles()[kept]
        columns = np.eye(n)[:, kept]
        return columns, SlotMap(poles, identity, identity, np.zeros(r, dtype=bool), 1.0)
    columns = np.eye(2 * n)[:, np.concatenate([kept, n + kept])]
    vectors = np.concatenate([0.5 * identity, -0.5j * identity])
    inverse = np.concatenate([identity, 1j * identity], axis=1)
    poles = system.poles()[kept].astype(np.complex128)
    return columns, SlotMap(poles, vectors, inverse, np.ones(r, dtype=bool), 1.0)


def stability_distance(system: DiagonalStateSpace) -> HostArray:
    """1 - |λ| or -Re λ of a system on the host; from the logarithms where they are known."""
    return np.asarray(system.time.distance(system.eigenvalues, system.log_eigenvalues))


def choose_modes(rule: OrderRule, scores: HostArray, score: Score, unstable: int) -> int:
    """Return how many modes `rule` keeps of those with descending `scores`, unstable ones first."""
    if isinstance(rule, FixedOrder):
        if rule.order < unstable:
            raise OrderError(
                f"`order` is {rule.order} but the system has {unstable} states that are not stable "
                f"and must be kept; expected at least {unstable}. Ask for that or more."
            )
        return rule.order
    stable = scores[unstable:]
    if stable.size == 0 or stable[0] == 0.0:
        return max(unstable, 1)
    # One mode has σ₁ = half its H∞ norm in continuous time, and more than half in discrete time: twice
    # the sum of what is left out bounds the error in either case.
    return unstable + rule.choose(stable / 2.0 if score == "hinf" else stable)


def _select(system: DiagonalStateSpace, rule: OrderRule, score: Score) -> Reduction:
    host = system.to_host()
    scores = _scores(host, score)
    ranking = np.argsort(-scores, kind="stable")
    unstable = int(np.sum(np.isinf(scores)))
    wanted = choose_modes(rule, scores[ranking], score, unstable)
    order = min(wanted, host.order)
    kept, removed = np.sort(ranking[:order]), ranking[order:]
    real = 2 if host.real_output else 1
    largest = scores[ranking[unstable]] if unstable < host.order else 0.0
    floor = host.order * np.finfo(np.float64).eps * largest
    columns, slot_map = embedding(host, kept)
    unchanged = order == host.order
    return Reduction(
        original=system,
        system=system if unchanged else subsystem(host, kept, keep_D=True),
        order=order,
        real_order=real * order,
        wanted_order=real * wanted,
        rank=int(np.sum(scores > floor)),
        hsv=np.zeros(0),
        error_bound=float(np.sum(_scores(host, "hinf")[removed])),
        left=None if unchanged else columns,
        right=None if unchanged else columns,
        slot_map=None if unchanged else slot_map,
        method="state selection",
        unstable=unstable,
        scores=scores[ranking],
    )


def _scores(system: DiagonalStateSpace, score: Score) -> HostArray:
    """Scores of the states of one system."""
    host = system.to_host()
    b, c = np.linalg.norm(host.B, axis=1), np.linalg.norm(host.C, axis=0)
    distance = stability_distance(host)
    decay = host.time.decay(distance)
    with np.errstate(divide="ignore", invalid="ignore"):
        if score == "h2":
            values = b * (c * np.sqrt(_mean_square(host, decay)))
        else:
            values = b * (c / (distance if score == "hinf" else decay))
    return np.where(distance > 0, values, np.inf)


def _mean_square(host: DiagonalStateSpace, decay: HostArray) -> HostArray:
    """Squared H2 norm of each mode over (‖c‖‖b‖)²: 1/decay, or for Re(c λᵏ b) the mean of

    1/decay and Re(γ β/(1 - λ²)), with β = Σ b²/‖b‖² and γ = Σ c²/‖c‖².
    """
    if not host.real_output:
        return np.asarray(1.0 / decay)
    poles, logs = host.eigenvalues, host.log_eigenvalues
    other = host.time.divisor(poles, poles, None if logs is None else (logs, logs))
    coherence = _coherence(host.B, axis=1) * _coherence(host.C, axis=0)
    return np.asarray(np.maximum(0.5 * (1.0 / decay + (coherence / other).real), 0.0))


def _coherence(vectors: HostArray, axis: int) -> HostArray:
    """Σ v²/‖v‖² of each row or column: 1 for real vectors."""
    norms = np.linalg.norm(vectors, axis=axis, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1.0)
    return np.asarray(np.sum(units**2, axis=axis))


def _check_diagonal(system: object, score: str) -> None:
    check_system(system)
    if not isinstance(system, DiagonalStateSpace):
        raise ArgumentTypeError(
            "`system` is a StateSpace; expected a DiagonalStateSpace, whose states are modes. "
            "Use modal_truncation, or diagonalise the system first."
        )
    if not is_one_of(score, get_args(Score)):
        names = ", ".join(f'"{name}"' for name in get_args(Score))
        raise ArgumentError(f"`score` is {shown(score)}; expected one of {names}.")
