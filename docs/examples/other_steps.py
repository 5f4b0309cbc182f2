"""Errors of a reduced S5 layer at other steps and lengths than those of its cut."""

import copy

import numpy as np
import torch
from s5.init import make_DPLR_HiPPO
from s5.s5_model import S5SSM

from ssmreduce import CutOptions, difference, hinf_norm, read_system, reduce_layer
from ssmreduce.norms.horizon import finite_horizon_difference

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
LENGTHS = (50, 200, 800, 3200)


def layer(rule, most_radians, states=64, width=4):
    """A fresh layer; no pole turns by more than `most_radians` in one step."""
    torch.manual_seed(0)
    poles, _, _, vectors, _ = make_DPLR_HiPPO(states)
    vectors = torch.tensor(vectors, dtype=torch.complex64)
    poles = torch.tensor(poles, dtype=torch.complex64)
    made = S5SSM(
        poles, vectors, vectors.mH, width, states, 1e-3, 1e-1, discretization=rule, bcInit="dense"
    )
    with torch.no_grad():
        most = np.log(most_radians) - torch.log(poles.imag.abs())
        made.log_step.copy_(torch.minimum(made.log_step, most))
    return made


def turned(scale_of_second=1e-3):
    """A layer with two states: one turns by 6.6 radians a step, the other hardly matters."""
    made = layer("zoh", 3.0, states=2, width=1)
    with torch.no_grad():
        made.Lambda.copy_(torch.tensor([-0.05 + 6.6j, -0.1 + 1.0j]))
        made.log_step.zero_()
        made.B.copy_(torch.tensor([[[1.0, 0.0]], [[scale_of_second, 0.0]]]))
        made.C.copy_(torch.tensor([[1.0 + 0.0j, scale_of_second + 0.0j]]))
    return made


def scaled(made, scale):
    """The system of the layer with ``step_scale=scale``."""
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.log_step += float(np.log(scale))
    return read_system(other)


def errors_by_step(made, order):
    """The bound of a cut, and the error of the cut layer at each step."""
    cut = reduce_layer(copy.deepcopy(made), order)
    gaps = [difference(scaled(made, scale), scaled(cut.layer, scale)) for scale in SCALES]
    return cut.error_bound, [hinf_norm(gap).lower for gap in gaps]


def errors_by_length(made, order, horizon):
    """The bound, and the gain of the error over sequences of each length."""
    cut = reduce_layer(copy.deepcopy(made), order, options=CutOptions(horizon=horizon))
    full, reduced = read_system(made), read_system(cut.layer)
    errors = [finite_horizon_difference(full, reduced, length) for length in LENGTHS]
    return cut.error_bound, errors


if __name__ == "__main__":
    print("step_scale" + "".join(f"{scale:9.2f}" for scale in SCALES))
    for name, made, order in (
        ("bilinear", layer("bilinear", 3.0), 16),
        ("zoh", layer("zoh", 3.0), 16),
        ("zoh, turned by more than half a turn", turned(), 1),
    ):
        bound, errors = errors_by_step(made, order)
        numbers = "".join(f"{error:9.3g}" for error in errors)
        print(f"{name}: bound {bound:.3g}, errors {numbers}")
    print("length    " + "".join(f"{length:9}" for length in LENGTHS))
    for horizon in (None, 200):
        bound, errors = errors_by_length(layer("zoh", 3.0), 16, horizon)
        shown = "none" if bound is None else f"{bound:.3g}"
        print(f"horizon {horizon}: bound {shown}, errors {''.join(f'{e:9.3g}' for e in errors)}")
