"""The page of known layers and the code: its tables are what is recognised, its formulas what is put out.

Arrays are drawn in the shapes of the tables of docs/layers.rst. The recursions below are written from the
equations of that page alone.
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ssmreduce.layers.known import KNOWN, kind_of
from ssmreduce.layers.linoss import LinOSS
from ssmreduce.layers.lru import LRU
from ssmreduce.layers.mamba import Mamba
from ssmreduce.layers.mamba2 import Mamba2
from ssmreduce.layers.s4 import S4
from ssmreduce.layers.s4d import S4D, S4Diagonal
from ssmreduce.layers.s5 import S5
from ssmreduce.layers.s5_jax import S5HalfSpectrum
from ssmreduce.layers.s5_real_input import S5RealInput

Array = NDArray[Any]
Weights = dict[str, Array]

PAGE = (Path(__file__).parents[2] / "docs/layers.rst").read_text(encoding="utf-8")
SIZES = {"n": 5, "2n": 10, "m": 2, "p": 2, "H": 3, "c": 2, "R": 2, "1": 1, "2": 2}
LENGTH = 12

# --- The tables


def table(name: str) -> dict[str, tuple[list[str], str]]:
    """The shapes of each array, and how it is stored, by the table of that name."""
    block = re.search(rf"\n   :name: {name}\n\n((?:   .*\n|\n)+)", PAGE)
    assert block is not None, name
    rows = {}
    for row in block[1].split("   * - ")[2:]:
        arrays, shapes, stored = re.split(r"\n     - ", row.strip(), maxsplit=2)
        for array in re.findall(r"``(\w+)``", arrays):
            rows[array] = re.findall(r"``\((.*?)\)``", shapes), stored
    return rows


def shape(text: str, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[each.strip()] for each in text.split(",") if each.strip())


@dataclass
class Case:
    """Tables of a layer, the variant of it, and its outputs by the page."""

    kind: type
    tables: tuple[str, ...]
    output: Callable[..., Array]
    options: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    """Arrays in the second of their shapes."""
    values: dict[str, Any] = field(default_factory=dict)
    inputs: str = "m"

    def shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
        rows = {name: row for each in self.tables for name, row in table(each).items()}
        chosen = {name: texts[name in self.second] for name, (texts, _) in rows.items()}
        return {
            name: shape(text, sizes) for name, text in chosen.items() if name not in self.without
        }

    def weights(self, rng: np.random.Generator) -> Weights:
        rows = {name: row for each in self.tables for name, row in table(each).items()}
        drawn = {}
        for name, each in self.shapes(SIZES).items():
            value = rng.uniform(-1.0, 1.0, each)
            if rows[name][1].startswith("complex"):
                value = value + 1j * rng.uniform(-1.0, 1.0, each)
            drawn[name] = value
        return drawn | {name: np.asarray(value) for name, value in self.values.items()}

    def layer(self) -> SimpleNamespace:
        return SimpleNamespace(**self.options)


def function(name: str) -> Callable[[], None]:
    """A function with a name, as layers keep their rule."""

    def rule() -> None: ...

    rule.__name__ = name
    return rule


# --- The equations


def states(poles: Array, driven: Array) -> Array:
    """h[k] = λ h[k-1] + driven[k]."""
    h, found = np.zeros_like(driven[0], dtype=complex), []
    for each in driven:
        h = poles * h + each
        found.append(h)
    return np.array(found)


def discrete(rule: str, poles: Array, step: Array) -> tuple[Array, Array]:
    if rule == "zoh":
        return np.exp(poles * step), (np.exp(poles * step) - 1) / poles
    return (1 + poles * step / 2) / (1 - poles * step / 2), step / (1 - poles * step / 2)


def pair(array: Array) -> Array:
    return array[..., 0] + 1j * array[..., 1]


def softplus(x: Array) -> Array:
    return np.log(1 + np.exp(x))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def direct(D: Array, u: Array) -> Array:
    return u * D if D.ndim == 1 else u @ D.T


def lru(w: Weights, u: Array) -> Array:
    poles = np.exp(-np.exp(w["nu_log"]) + 1j * np.exp(w["theta_log"]))
    B = w["B"] if "B" in w else w["B_re"] + 1j * w["B_im"]
    C = w["C"] if "C" in w else w["C_re"] + 1j * w["C_im"]
    h = states(poles, np.exp(w["gamma_log"]) * (u @ B.T))
    return (h @ C.T).real + direct(w["D"], u)


def both_ways(poles: Array, driven: Array, C: Array) -> Array:
    """C [h; h'], h' from the end."""
    backward = states(poles, driven[::-1])[::-1]
    return np.concatenate([states(poles, driven), backward], axis=1) @ C.T


def s5_torch(w: Weights, u: Array, rule: str, bidirectional: bool = False) -> Array:
    poles, s = discrete(rule, w["Lambda"], np.exp(w["log_step"]))
    driven = s * (u @ pair(w["B"].astype(np.float32).astype(float)).T)
    run = both_ways if bidirectional else (lambda poles, driven, C: states(poles, driven) @ C.T)
    return run(poles, driven, w["C"]).real + direct(w["D"], u)


def s5_jax(
    w: Weights,
    u: Array,
    rule: str = "zoh",
    factor: float = 2,
    clip: bool = False,
    rescale: float = 1.0,
) -> Array:
    real = np.minimum(w["Lambda_re"], -1e-4) if clip else w["Lambda_re"]
    step = rescale * np.exp(w["log_step"][:, 0])
    poles, s = discrete(rule, real + 1j * w["Lambda_im"], step)
    driven = s * (u @ pair(w["B"]).T)
    C = pair(w["C"]) if "C" in w else np.concatenate([pair(w["C1"]), pair(w["C2"])], axis=1)
    if C.shape[1] == 2 * len(poles):
        return factor * both_ways(poles, driven, C).real + direct(w["D"], u)
    return factor * (states(poles, driven) @ C.T).real + direct(w["D"], u)


def s5_lrnnx(w: Weights, u: Array, rule: str) -> Array:
    poles = -softplus(w["A"][:, 0]) + 1j * w["A"][:, 1]
    step = np.exp(w["log_dt"])
    s = (np.exp(poles * step) - 1) / poles if rule == "zoh" else 1.0
    h = states(np.exp(poles * step), s * (u @ w["B"].T))
    return (h @ pair(w["C"]).T).real + u @ w["D"]


def s4d(w: Weights, u: Array) -> Array:
    log_real = w["log_A_real"] if "log_A_real" in w else w["log_a_real"]
    C = pair(w["C"]) if w["C"].ndim == 3 else w["C"]
    poles, s = discrete("zoh", -np.exp(log_real) + 1j * w["A_imag"], np.exp(w["log_dt"])[:, None])
    kernel = np.array([2 * np.sum(C * s * poles**k, axis=-1).real for k in range(len(u))])
    return np.array([sum(kernel[j] * u[k - j] for j in range(k + 1)) for k in range(len(u))])


TRANSFORMS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "exp": np.exp,
    "relu": lambda x: np.maximum(x, 0) + 1e-4,
    "sigmoid": sigmoid,
    "softplus": softplus,
}


def kernel_parts(w: Weights, real: str, imag: str, dt: str, fast: bool) -> tuple[Array, Array]:
    inv_dt = np.sinh(w["inv_dt"]) if fast else w["inv_dt"]
    poles = -TRANSFORMS[real](w["A_real"]) - 1j * TRANSFORMS[imag](w["A_imag"])
    return poles, TRANSFORMS[dt](inv_dt)


def s4_diagonal(
    w: Weights,
    u: Array,
    rule: str,
    real: str = "exp",
    imag: str = "none",
    dt: str = "exp",
    fast: bool = False,
) -> Array:
    poles, s = discrete(rule, *kernel_parts(w, real, imag, dt, fast))
    h = states(poles, u[:, :, None] * s * pair(w["B"])[0])
    return 2 * np.einsum("chn,lhn->lhc", pair(w["C"]), h).real.reshape(len(u), -1)


def s4(w: Weights, u: Array) -> Array:
    poles, step = kernel_parts(w, "exp", "none", "exp", False)
    step = np.broadcast_to(step, poles.shape)
    P, b, C = pair(w["P"]), pair(w["B"])[0], pair(w["C"])
    L, outputs = int(w["l_kernel"]), []
    for channel in range(len(poles)):
        p = np.concatenate([P[:, channel], P[:, channel].conj()], axis=-1)
        A = np.diag(np.concatenate([poles[channel], poles[channel].conj()]))
        A = A - sum(np.outer(each, each.conj()) for each in p)
        theta, one = np.diag(np.tile(step[channel], 2)), np.eye(len(A))
        backward = np.linalg.inv(one - theta @ A / 2)
        A_d = backward @ (one + theta @ A / 2)
        b_d = backward @ theta @ np.concatenate([b[channel], b[channel].conj()])
        c = np.concatenate([C[:, channel], C[:, channel].conj()], axis=-1)
        if L:
            c = c @ np.linalg.inv(one - np.linalg.matrix_power(A_d, L))
        x, found = np.zeros(len(A), complex), []
        for each in u[:, channel]:
            x = A_d @ x + b_d * each
            found.append(c @ x)
        outputs.append(np.array(found))
    stacked = np.stack(outputs, axis=1)
    assert np.allclose(stacked.imag, 0)
    return stacked.real.reshape(len(u), -1)


def linoss(w: Weights, u: Array, rule: str) -> Array:
    step, A = sigmoid(w["steps"]), np.maximum(w["A_diag"], 0)
    S = 1 / (1 + step**2 * A) if rule == "IM" else np.ones_like(A)
    if "G_diag" in w:
        G = np.maximum(w["G_diag"], 0)
        S, root = 1 / (1 + step * G), 2 * np.sqrt(1 + step * G)
        A = np.clip(A, (2 + step * G - root) / step**2, (2 + step * G + root) / step**2)
    z, x, found = np.zeros(len(A), complex), np.zeros(len(A), complex), []
    for each in u:
        z = S * (z + step * (pair(w["B"]) @ each - A * x))
        x = x + step * z
        found.append((pair(w["C"]) @ x).real)
    return np.array(found) + w["D"] * u


def torch_s5(rule: str, bidirectional: bool) -> Case:
    return Case(
        S5,
        ("s5-torch",),
        lambda w, u: s5_torch(w, u, rule, bidirectional),
        {"discretize": function(f"discretize_{rule}"), "bidir": bidirectional},
        second=("C",) * bidirectional,
    )


JAX: dict[str, Any] = {"conj_sym": True, "discretization": "zoh"}
ONE, TWO = ("C1", "C2"), ("C",)

CASES = {
    "LRU": Case(LRU, ("lru-parts",), lru),
    "LRU, D a matrix": Case(LRU, ("lru-parts",), lru, second=("D",)),
    "LRU, complex": Case(LRU, ("lru-complex",), lru),
    **{
        f"S5 {rule}{', both ways' * both}": torch_s5(rule, both)
        for rule in ("zoh", "bilinear")
        for both in (False, True)
    },
    "S5 of JAX": Case(S5HalfSpectrum, ("s5-jax",), s5_jax, JAX, ONE),
    "S5 of JAX, whole": Case(
        S5HalfSpectrum,
        ("s5-jax",),
        lambda w, u: s5_jax(w, u, factor=1),
        JAX | {"conj_sym": False},
        ONE,
    ),
    "S5 of JAX, options": Case(
        S5HalfSpectrum,
        ("s5-jax",),
        lambda w, u: s5_jax(w, u, "bilinear", clip=True, rescale=1.5),
        JAX | {"discretization": "bilinear", "clip_eigs": True, "step_rescale": 1.5},
        ONE,
    ),
    "S5 of JAX, both ways": Case(
        S5HalfSpectrum, ("s5-jax",), s5_jax, JAX | {"bidirectional": True}, ONE, ("C",)
    ),
    "S5 of JAX, two arrays": Case(S5HalfSpectrum, ("s5-jax",), s5_jax, JAX, TWO),
    **{
        f"S5 of lrnnx, {rule}": Case(
            S5RealInput,
            ("s5-lrnnx",),
            lambda w, u, rule=rule: s5_lrnnx(w, u, rule),
            {"discretize_fn": function(rule)},
        )
        for rule in ("zoh", "dirac")
    },
    "S4D": Case(S4D, ("s4d-pairs",), s4d, inputs="H"),
    "S4D of discretax": Case(S4D, ("s4d-complex",), s4d, inputs="H"),
    "S4 diagonal": Case(
        S4Diagonal,
        ("s4-diagonal",),
        lambda w, u: s4_diagonal(w, u, "zoh"),
        {"disc": "zoh"},
        inputs="H",
    ),
    "S4 diagonal, options": Case(
        S4Diagonal,
        ("s4-diagonal",),
        lambda w, u: s4_diagonal(w, u, "bilinear", "relu", "sigmoid", "softplus", True),
        {
            "disc": "bilinear",
            "real_transform": "relu",
            "imag_transform": "sigmoid",
            "dt_transform": "softplus",
            "dt_fast": True,
        },
        second=("inv_dt",),
        inputs="H",
    ),
    **{
        f"S4, l_kernel {length}{', own steps' * len(second)}": Case(
            S4,
            ("s4-diagonal", "s4"),
            s4,
            {"real_transform": "exp"},
            second=second,
            values={"l_kernel": length},
            inputs="H",
        )
        for length in (0, 7)
        for second in ((), ("inv_dt",))
    },
    **{
        f"LinOSS {rule}{', damped' * damped}": Case(
            LinOSS,
            ("linoss",),
            lambda w, u, rule=rule: linoss(w, u, rule),
            {"discretization": rule, "damping": damped},
            () if damped else ("G_diag",),
        )
        for rule, damped in (("IM", False), ("IMEX", False), ("IMEX", True))
    },
}


# --- Page and code


@pytest.mark.parametrize("name", CASES)
def test_arrays_of_the_page_are_recognised_and_run_by_its_formulas(
    rng: np.random.Generator, name: str
) -> None:
    case = CASES[name]
    weights, inputs = case.weights(rng), rng.standard_normal((LENGTH, SIZES[case.inputs]))
    kind = kind_of(case.layer(), {name: value.ndim for name, value in weights.items()})
    assert kind is not None
    assert type(kind) is case.kind
    assert {*kind.shapes} == weights.keys()
    found, expected = kind.output(weights, inputs[None])[0], case.output(weights, inputs)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-11 * np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
def test_a_cut_writes_shapes_with_fewer_states(rng: np.random.Generator, name: str) -> None:
    case = CASES[name]
    weights = case.weights(rng)
    kind = kind_of(case.layer(), {name: value.ndim for name, value in weights.items()})
    assert kind is not None
    after = weights | kind.resized(weights, 3)
    expected = case.shapes(SIZES | {"n": 3, "2n": 6})
    assert {name: value.shape for name, value in after.items()} == expected


def test_the_page_has_every_kind_and_every_option() -> None:
    assert {case.kind for case in CASES.values()} == {*KNOWN} - {Mamba, Mamba2}
    for case in CASES.values():
        assert all(f"``{option}" in PAGE for option in case.options)
        assert f"`layers.{case.kind.__module__.split('.')[-1]}.{case.kind.__name__}`" in PAGE
    for kind in KNOWN:
        assert f"``{kind.known_by}``" in PAGE


def test_every_table_of_arrays_is_tested() -> None:
    tested = {name for case in CASES.values() for name in case.tables}
    assert tested == set(re.findall(r"\n   :name: (\S+)", PAGE))


def test_the_example_of_the_page() -> None:
    example = doctest.DocTestParser().get_doctest(PAGE, {}, "layers.rst", "docs/layers.rst", 0)
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
