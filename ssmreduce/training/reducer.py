"""`InTrainingReducer`: shrink the layers of a model between two steps of any training loop."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from ssmreduce._checks import fraction, positive_horizon
from ssmreduce.adapters.registry import find_layers, model_backend
from ssmreduce.errors import OrderError, SSMReduceError
from ssmreduce.models.mode_scaling import ModeScaling, check_mode_scaling
from ssmreduce.models.optimizer_state import Moments, check_moments
from ssmreduce.models.reduce import (
    apply_reductions,
    check_ready,
    layer_orders,
    reduce_named_layer,
)
from ssmreduce.models.report import LayerReduction
from ssmreduce.reduction.order import HankelEnergy, HankelMass, OrderRule, as_rule
from ssmreduce.training.schedule import ReductionSchedule
from ssmreduce.training.tracking import ReductionEvent


class InTrainingReducer:
    """Cuts layers when the schedule says so and the cut is worth it.

    Parameters
    ----------
    schedule : ReductionSchedule
        When attempts are due.
    order : int or OrderRule
        Order per attempt and layer; by default `HankelMass(0.96)`, which is τ = 0.04.
    gate : float
        A layer is cut only if its new order is below this share of the old one: every new shape
        costs a compilation.
    moments : {"carry", "reset", "slice"}
        What becomes of the optimizer's moments; see `ssmreduce.models.optimizer_state`.
    horizon : int, optional
        Sequence length to balance for; see `balance`.
    mode_scaling : {"layer", "balanced"}
        Size of each new state; see `ssmreduce.models.mode_scaling`.

    Attributes
    ----------
    events : list of ReductionEvent
        One for every cut of a layer so far.

    Raises
    ------
    OrderError
        If an argument is out of range.

    Notes
    -----
    In JAX model and optimizer state are pytrees that are replaced; in PyTorch model and optimizer are
    changed in place, after everything that can fail. A cut that fails leaves both as they were and
    warns. A compiled step function compiles once for the new shapes.

    Examples
    --------
    >>> import equinox as eqx, numpy as np, optax
    >>> from ssmreduce import HankelMass, InTrainingReducer, ReductionSchedule
    >>> from ssmreduce.demo.lru import LRU
    >>> model = LRU(32, 4, rng=np.random.default_rng(0))
    >>> opt_state = optax.adam(1e-3).init(eqx.filter(model, eqx.is_inexact_array))
    >>> reducer = InTrainingReducer(ReductionSchedule(40), order=HankelMass(0.9))
    >>> for step in range(1, 41):
    ...     # ... one update of model and opt_state ...
    ...     model, opt_state = reducer.step(step, model, opt_state)
    >>> first, last = reducer.events[0], reducer.events[-1]
    >>> first.step, first.old_order, last.new_order == model.nu_log.size < 32
    (1, 32, True)
    """

    def __init__(
        self,
        schedule: ReductionSchedule,
        order: int | OrderRule | None = None,
        *,
        gate: float = 0.95,
        moments: Moments = "carry",
        horizon: int | None = None,
        mode_scaling: ModeScaling = "layer",
    ) -> None:
        check_moments(moments)
        check_mode_scaling(mode_scaling)
        if not isinstance(schedule, ReductionSchedule):
            raise OrderError(
                f"`schedule` is {schedule!r}; expected a ReductionSchedule. "
                "Try ReductionSchedule(total_steps)."
            )
        self.schedule = schedule
        self.order = HankelMass(0.96) if order is None else as_rule(order)
        self.gate = fraction(gate, "gate")
        self.moments: Moments = moments
        self.mode_scaling: ModeScaling = mode_scaling
        self.horizon = positive_horizon(horizon)
        self.events: list[ReductionEvent] = []

    def step(self, step: int, model: Any, opt_state: Any) -> tuple[Any, Any]:
        """Cut what is due after update number `step` (the first is 1).

        Parameters
        ----------
        step : int
            Number of updates done.
        model : torch.nn.Module or pytree
            Model with supported layers.
        opt_state : torch.optim.Optimizer or pytree
            Its optimizer, or its optax state.

        Returns
        -------
        tuple
            Model and optimizer state: the same objects if nothing was cut.

        Raises
        ------
        UnsupportedLayerError
            If an attempt is due and the model holds no supported layer.

        Warns
        -----
        UserWarning
            If a cut failed; model and optimizer state are returned as they were.
        """
        if not self.schedule.due(step):
            return model, opt_state
        layers = find_layers(model)
        name_of = model_backend(model).path_name
        accepted: dict[tuple[Any, ...], LayerReduction] = {}
        events: list[ReductionEvent] = []
        try:
            check_ready(model, layers)
            orders = layer_orders([layer for _, layer in layers], self.order, self.horizon)
            for (path, layer), order in zip(layers, orders, strict=True):
                started = time.perf_counter()
                result = reduce_named_layer(
                    name_of(path), layer, order, self.horizon, mode_scaling=self.mode_scaling
                )
                if result.new_order < self.gate * result.old_order:
                    accepted[path] = result
                    events.append(self._event(step, name_of(path), result, started))
            model, opt_state, _ = apply_reductions(model, opt_state, accepted, self.moments)
        except SSMReduceError as error:
            warnings.warn(
                f"no cut after step {step}; model and optimizer state are as they were: {error}",
                stacklevel=2,
            )
            return model, opt_state
        self.events += events
        return model, opt_state

    def _event(
        self, step: int, name: str, result: LayerReduction, started: float
    ) -> ReductionEvent:
        reduction = result.reduction
        tau = 1.0 - self.order.share if isinstance(self.order, HankelMass | HankelEnergy) else None
        return ReductionEvent(
            step=step,
            layer=name,
            old_order=result.old_order,
            new_order=result.new_order,
            real_order=int(np.max(reduction.real_order)),
            hsv=reduction.hsv,
            tau=tau,
            error_bound=result.error_bound,
            measured_error=result.measured_error,
            seconds=time.perf_counter() - started,
            poles_before=reduction.original.poles(),
            poles_after=reduction.system.poles(),
        )
