"""`DiagonalStateSpace`: a system with diagonal state matrix, as state-space layers store it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import array_api_compat
import numpy as np

from ssmreduce import _checks
from ssmreduce._array_libraries import (
    DOUBLES,
    Array,
    HostArray,
    product_of,
    refuted,
    to_double,
    to_host,
)
from ssmreduce._array_routes import any_library
from ssmreduce._workers import naming_system
from ssmreduce.errors import ArgumentError, ArgumentTypeError, ShapeError, TimeDomainError
from ssmreduce.systems.pytree import register_pytree, unchecked
from ssmreduce.systems.real_form import apply_real_state, real_ports, real_state
from ssmreduce.systems.state_space import (
    StateSpace,
    check_index,
    checked_arrays,
    checked_margin,
    finite_gain,
    no_steady_gain,
    system_line,
)
from ssmreduce.time_domain import (
    Discrete,
    TimeDomain,
    check_time,
)

_OTHER_ARGUMENTS = ("B", "C", "D", "time", "real_output", "read_after_update")
"""Arguments of the constructors besides the poles or their logarithms."""


@dataclass(frozen=True, eq=False, repr=False)
class DiagonalStateSpace:
    """Diagonal system h[k+1] = diag(λ) h[k] + B u[k], y[k] = C h[k] + D u[k] (or h' = diag(λ) h + B
    u).

    With ``real_output`` the output is y = Re(C h) + D u, and the input-output map is that of a
    *real* system with the 2n states [Re h; Im h]. That real system is what Gramians, Hankel
    singular values and reductions of such a `DiagonalStateSpace` refer to.

    Parameters
    ----------
    eigenvalues : (..., n) array
        λ, real or complex, of any array library; none for a static gain.
    B : (..., n, m) array
        Input matrix.
    C : (..., p, n) array
        Output matrix.
    D : (..., p, m) array, optional
        Feedthrough; zero if left out, or given as the number 0; real where the output is.
    time : Continuous or Discrete
        Time domain, required.
    real_output : bool
        Whether the output is Re(C h) + D u. For a layer with 2 Re(C h), double C.
    read_after_update : bool
        Whether the output reads the state after its update (every LRU, S4D and S5 does).

    Raises
    ------
    ShapeError
        If sizes do not fit together, or D is complex and the output real.
    NonFiniteError
        If an array holds NaN or Inf.
    TimeDomainError
        If `time` is not a time domain.
    ArgumentError
        If `real_output` or `read_after_update` is not a bool.

    Notes
    -----
    `from_log` keeps log λ. Where |λ| = 1 - η with a tiny η, the Gramian entry b bᴴ/(1 - |λ|²) has a
    relative error of eps/η when 1 - |λ|² comes from a stored λ; from the logarithm it has none.

    References
    ----------
    Orvieto et al., Resurrecting Recurrent Neural Networks for Long Sequences, ICML 2023.

    Examples
    --------
    >>> from ssmreduce import DiagonalStateSpace, Discrete
    >>> system = DiagonalStateSpace(
    ...     [0.9 + 0.1j, 0.5], [[1.0], [1.0]], [[1.0, 2.0]], time=Discrete(), real_output=True
    ... )
    >>> system.order, system.to_dense().order
    (2, 4)
    """

    eigenvalues: Array
    B: Array
    C: Array
    D: Array = None
    _: KW_ONLY
    time: TimeDomain
    real_output: bool = False
    read_after_update: bool = False
    log_eigenvalues: Array = field(init=False, default=None)

    state_field: ClassVar[str] = "eigenvalues"
    """Name of the field of the state array.

    :meta private:
    """

    def __post_init__(self) -> None:
        real = _checks.flag(self.real_output, "real_output")
        given = {"eigenvalues": self.eigenvalues, "B": self.B, "C": self.C, "D": self.D}
        eigenvalues, B, C, D = checked_arrays(given, 1, real=real)
        after = _checks.flag(self.read_after_update, "read_after_update")
        check_time(self.time, read_after_update=after)
        xp = array_api_compat.array_namespace(D)
        if real and xp.isdtype(D.dtype, "complex floating"):
            raise ShapeError(
                f"`D` has dtype {D.dtype} but `real_output` is True; expected a real dtype. "
                "Pass D.real."
            )
        vars(self).update(eigenvalues=eigenvalues, B=B, C=C, D=D)
        vars(self).update(real_output=real, read_after_update=after)
        register_pytree(type(self))

    def __repr__(self) -> str:
        return system_line(self)

    @classmethod
    def from_log(
        cls,
        log_eigenvalues: Array,
        B: Array,
        C: Array,
        D: Array = None,
        *,
        time: Discrete,
        real_output: bool = False,
        read_after_update: bool = False,
    ) -> DiagonalStateSpace:
        """Build a discrete system from log λ, which is kept and used for every 1 - λ_i conj(λ_j).

        Parameters
        ----------
        log_eigenvalues : (..., n) array
            log λ, for an LRU -exp(nu_log) + i exp(theta_log).
        B : (..., n, m) array
            As in the constructor.
        C : (..., p, n) array
            As in the constructor.
        D : (..., p, m) array, optional
            As in the constructor.
        time : Discrete
            Time domain, required.
        real_output, read_after_update : bool
            As in the constructor.

        Returns
        -------
        DiagonalStateSpace
            With eigenvalues exp(log_eigenvalues).

        Raises
        ------
        TimeDomainError
            If `time` is continuous.
        ShapeError, NonFiniteError, ArgumentError
            As the constructor.

        Examples
        --------
        >>> import numpy as np
        >>> from ssmreduce import DiagonalStateSpace, Discrete, controllability_gramian
        >>> system = DiagonalStateSpace.from_log(
        ...     np.array([-1e-13]), [[1.0]], [[1.0]], time=Discrete()
        ... )
        >>> bool(abs(controllability_gramian(system)[0, 0] * 2e-13 - 1) < 1e-12)
        True
        """
        if not isinstance(time, Discrete):
            check_time(time)
            raise TimeDomainError(
                f"`time` is {_checks.shown(time)}; expected Discrete(): the logarithm of a pole belongs to "
                "discrete time. Use the constructor for continuous systems."
            )
        logarithms = _checks.floating_arrays({"log_eigenvalues": log_eigenvalues}, [1])[0]
        xp = array_api_compat.array_namespace(logarithms)
        with np.errstate(over="ignore"):  # the constructor refuses what is not finite
            eigenvalues = xp.exp(logarithms)
        system = cls(
            eigenvalues,
            B,
            C,
            D,
            time=time,
            real_output=real_output,
            read_after_update=read_after_update,
        )
        object.__setattr__(system, "log_eigenvalues", logarithms)
        return system

    def replace(self, **changes: Any) -> DiagonalStateSpace:
        """Return the system with some arguments of the constructor changed, checked as there.

        Logarithms are kept unless `eigenvalues` are given.

        Parameters
        ----------
        **changes : Any
            New arguments by name; ``log_eigenvalues`` as in `from_log`.

        Raises
        ------
        ArgumentError
            If `eigenvalues` and `log_eigenvalues` are both given, or logarithms are None.
        TimeDomainError
            If logarithms are kept or given, and time is continuous.
        """
        fields = {name: getattr(self, name) for name in _OTHER_ARGUMENTS} | changes
        if "eigenvalues" in changes:
            if "log_eigenvalues" in changes:
                raise ArgumentError(
                    "`eigenvalues` and `log_eigenvalues` are both given; expected one of them. Leave out "
                    "`eigenvalues`, which are exp(log_eigenvalues)."
                )
            return DiagonalStateSpace(**fields)
        if self.log_eigenvalues is not None and "time" in changes:
            fields.setdefault("log_eigenvalues", self.log_eigenvalues)
        if "log_eigenvalues" in fields:
            _check_logarithms(fields["log_eigenvalues"], fields["time"])
            return DiagonalStateSpace.from_log(**fields)
        system = DiagonalStateSpace(self.eigenvalues, **fields)
        vars(system)["log_eigenvalues"] = self.log_eigenvalues
        return system

    @property
    def order(self) -> int:
        """Number of stored states n."""
        return int(self.eigenvalues.shape[-1])

    @property
    def real_order(self) -> int:
        """Number of states of Gramians: 2n where the output is real, those of [Re h; Im h]."""
        return 2 * self.order if self.real_output else self.order

    @property
    def inputs(self) -> int:
        """Number of inputs m."""
        return int(self.B.shape[-1])

    @property
    def outputs(self) -> int:
        """Number of outputs p."""
        return int(self.C.shape[-2])

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes; () for a single system."""
        return tuple(self.eigenvalues.shape[:-1])

    @any_library()
    def poles(self) -> HostArray:
        """Stored eigenvalues λ, shape (..., n)."""
        return to_host(self.eigenvalues)

    @any_library()
    def is_stable(self, margin: float = 0.0) -> HostArray:
        """Whether all poles have |z| < 1 - margin (or Re s < -margin), shape (...).

        Where logarithms are kept they decide, so that |z| = 1 - 1e-20 is stable.

        Parameters
        ----------
        margin : float
            Distance from the stability boundary that is asked for; a negative one widens the
            region.

        Returns
        -------
        (...) bool array
            One for each system of a batch.

        Raises
        ------
        ArgumentError
            If `margin` is not a finite number.
        """
        margin = checked_margin(margin)
        logarithms = None if self.log_eigenvalues is None else to_double(self.log_eigenvalues)
        inside = self.time.inside(to_host(self.eigenvalues), margin, logarithms)
        stable: HostArray = np.all(inside, axis=-1)
        return stable

    @any_library()
    def dc_gain(self) -> HostArray:
        """Gain for constant inputs, D + C (z - Λ)⁻¹ B at z = 1 (or s = 0), shape (..., p, m).

        Real, with the real part of the second term, where the output is. States without input or
        without output do not count.

        Raises
        ------
        UnstableSystemError
            If a pole lies at that point: an integrator has no such gain.
        """
        host = self.to_host()
        if host.log_eigenvalues is None:
            distance = self.time.steady_point - host.eigenvalues
        else:
            distance = -np.expm1(host.log_eigenvalues)
        at_point = distance == 0.0
        used = np.any(host.B != 0.0, axis=-1) & np.any(host.C != 0.0, axis=-2)
        hidden = np.sum(at_point & used, axis=-1)
        for at in map(tuple, np.argwhere(hidden).tolist()):
            with naming_system(at):
                raise no_steady_gain(self.time, f"{hidden[at]} states")
        with np.errstate(over="ignore", invalid="ignore"):
            gain = (host.C / np.where(at_point, 1.0, distance)[..., None, :]) @ host.B
            return finite_gain(np.asarray(host.D + (gain.real if self.real_output else gain)))

    def ports(self) -> tuple[HostArray, HostArray]:
        """B and C, host arrays, for the states of Gramians, [Re h; Im h] where the output is real.

        :meta private:
        """
        if self.real_output:
            return real_ports(self.B, self.C)
        return self.B, self.C

    def applied(self, X: HostArray) -> HostArray:
        """Return A X for states `X` of Gramians, shape (..., n, k) or (..., 2n, k).

        :meta private:
        """
        if self.real_output:
            return apply_real_state(self.eigenvalues, X)
        return np.asarray(self.eigenvalues[..., :, None] * X)

    def to_host(self) -> DiagonalStateSpace:
        """Return the same system in NumPy arrays at double precision; itself if it is that already."""
        arrays = (self.eigenvalues, self.B, self.C, self.D)
        if all(type(x) is np.ndarray and x.dtype in DOUBLES for x in arrays):
            return self
        logarithms = None if self.log_eigenvalues is None else to_double(self.log_eigenvalues)
        poles = to_double(self.eigenvalues) if logarithms is None else np.exp(logarithms)
        B, C, D = map(to_double, (self.B, self.C, self.D))
        return unchecked(self, eigenvalues=poles, B=B, C=C, D=D, log_eigenvalues=logarithms)

    @any_library()
    def to_dense(self) -> StateSpace:
        """Return the dense system: of order 2n and real where the output is real, else of order n."""
        host = self.to_host()
        if self.real_output:
            A = real_state(host.eigenvalues)
        else:
            n = self.order
            A = np.zeros((*self.batch_shape, n, n), dtype=host.eigenvalues.dtype)
            A[..., range(n), range(n)] = host.eigenvalues
        B, C = host.ports()
        return StateSpace(A, B, C, host.D, time=self.time, read_after_update=self.read_after_update)

    def to_standard(self) -> DiagonalStateSpace:
        """Return the same map read before the update: (λ, B, C Λ, D + C B, real part if real)."""
        if not self.read_after_update:
            return self
        xp = array_api_compat.array_namespace(self.C)
        first = product_of(self.C, self.B)
        if self.real_output and xp.isdtype(first.dtype, "complex floating"):
            first = xp.real(first)
        C = self.C * self.eigenvalues[..., None, :]
        return self.replace(C=C, D=self.D + first, read_after_update=False)

    def rescaled(self, scale: HostArray) -> DiagonalStateSpace:
        """Return the same map with each stored state multiplied by a number: B by `scale`, C by its
        inverse.

        Parameters
        ----------
        scale : (..., n) array
            Nowhere zero.

        Returns
        -------
        DiagonalStateSpace
            With the same eigenvalues.

        Raises
        ------
        ShapeError
            If `scale` has another shape than the eigenvalues, or a zero.
        NonFiniteError
            If `scale` holds NaN or Inf.
        """
        scale = _checks.floating_array(scale, "scale", 1)
        if scale.shape != self.eigenvalues.shape or refuted(scale != 0.0):
            raise ShapeError(
                f"`scale` has shape {tuple(scale.shape)}; expected {tuple(self.eigenvalues.shape)}, one "
                "number other than zero for each stored state."
            )
        return unchecked(self, B=self.B * scale[..., :, None], C=self.C / scale[..., None, :])

    def __getitem__(self, index: Any) -> DiagonalStateSpace:
        """Return one system of a batch, or what a slice or an index array selects."""
        check_index(index, self.batch_shape)
        at = index if isinstance(index, tuple) else (index,)
        if len(at) > len(self.batch_shape):
            raise ShapeError(
                f"`system` has batch axes {self.batch_shape} but is indexed by {at}; expected at most "
                f"{len(self.batch_shape)} indices. For a subset of states use select_states."
            )
        logarithms = None if self.log_eigenvalues is None else self.log_eigenvalues[(*at, ...)]
        poles, B, C, D = (x[(*at, ...)] for x in (self.eigenvalues, self.B, self.C, self.D))
        return unchecked(self, eigenvalues=poles, B=B, C=C, D=D, log_eigenvalues=logarithms)


