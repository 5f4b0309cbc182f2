"""LinOSS layers in models: cut, trained on, undone, followed, streamed and loaded."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from modules import ForeignLinOSS, KernelLRU, make_lru
from samples import linoss_weights, lru_weights
from torch import nn

from ssmreduce import (
    CutOptions,
    ErrorBound,
    HankelEnergy,
    HankelMass,
    HankelTrace,
    InTrainingReducer,
    MeasuredError,
    ReductionSchedule,
    RollbackPolicy,
    TotalBudget,
    hinf_norm,
    load_reduced,
    read_system,
    reduce_layer,
    reduce_model,
    shaped_like,
    simulate,
    sweep,
    write_system,
)
from ssmreduce.errors import (
    NonFiniteError,
    OrderError,
    UnreachableToleranceError,
    UnstableSystemError,
    UnsupportedLayerError,
)
from ssmreduce.layers.linoss import LinOSS

N, WIDTH, LENGTH = 16, 3, 40


class Exact:
    """Storage at double precision."""

    eps = float(np.finfo(np.float64).eps)

    def rounded(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the values themselves."""
        return dict(values)


def arrays(seed: int = 0, n: int = N, damped: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {
        "A_diag": rng.uniform(0.05, 3.0, n),
        "steps": 0.5 * rng.standard_normal(n),
        "B": rng.standard_normal((n, WIDTH, 2)) / np.sqrt(n),
        "C": rng.standard_normal((WIDTH, n, 2)) / np.sqrt(n) * np.logspace(0, -3, n)[:, None],
        "D": rng.standard_normal(WIDTH),
    }
    return weights | ({"G_diag": rng.uniform(0.05, 0.4, n)} if damped else {})


def linoss(seed: int = 0, n: int = N, rule: str = "IMEX", damped: bool = True) -> ForeignLinOSS:
    weights = {name: jnp.asarray(x, "float32") for name, x in arrays(seed, n, damped).items()}
    return ForeignLinOSS(**({"G_diag": None} | weights), discretization=rule, damping=damped)


def lru(n: int = N) -> Any:
    return make_lru(lru_weights(np.random.default_rng(9), n, WIDTH), kind=KernelLRU)


class Net(eqx.Module):
    """An LRU, then a LinOSS."""

    lru: Any
    linoss: ForeignLinOSS

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map (L, m) to (L, m)."""
        return self.linoss(jnp.tanh(self.lru(inputs)))


def net() -> Net:
    return Net(lru(), linoss())


def parameters(model: Any) -> Any:
    return eqx.filter(model, eqx.is_inexact_array)


def batch() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return tuple(jnp.asarray(rng.standard_normal((LENGTH, WIDTH)), "float32") for _ in range(2))


def loss_of(model: Any) -> jax.Array:
    inputs, targets = batch()
    return jnp.mean((model(inputs) - targets) ** 2)


OPTIMIZER = optax.adam(3e-3)


@eqx.filter_jit
def update(model: Any, state: Any) -> Any:
    loss, gradients = eqx.filter_value_and_grad(loss_of)(model)
    updates, state = OPTIMIZER.update(gradients, state, parameters(model))
    return eqx.apply_updates(model, updates), state, loss


def trained(model: Any, state: Any, steps: int) -> tuple[Any, Any, float]:
    loss = 0.0
    for _ in range(steps):
        model, state, loss = update(model, state)
    return model, state, float(loss)


def same(one: Any, other: Any) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


# --- Cuts


@pytest.mark.parametrize("rule", [HankelMass(0.9), HankelEnergy(0.9), MeasuredError(0.1), 5])
def test_rules_choose_among_oscillators(rule: Any) -> None:
    layer = linoss()
    result = reduce_layer(layer, rule)
    assert 1 <= result.new_order < N
    assert result.layer.A_diag.shape == result.layer.G_diag.shape == (result.new_order,)
    assert result.layer.C.shape == (WIDTH, result.new_order, 2)
    assert result.error_bound is None
    own, new = read_system(layer), read_system(result.layer)
    assert new.order == 2 * result.new_order
    inputs = np.asarray(batch()[0], float)
    gap = np.linalg.norm(simulate(own, inputs) - simulate(new, inputs)) / np.linalg.norm(inputs)
    assert result.measured_error > 0.0
    if isinstance(rule, MeasuredError):  # of the gain without D, and from below
        assert gap <= 0.11 * hinf_norm(own).upper
    if rule == 5:
        assert result.new_order == 5


@pytest.mark.parametrize(
    ("kind", "seed", "n", "share"),
    [(("IM", False), 14, 8, 0.5), (("IMEX", True), 50, 32, 0.8), (("IMEX", True), 58, 32, 0.9)],
)
def test_a_share_of_the_energy_is_kept_where_scores_do_not_descend(
    kind: tuple[Any, bool], seed: int, n: int, share: float
) -> None:
    layer, weights, options = (
        LinOSS(*kind),
        linoss_weights(kind[1], n, seed=seed),
        CutOptions(horizon=75),
    )
    _, scores = layer.ranking(weights, 75)
    assert np.any(np.diff(scores) > 0.0)
    cut = layer.plan(weights, HankelEnergy(share), options, Exact())
    assert np.sum(scores[: cut.new_order] ** 2) >= share * np.sum(scores**2)
    assert layer.plan(weights, 4, options, Exact()).new_order == 4


def test_a_measured_error_is_that_of_the_written_layer() -> None:
    layer = linoss()
    result = reduce_layer(layer, 6)
    found = result.reduction.verify()
    assert float(getattr(found, "lower", found)) == pytest.approx(result.measured_error, rel=0.1)


def test_an_error_bound_is_refused() -> None:
    with pytest.raises(UnreachableToleranceError, match=r"no bound.*MeasuredError"):
        reduce_layer(linoss(), ErrorBound(relative=0.1))


def test_a_layer_without_damping_needs_a_horizon() -> None:
    layer = linoss(damped=False)
    with pytest.raises(UnstableSystemError, match=r"CutOptions\(horizon=L\)"):
        reduce_layer(layer, 4)
    result = reduce_layer(layer, 4, options=CutOptions(horizon=LENGTH))
    assert result.new_order == 4
    implicit = reduce_layer(linoss(rule="IM", damped=False), 4)
    assert implicit.new_order == 4


def test_orders_of_a_model() -> None:
    model = {"a": linoss(0), "b": linoss(1), "c": linoss(2, n=3)}
    report = reduce_model(model, TotalBudget(12)).report
    assert sum(part.new_order for part in report.values()) == 12
    report = reduce_model(model, HankelMass(0.8), options=CutOptions(multiple_of=4)).report
    assert all(part.new_order in (3, 4, 8, 12, 16) for part in report.values())
    report = reduce_model(model, HankelMass(0.8), options=CutOptions(uniform=True)).report
    assert len({part.new_order for part in report.values() if part.old_order == N}) == 1


def test_a_budget_over_an_lru_and_a_linoss() -> None:
    report = reduce_model(net(), TotalBudget(12)).report
    assert list(report) == ["lru", "linoss"]
    assert sum(part.new_order for part in report.values()) <= 12
    assert report["lru"].error_bound is not None
    assert report["linoss"].error_bound is None


def test_one_oscillator_and_one_of_a_layer_without_output() -> None:
    single = reduce_layer(linoss(n=1), 1)
    assert single.new_order == 1
    assert single.measured_error == 0.0
    assert same(parameters(single.layer), parameters(linoss(n=1)))
    layer = linoss()
    silent = eqx.tree_at(lambda tree: tree.C, layer, jnp.zeros_like(layer.C))
    for rule in (4, HankelMass(0.9), MeasuredError(0.1)):
        with pytest.raises(OrderError, match="puts out nothing"):
            reduce_layer(silent, rule)


def test_weights_that_are_not_finite_are_refused() -> None:
    layer = linoss()
    broken = eqx.tree_at(lambda tree: tree.steps, layer, layer.steps.at[2].set(jnp.nan))
    with pytest.raises(NonFiniteError, match="`steps`"):
        reduce_model({"a": broken}, 4)


def test_no_system_can_be_written() -> None:
    layer = linoss()
    with pytest.raises(UnsupportedLayerError, match=r"cannot hold any system.*reduce_layer"):
        write_system(layer, read_system(layer))


def test_a_sweep_and_a_trace() -> None:
    layer = linoss()
    table = sweep(layer, [4, 8, 12])
    assert [row.order for row in table.rows] == [4, 8, 12]
    for row in table.rows:
        assert row.measured_error >= 0.99 * reduce_layer(layer, row.order).measured_error
    trace = HankelTrace(1)
    trace.step(1, {"a": layer})
    trace.step(2, {"a": layer})
    (name,) = trace.layers
    assert trace.settled(name) is not None
    assert trace.of_layer(name)[0].hsv.shape == (N,)
    assert np.all(np.diff(trace.of_layer(name)[0].hsv) <= 0.0)


# --- Training


@pytest.mark.slow
def test_training_goes_on_after_a_cut() -> None:
    model = net()
    state = OPTIMIZER.init(parameters(model))
    model, state, before = trained(model, state, 60)
    assert np.any(model.linoss.G_diag < 0.0)  # damping that training has taken away
    options = CutOptions(horizon=LENGTH)
    result = reduce_model(model, {"lru": 12, "linoss": 12}, opt_state=state, options=options)
    assert result.model.linoss.A_diag.shape == (12,)
    kept = np.isin(np.asarray(model.linoss.steps), np.asarray(result.model.linoss.steps))
    assert kept.sum() == 12
    old, new = state[0], result.optimizer_state[0]
    np.testing.assert_array_equal(new.mu.linoss.A_diag, old.mu.linoss.A_diag[kept])
    np.testing.assert_array_equal(new.nu.linoss.C, old.nu.linoss.C[:, kept])
    assert new.count == old.count
    at_cut = float(loss_of(result.model))
    assert abs(at_cut - before) <= 0.1 * before
    _, _, after = trained(result.model, result.optimizer_state, 60)
    assert after < at_cut


@pytest.mark.slow
def test_a_cut_is_undone_where_the_metric_falls() -> None:
    model = net()
    state = OPTIMIZER.init(parameters(model))
    model, state, _ = trained(model, state, 4)
    reducer = InTrainingReducer(ReductionSchedule.at(5), 3, rollback=RollbackPolicy(0.1))
    reducer.report(1.0)
    cut, cut_state = reducer.step(5, model, state)
    assert cut.linoss.A_diag.shape == cut_state[0].mu.linoss.A_diag.shape == (3,)
    cut, cut_state, _ = trained(cut, cut_state, 1)
    reducer.report(5.0)
    back, back_state = reducer.step(6, cut, cut_state)
    assert reducer.events[-1].rolled_back
    assert same(parameters(back), parameters(model))
    assert same(back_state, state)


def test_an_average_follows() -> None:
    model, other = net(), jax.tree.map(lambda x: x * 1.02 if eqx.is_array(x) else x, net())
    average = jax.tree.map(lambda a, b: (a + b) / 2 if eqx.is_array(a) else a, model, other)
    result = reduce_model({"": model}, {"[''].linoss": 6}, followers=[{"": other}, {"": average}])
    cut, moved, middle = (
        each[""].linoss for each in (result.model, *(f.model for f in result.followers))
    )
    for name in ("A_diag", "G_diag", "steps", "B"):
        half = (getattr(cut, name) + getattr(moved, name)) / 2
        np.testing.assert_allclose(getattr(middle, name), half, rtol=1e-5)
    half = (cut.C + moved.C) / 2  # refitted for poles half way, so up to the square of the distance
    assert np.abs(middle.C - half).max() <= 0.02 * np.abs(half).max()


# --- Streams and files


def test_a_stream_goes_on(rng: np.random.Generator) -> None:
    layer = linoss()
    result = reduce_layer(layer, 6)
    state = rng.standard_normal((2, 2 * N)) + 1j * rng.standard_normal((2, 2 * N))
    kept = np.flatnonzero(np.isin(layer.steps, result.layer.steps))
    expected = np.concatenate([state[:, kept], state[:, kept + N]], axis=1)
    np.testing.assert_array_equal(result.reduce_state(state), expected)


def test_a_fresh_model_gets_the_shapes() -> None:
    result = reduce_model(net(), {"linoss": 5})
    shapes = jax.tree.map(jnp.shape, parameters(result.model))
    for saved in (result.report.to_dict(), parameters(result.model)):
        assert jax.tree.map(jnp.shape, parameters(shaped_like(net(), saved))) == shapes


class TorchLinOSS(nn.Module):
    """The arrays of the authors' layer, damped."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.state_dim = N
        for name, value in arrays(seed).items():
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=torch.float32)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (L, m) to (L, m)."""
        step, damping = torch.sigmoid(self.steps), torch.relu(self.G_diag)
        root = 2.0 * torch.sqrt(1.0 + step * damping)
        low, high = ((2.0 + step * damping + sign * root) / step**2 for sign in (-1, 1))
        stiffness = torch.minimum(torch.maximum(self.A_diag, low), high)
        factor = 1.0 / (1.0 + step * damping)
        driven = inputs.to(torch.complex64) @ torch.view_as_complex(self.B).T
        C = torch.view_as_complex(self.C.contiguous())
        speed = place = torch.zeros(len(step), dtype=torch.complex64)
        outputs = []
        for force, sample in zip(driven, inputs, strict=True):
            speed = factor * (speed + step * (force - stiffness * place))
            place = place + step * speed
            outputs.append((C @ place).real + self.D * sample)
        return torch.stack(outputs)


def test_a_torch_module_with_the_same_arrays() -> None:
    model = nn.Sequential(TorchLinOSS())
    inputs, targets = (torch.tensor(np.asarray(x)) for x in batch())
    system = read_system(model[0])
    expected = simulate(system, inputs.numpy().astype(float))
    np.testing.assert_allclose(model(inputs).detach(), expected, atol=1e-4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def train(steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            optimizer.zero_grad()
            loss = ((model(inputs) - targets) ** 2).mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    before = train(10)
    parameter, moments = model[0].C, optimizer.state[model[0].C]["exp_avg"].clone()
    kept = reduce_model(model, 8, optimizer=optimizer).report["0"]
    assert kept.new_order == model[0].state_dim == 8
    assert model[0].C is parameter
    chosen = optimizer.state[parameter]["exp_avg"]
    assert all(any(torch.equal(chosen[:, i], moments[:, j]) for j in range(N)) for i in range(8))
    assert train(10) < 1.2 * before
    loaded = load_reduced(nn.Sequential(TorchLinOSS(1)), model.state_dict())
    torch.testing.assert_close(loaded(inputs), model(inputs))
