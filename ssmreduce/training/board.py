"""Scalars for TensorBoard, through a writer that the user brings: nothing is imported here.

Any object with ``add_scalar(tag, value, step)`` will do, such as torch's ``SummaryWriter``.
"""

from __future__ import annotations

from typing import Any

from ssmreduce.training.trace import HankelTrace
from ssmreduce.training.tracking import ReductionEvent


def write_event(writer: Any, event: ReductionEvent) -> None:
    """Write a cut under ``ssmreduce/<layer>/``; once undone, the old order and the step of that cut."""
    if event.rolled_back is not None:
        _write(
            writer,
            event.layer,
            event.rolled_back,
            order=event.old_order,
            rolled_back=event.step,
        )
        return
    _write(
        writer,
        event.layer,
        event.step,
        order=event.new_order,
        measured_error=event.measured_error,
        error_bound=event.error_bound,
        seconds=event.seconds,
        output_error=event.output_error,
        loss_before=event.loss_before,
        loss_after=event.loss_after,
        unmatched_loss=event.unmatched_loss,
        constant_loss=event.constant_loss,
    )


def write_trace(writer: Any, trace: HankelTrace) -> None:
    """Write the latest record of each layer, and how its ranking agrees with the one before."""
    for layer in trace.layers:
        latest = trace.of_layer(layer)[-1]
        previous = trace.agreement(layer)[-2:-1]
        _write(
            writer,
            layer,
            latest.step,
            order=latest.shares.shape[-1],
            hsv_sum=float(latest.hsv.sum()),
            hsv_largest=float(latest.hsv.max()),
            data_hsv_sum=None if latest.data_hsv is None else float(latest.data_hsv.sum()),
            data_hsv_largest=None if latest.data_hsv is None else float(latest.data_hsv.max()),
            states_kept=latest.kept(trace.share).size,
            overlap=previous[0].overlap if previous else None,
            rank_correlation=previous[0].rank_correlation if previous else None,
        )


def _write(writer: Any, layer: str, step: int, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None:
            writer.add_scalar(f"ssmreduce/{layer}/{name}", value, step)
