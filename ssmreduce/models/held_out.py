"""What a cut does to the loss on sequences that were held out, beside what a constant prediction loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from ssmreduce._array_routes import warn_caller
from ssmreduce.errors import CalibrationWarning, CutRefusedError, NonFiniteError
from ssmreduce.frameworks.handle import LayerChange, Path
from ssmreduce.frameworks.transaction import commit
from ssmreduce.layers.cut import LayerCut
from ssmreduce.models.calibration import Calibration
from ssmreduce.models.choice import LossAtCut
from ssmreduce.models.cut import Results, really_cut
from ssmreduce.models.report import LayerReduction
from ssmreduce.models.runs import HeldOutLoss
from ssmreduce.models.search import Layers

AboveChance = Literal["warn", "match", "refuse"]
"""What to do about a cut after which a model is no better than a constant prediction."""


def with_losses(found: Layers, results: Results, data: Calibration | None) -> Results:
    """The results with the loss just before and just after; as they are where none can be had.

    Raises
    ------
    NonFiniteError
        If the loss is NaN or Inf.
    """
    cuts = really_cut(results)
    held_out = None if data is None or data.runs is None else data.runs.held_out_loss
    if held_out is None or not cuts:
        return results
    losses = _losses(found, cuts, held_out)
    return {
        path: replace(each, losses=losses) if path in cuts else each
        for path, each in results.items()
    }


def _losses(found: Layers, cuts: Mapping[Path, LayerCut], held_out: HeldOutLoss) -> LossAtCut:
    framework = found.framework
    uncut = found.of(framework.scratch(framework.plain(found.model)))
    before, constant = held_out.of(uncut), held_out.of_constant(uncut)
    after = held_out.of(cut_copy(found, cuts))
    for name, value in (("before", before), ("after", after)):
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the loss on batches that were held out is {value} just {name} the cut; expected a finite "
                "number. Look at the batches, and at the loss of each."
            )
    return LossAtCut(before, after, constant)


def losses_in(results: Mapping[Any, LayerReduction]) -> LossAtCut | None:
    """What the results say about the loss."""
    return next((each.losses for each in results.values() if each.losses is not None), None)


def cut_copy(found: Layers, cuts: Mapping[Path, LayerCut]) -> Layers:
    """The layers of a copy of a model, without wrappers, after some cuts."""
    framework = found.framework
    copy = found.of(framework.scratch(framework.plain(found.model)))
    changes = [
        LayerChange(there, cut.new_weights, cut.new_order / cut.old_order, cut)
        for here, there in zip(found.meant, copy.meant, strict=True)
        if (cut := cuts.get(here.path)) is not None
    ]
    ready = framework.prepared(copy.model, changes, None, {})
    commit(ready.steps)
    return found.of(ready.model)


def warn_at_chance(losses: LossAtCut | None) -> None:
    """Warn where a model is no better than a constant prediction, before a cut or after it."""
    if losses is None or losses.constant is None or losses.after < losses.constant:
        return
    before, after = f"{losses.before:.4g}", f"{losses.after:.4g}"
    if losses.before < losses.constant:
        found = f"the cut takes the loss on what was held out from {before} to {after}"
        advice = "Keep more states."
    else:
        found = f"the model is at chance when it is cut: its loss on what was held out is {before}"
        advice = "Cut later in training."
    warn_caller(
        f"{found}, and a constant prediction has {losses.constant:.4g}; expected less. {advice}",
        CalibrationWarning,
    )


def check_losses(losses: LossAtCut | None, above_chance: AboveChance, at_cut: float | None) -> None:
    """Raise unless a cut keeps to what a policy says about the loss.

    Raises
    ------
    CutRefusedError
        If the loss after it is no less than that of a constant prediction, and that is refused, or more than
        before by over `at_cut`, or if no loss is known where one decides.
    """
    if losses is None:
        if above_chance != "warn" or at_cut is not None:
            raise CutRefusedError(
                "no loss on what was held out is known, by which the cut is to be judged; expected `data` "
                "with a loss and two batches at least, and no FSDP2. Calibrate with loss=..."
            )
        return
    if at_cut is not None and losses.after - losses.before > at_cut:
        raise CutRefusedError(
            f"the cut takes the loss on what was held out from {losses.before:.4g} to {losses.after:.4g}; "
            f"expected at most {at_cut:g} more, `at_cut` of the policy. Keep more states."
        )
    if above_chance == "warn":
        return
    if losses.constant is None:
        raise CutRefusedError(
            "the loss of a constant prediction, by which the cut is to be judged, cannot be had; expected a "
            "module around the layers on whose output the loss depends, given several sequences. Leave "
            "`above_chance` out."
        )
    if above_chance == "refuse" and not losses.after < losses.constant:
        raise CutRefusedError(
            f"the loss on what was held out is {losses.before:.4g} before the cut and {losses.after:.4g} "
            f"after it, and a constant prediction has {losses.constant:.4g}; expected less. Cut later in "
            "training, or keep more states."
        )
