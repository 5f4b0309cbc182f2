"""A reduced layer on its way out of PyTorch: a step in real arithmetic, and fewer bits."""

import copy

import torch
from s5 import S5

from ssmreduce import difference, hinf_norm, read_system, reduce_model


class Step(torch.nn.Module):
    """One step, in real arithmetic, of a system that is read after the update."""

    def __init__(self, system):
        super().__init__()
        for name, array in (
            ("poles", system.eigenvalues),
            ("B", system.B.T),
            ("C", system.C.T),
            ("D", system.D.T),
        ):
            values = torch.tensor(array.copy())
            self.register_buffer(f"{name}_re", values.real.float().contiguous())
            self.register_buffer(f"{name}_im", (values + 0j).imag.float().contiguous())

    def forward(self, inputs, state):
        """(B, m) inputs and (B, 2, n) states to (B, p) outputs and states; zero at first."""
        re, im = state.unbind(1)
        re, im = (
            self.poles_re * re - self.poles_im * im + inputs @ self.B_re,
            self.poles_re * im + self.poles_im * re + inputs @ self.B_im,
        )
        outputs = re @ self.C_re - im @ self.C_im + inputs @ self.D_re
        return outputs, torch.stack([re, im], dim=1)


def rounded(tensor, bits):
    """The tensor on a grid of 2 ** bits - 1 values."""
    if tensor.is_complex():
        return torch.complex(rounded(tensor.real, bits), rounded(tensor.imag, bits))
    scale = tensor.abs().max() / (2 ** (bits - 1) - 1)
    return scale * torch.round(tensor / scale)


def quantised(layer, names, bits):
    """A copy of the layer in which the named weights are rounded."""
    made = copy.deepcopy(layer)
    with torch.no_grad():
        for name in names:
            getattr(made, name).copy_(rounded(getattr(made, name), bits))
    return made


if __name__ == "__main__":
    torch.manual_seed(0)
    layer = S5(4, 32)
    reduce_model(layer, 8)
    step = Step(read_system(layer))
    inputs, state, outputs = torch.randn(3, 20, 4), torch.zeros(3, 2, 8), []
    for each in inputs.unbind(1):
        out, state = step(each, state)
        outputs.append(out)
    print("largest difference:", (torch.stack(outputs, 1) - layer(inputs)).abs().max().item())

    system = read_system(layer.seq)
    gain = hinf_norm(system).lower
    for bits in (16, 8):
        for names in (("B", "C"), ("Lambda", "log_step", "B", "C")):
            error = hinf_norm(difference(system, read_system(quantised(layer.seq, names, bits))))
            print(f"{bits:2} bits in {', '.join(names)}: {error.lower / gain:.2%} of the gain")
