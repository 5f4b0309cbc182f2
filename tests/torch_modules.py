"""PyTorch modules with the parameter names and formulas of state-spaces/s4, which is no package."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

TRANSFORMS: dict[str, Any] = {
    "none": lambda x: x,
    "exp": torch.exp,
    "relu": lambda x: torch.relu(x) + 1e-4,
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
}


def convolve(kernel: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Causal convolution over the last axis, (..., L) with (B, ..., L), by a triangular matrix."""
    length = inputs.shape[-1]
    lag = torch.arange(length)[:, None] - torch.arange(length)
    matrix = torch.where(lag >= 0, kernel[..., lag.clamp(min=0)], torch.zeros(()).to(kernel))
    return torch.einsum("...ts,b...s->b...t", matrix, inputs)


class S4DKernel(nn.Module):
    """The minimal S4D kernel; with ``lr=0.0`` poles and steps are buffers, as there."""

    def __init__(self, channels: int, states: int, lr: float | None = None) -> None:
        super().__init__()
        spread = math.log(0.1) - math.log(0.001)
        self.C = nn.Parameter(torch.randn(channels, states // 2, 2))
        frequencies = math.pi * torch.arange(states // 2).repeat(channels, 1).float()
        self._register("log_dt", torch.rand(channels) * spread + math.log(0.001), lr)
        self._register("log_A_real", torch.log(0.5 * torch.ones(channels, states // 2)), lr)
        self._register("A_imag", frequencies, lr)

    def _register(self, name: str, value: torch.Tensor, lr: float | None) -> None:
        if lr == 0.0:
            self.register_buffer(name, value)
            return
        parameter = nn.Parameter(value)
        parameter._optim = {"weight_decay": 0.0} if lr is None else {"weight_decay": 0.0, "lr": lr}
        self.register_parameter(name, parameter)

    def forward(self, length: int) -> torch.Tensor:
        """The kernel, (H, L)."""
        step = torch.exp(self.log_dt)[:, None]
        poles = -torch.exp(self.log_A_real) + 1j * self.A_imag
        C = torch.view_as_complex(self.C) * (torch.exp(poles * step) - 1) / poles
        times = torch.arange(length, dtype=step.dtype)
        powers = torch.exp((poles * step)[..., None] * times)
        return 2 * torch.einsum("hn,hnl->hl", C, powers).real


class S4D(nn.Module):
    """The block around the kernel: a feedthrough, an activation and a mix of channels; (B, H, L)."""

    def __init__(self, channels: int, states: int, lr: float | None = None) -> None:
        super().__init__()
        self.n = states
        self.kernel = S4DKernel(channels, states, lr)
        self.D = nn.Parameter(torch.randn(channels))
        self.output_linear = nn.Conv1d(channels, channels, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (B, H, L) to (B, H, L)."""
        hidden = convolve(self.kernel(inputs.shape[-1]), inputs) + inputs * self.D[:, None]
        return self.output_linear(nn.functional.gelu(hidden))


class SSMKernelDiag(nn.Module):
    """The diagonal kernel of the full repository, with its options and attributes."""

    def __init__(
        self,
        channels: int,
        states: int,
        *,
        heads: int = 1,
        disc: str = "zoh",
        real_transform: str = "exp",
        imag_transform: str = "none",
        dt_transform: str = "exp",
        dt_fast: bool = False,
        dt_tie: bool = True,
        is_real: bool = False,
        n_ssm: int | None = None,
        bandlimit: float | None = None,
    ) -> None:
        super().__init__()
        copies, half = n_ssm or channels, states // 2
        self.N, self.H, self.channels, self.disc = half, channels, heads, disc
        self.real_transform, self.imag_transform = real_transform, imag_transform
        self.dt_transform, self.dt_fast = dt_transform, dt_fast
        self.is_real, self.bandlimit = is_real, bandlimit
        self.C = nn.Parameter(torch.randn(heads, channels, half, 2))
        self.B = nn.Parameter(torch.randn(1, copies, half, 2))
        self.A_real = nn.Parameter(0.5 * torch.rand(copies, half) - 0.7)
        if not is_real:
            self.A_imag = nn.Parameter(0.1 + torch.rand(copies, half) + torch.arange(half))
        step = -1.5 - torch.rand(channels, 1 if dt_tie else half)
        self.inv_dt = nn.Parameter(step)

    def forward(self, length: int) -> torch.Tensor:
        """The kernel, (heads, H, L)."""
        inv_dt = torch.sinh(self.inv_dt) if self.dt_fast else self.inv_dt
        step = TRANSFORMS[self.dt_transform](inv_dt)
        imag = TRANSFORMS[self.imag_transform](self.A_imag)
        poles = -TRANSFORMS[self.real_transform](self.A_real) - 1j * imag
        C = torch.view_as_complex(self.B) * torch.view_as_complex(self.C)
        if self.disc == "zoh":
            C, log_pole = C * (torch.exp(poles * step) - 1) / poles, poles * step
        else:
            C = C * step / (1 - poles * step / 2)
            log_pole = torch.log((1 + poles * step / 2) / (1 - poles * step / 2))
        times = torch.arange(length, dtype=step.dtype)
        return 2 * torch.einsum("chn,hnl->chl", C, torch.exp(log_pole[..., None] * times)).real

    def setup_step(self) -> None:
        """Cache something of the size of the state."""
        self.dA = torch.zeros(self.H, self.N)


class SSMKernelDPLR(SSMKernelDiag):
    """The kernel of S4: diagonal plus low rank, bilinear, with C made C~ of the longest call so far."""

    def __init__(self, channels: int, states: int, *, rank: int = 1, **options: Any) -> None:
        super().__init__(channels, states, **options)
        self.P = nn.Parameter(0.4 * torch.randn(rank, channels, states // 2, 2))
        self.register_buffer("l_kernel", torch.tensor(0))

    def _matrices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the discrete systems with all conjugate states, (H, N, N) and (H, N)."""
        real = TRANSFORMS[self.real_transform](self.A_real)
        half = -real - 1j * TRANSFORMS[self.imag_transform](self.A_imag)
        step = TRANSFORMS[self.dt_transform](self.inv_dt).expand(half.shape).repeat(1, 2)[..., None]
        low, B = torch.view_as_complex(self.P), torch.view_as_complex(self.B)[0]
        low, B = torch.cat([low, low.conj()], -1), torch.cat([B, B.conj()], -1)
        A = torch.diag_embed(torch.cat([half, half.conj()], -1))
        A = A - torch.einsum("rhm,rhn->hmn", low, low.conj())
        identity = torch.eye(A.shape[-1], dtype=A.dtype)
        backward = torch.linalg.inv(identity - step / 2 * A)
        return backward @ (identity + step / 2 * A), (backward @ (step * B[..., None]))[..., 0]

    @torch.no_grad()
    def _lengthen(self, A: torch.Tensor, length: int) -> None:
        """Make C the C~ of a length, or C~ that of twice its own."""
        own = self.l_kernel.item()
        C = torch.view_as_complex(self.C)
        C = torch.cat([C, C.conj()], -1)
        rest = torch.einsum("chn,hnm->chm", C, torch.matrix_power(A, own or length))
        C = C + rest if own else C - rest
        self.C.copy_(torch.view_as_real(C[..., : self.N]))
        self.l_kernel = self.l_kernel + (own or length)

    def forward(self, length: int) -> torch.Tensor:
        """The kernel, (heads, H, L)."""
        A, B = self._matrices()
        while self.l_kernel.item() < length:
            self._lengthen(A, length)
        C = torch.view_as_complex(self.C)
        remaining = torch.eye(A.shape[-1], dtype=A.dtype) - torch.matrix_power(
            A, self.l_kernel.item()
        )
        C = torch.einsum("chn,hnm->chm", torch.cat([C, C.conj()], -1), torch.linalg.inv(remaining))
        terms, state = [], B
        for _ in range(length):
            terms.append(torch.einsum("chn,hn->ch", C, state).real)
            state = torch.einsum("hmn,hn->hm", A, state)
        return torch.stack(terms, -1)


def hippo_legs(kernel: SSMKernelDPLR) -> SSMKernelDPLR:
    """The kernel with the state matrix -tril(√(2i+1) √(2j+1), -1) - diag(i+1) with which S4 begins."""
    count = 2 * kernel.N
    root, P = np.sqrt(2.0 * np.arange(count) + 1.0), np.sqrt(np.arange(count) + 0.5)
    A = -np.tril(np.outer(root, root), -1) - np.diag(np.arange(count) + 1.0)
    rates, V = np.linalg.eigh(-1j * (A + np.outer(P, P) + 0.5 * np.eye(count)))
    rates, V = rates[kernel.N :], V[:, kernel.N :]
    with torch.no_grad():
        for held, value in ((kernel.P, V.conj().T @ P), (kernel.B, V.conj().T @ root)):
            held.copy_(torch.tensor(np.stack([value.real, value.imag], axis=-1)))
        kernel.A_real.fill_(math.log(0.5))
        kernel.A_imag.copy_(torch.tensor(-rates))
    return kernel


class LrnnxS5(nn.Module):
    """S5 with the parameters of lrnnx: a real input matrix, a full feedthrough applied to rows."""

    def __init__(self, width: int, states: int, rule: str = "zoh") -> None:
        super().__init__()
        self.d_state = self.state_dim = states
        real, imag = torch.rand(states) - 1.0, math.pi * torch.arange(states) / 2
        self.A = nn.Parameter(torch.stack([real, imag], -1))
        self.log_dt = nn.Parameter(torch.linspace(math.log(0.05), math.log(0.5), states))
        self.B = nn.Parameter(torch.randn(states, width))
        self.C = nn.Parameter(torch.randn(width, states, 2))
        self.D = nn.Parameter(torch.randn(width, width))
        self.discretize_fn = {"zoh": zoh, "dirac": dirac, "bilinear": bilinear}[rule]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (L, H) to (L, H)."""
        poles = torch.complex(-nn.functional.softplus(self.A[:, 0]), self.A[:, 1])
        poles, factor = self.discretize_fn(poles, torch.exp(self.log_dt))
        state, outputs = torch.zeros_like(poles), []
        for sample in inputs:
            state = poles * state + factor * (self.B @ sample)
            outputs.append((torch.view_as_complex(self.C) @ state).real + sample @ self.D)
        return torch.stack(outputs)


def zoh(poles: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Zero-order hold."""
    discrete = torch.exp(poles * step)
    return discrete, (discrete - 1) / poles


def dirac(poles: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Impulses."""
    return torch.exp(poles * step), 1.0


def bilinear(poles: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """The rule of lrnnx, whose sign makes stable poles unstable."""
    scale = 1 / (1 + poles * step / 2)
    return scale * (1 - poles * step / 2), scale * step


class LrnnxLRU(nn.Module):
    """LRU with the parameters of lrnnx: real and imaginary parts apart, D elementwise."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.d_model, self.d_state = width, states
        self.nu_log = nn.Parameter(torch.log(0.05 + 0.5 * torch.rand(states)))
        self.theta_log = nn.Parameter(torch.log(6.28 * torch.rand(states)))
        self.gamma_log = nn.Parameter(-torch.rand(states))
        for name, shape in {"B": (states, width), "C": (width, states)}.items():
            for part in ("re", "im"):
                setattr(self, f"{name}_{part}", nn.Parameter(torch.randn(shape) / width))
        self.D = nn.Parameter(torch.randn(width))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (L, H) to (L, H)."""
        poles = torch.exp(-torch.exp(self.nu_log) + 1j * torch.exp(self.theta_log))
        B = torch.exp(self.gamma_log)[:, None] * torch.complex(self.B_re, self.B_im)
        state, outputs = torch.zeros_like(poles), []
        for sample in inputs:
            state = poles * state + B @ sample.to(B.dtype)
            outputs.append((torch.complex(self.C_re, self.C_im) @ state).real + sample * self.D)
        return torch.stack(outputs)
