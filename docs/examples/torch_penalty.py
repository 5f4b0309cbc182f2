"""An S5 layer of PyTorch trained with a penalty on the Hankel singular values of its system."""

import torch
from s5 import S5

from ssmreduce import DiagonalStateSpace, Discrete
from ssmreduce.regularizers import hankel_nuclear_norm


def system_of(layer: S5) -> DiagonalStateSpace:
    """Build the system of tensors, which record gradients; `read_system` would read NumPy arrays."""
    steps = layer.seq.log_step.exp()
    B, C = layer.seq.get_BC_tilde()
    _, B = layer.seq.discretize(layer.seq.Lambda, B, steps)
    return DiagonalStateSpace.from_log(
        layer.seq.Lambda * steps,
        B,
        C,
        torch.diag(layer.seq.D),
        time=Discrete(),
        real_output=True,
        read_after_update=True,
    )


torch.manual_seed(0)
layer = S5(4, 32)
optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
inputs = torch.randn(16, 64, 4)
for step in range(61):
    fit = torch.mean((layer(inputs) - inputs.cumsum(dim=1) / 8) ** 2)
    penalty = hankel_nuclear_norm(system_of(layer))
    loss = fit + 1e-3 * penalty
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 30 == 0:
        print(
            f"loss {float(loss.detach()):.3f} with a sum of values of {float(penalty.detach()):.2f}"
        )