def _check_logarithms(logarithms: Array, time: object) -> None:
    """Refuse what `replace` cannot make of logarithms of poles."""
    if logarithms is None:
        raise ArgumentError(
            "`log_eigenvalues` is None; expected an array. Give `eigenvalues` instead: logarithms are then "
            "not kept."
        )
    if not isinstance(check_time(time), Discrete):
        raise TimeDomainError(
            f"`time` is {time} but logarithms of poles are kept or given; expected Discrete(). Give "
            "`eigenvalues` of continuous time instead, or call to_continuous(system)."
        )


System = StateSpace | DiagonalStateSpace


def is_complex(system: System) -> bool:
    """Tell whether the map of `system` is complex: not for real outputs, nor for real arrays."""
    if system.real_output:
        return False
    host = system.to_host()
    state = host.eigenvalues if isinstance(host, DiagonalStateSpace) else host.A
    return any(np.iscomplexobj(x) for x in (state, host.B, host.C, host.D))


def check_single(system: System) -> None:
    """Raise unless `system` is a system without batch axes: `ArgumentTypeError`, `ShapeError`."""
    batch = check_system(system)
    if batch:
        raise ShapeError(
            f"`system` has batch axes {batch}; expected a single system. Index it first: system[0]."
        )


def check_system(system: object, name: str = "system") -> tuple[int, ...]:
    """Return the batch axes; raise `ArgumentTypeError`, a TypeError, unless `system` is a system."""
    if not isinstance(system, StateSpace | DiagonalStateSpace):
        raise ArgumentTypeError(
            f"`{name}` is a {_checks.type_name(system)}; expected a "
            "StateSpace or a DiagonalStateSpace. Build one from arrays, with read_system(layer), or with "
            "from_control, from_scipy or from_pymor of ssmreduce.adapters."
        )
    batch = system.batch_shape
    if 0 in batch:
        raise ShapeError(
            f"`{name}` has batch axes {batch} and so no entries; expected at least one "
            "system. Look at how the batch was selected."
        )
    return batch
