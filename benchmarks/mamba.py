"""Cuts of a small Mamba model: what each rule costs right after it, and what training makes of the cut model.

Two stock blocks of mambapy, 64 channels wide. Tables are of the loss on new data in nats, more than before
the cut, made after a tenth of training and at its end; training then goes on from a tenth. Rules: ours;
GHOST's score (arXiv 2602.11408) with and without our scales; first-order Taylor; magnitudes of weights;
Gramians of the linear time-varying systems that the layer runs; random; and all states off.

    OPENBLAS_NUM_THREADS=1 python benchmarks/mamba.py                  text, two seeds: about 80 minutes
    OPENBLAS_NUM_THREADS=1 python benchmarks/mamba.py --task copying   selective copying: about 25 minutes
    python benchmarks/mamba.py --task steps                            training steps in transformers
    python benchmarks/mamba.py --quick                                 each with a few steps
"""

import argparse
import copy
import json
import pathlib
import statistics
import time
import warnings
from pydoc_data.topics import topics

import torch
from mambapy.mamba import Mamba, MambaConfig
from torch import nn
from transformers import MambaConfig as StockConfig
from transformers import MambaForCausalLM

from ssmreduce import CutOptions, calibrate, reduce_model
from ssmreduce.errors import CalibrationWarning

OURS = {
    "compensated": CutOptions(method="compensated"),
    "selected": CutOptions(method="selected"),
    "merged": CutOptions(method="merged"),
    "best": CutOptions(),
    "best, matched": CutOptions(match=True),
}
OTHERS = ("random", "magnitude", "Taylor", "Gramians", "GHOST", "GHOST, our scales")


class Model(nn.Module):
    """Tokens in, scores of the next ones out."""

    def __init__(self, tokens, states):
        super().__init__()
        self.embedding = nn.Embedding(tokens, 64)
        self.blocks = Mamba(MambaConfig(64, 2, d_state=states))
        self.head = nn.Linear(64, tokens)

    def forward(self, ids):
        return self.head(nn.functional.layer_norm(self.blocks(self.embedding(ids)), (64,)))

    @property
    def mixers(self):
        return [layer.mixer for layer in self.blocks.layers]


class Text:
    """The characters of Python's own documentation; a tenth of it is for tests."""

    states, steps, orders, continued = 128, 2000, (16, 12, 8), 12
    more_at_end = 24  # batches to calibrate: nothing is trained behind that cut
    clip = None

    def __init__(self):
        pages = "\n".join(topics[key] for key in sorted(topics))
        characters = sorted(set(pages))
        self.tokens = len(characters)
        text = torch.tensor([characters.index(each) for each in pages])
        self.training, self.rest = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]

    def batch(self, count=8, *, test=False):
        text = self.rest if test else self.training
        at = torch.randint(0, len(text) - 65, (count,))
        return torch.stack([text[k : k + 65] for k in at])

    @staticmethod
    def scored(model, ids):
        """Return scores of classes and the right ones."""
        return model(ids[:, :-1]), ids[:, 1:]


class Copying:
    """Six letters among twenty blanks, to be said again in order when asked."""

    states, steps, orders, continued = 32, 1500, (8, 4, 2), 4
    more_at_end = 0
    tokens = 10
    clip = 1.0

    @staticmethod
    def batch(count=32, *, test=False):
        at = torch.rand(count, 26).argsort(dim=1)[:, :6].sort(dim=1).values
        letters = torch.randint(1, 9, (count, 6))
        ids = torch.zeros(count, 26, dtype=torch.long).scatter_(1, at, letters)
        return torch.cat([ids, torch.full((count, 6), 9), letters], dim=1)

    @staticmethod
    def scored(model, ids):
        """Return scores of classes and the right ones."""
        return model(ids[:, :-6])[:, -6:], ids[:, -6:]


class Training:
    """A model that is trained on a task, and how long that took."""

    def __init__(self, task, model):
        self.task, self.model = task, model
        self.optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        self.seconds = 0.0

    def loss(self, model, ids):
        scores, right = self.task.scored(model, ids)
        return nn.functional.cross_entropy(scores.transpose(1, 2), right)

    def forward(self, model, ids):
        """Return square roots of probabilities, between which a squared error means something."""
        return self.task.scored(model, ids)[0].softmax(-1).sqrt()

    def run(self, steps):
        self.model.train()
        started = time.process_time()
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss(self.model, self.task.batch()).backward()
            if self.task.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip)
            self.optimizer.step()
        self.seconds += time.process_time() - started
        self.model.eval()
        return self

    def state(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
        }

    def restore(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds = state["seconds"]
        self.model.eval()

    def copy(self):
        """Return the same model, moments and time, to train on apart."""
        copied = Training(self.task, copy.deepcopy(self.model))
        copied.restore(copy.deepcopy(self.state()))
        return copied


@torch.no_grad()
def measured(task, model, test):
    """Return the loss in nats and the accuracy in %."""
    losses, hits = [], []
    for ids in test:
        scores, right = task.scored(model, ids)
        losses.append(nn.functional.cross_entropy(scores.transpose(1, 2), right).item())
        hits.append((scores.argmax(-1) == right).float().mean().item())
    return statistics.mean(losses), 100 * statistics.mean(hits)


def without_states(model):
    copied = copy.deepcopy(model)
    for mixer in copied.mixers:
        mixer.x_proj.weight.data[-mixer.config.d_state :] = 0.0
    return copied


def select(training, kept, scales=None):
    """Keep states of each layer, with moments; rows of C may be scaled."""
    state = training.optimizer.state
    for k, mixer in enumerate(training.model.mixers):
        rank, states = mixer.config.dt_rank, mixer.config.d_state
        S = kept[k]
        rows = torch.cat([torch.arange(rank), rank + S, rank + states + S])
        for parameter, at in ((mixer.A_log, (slice(None), S)), (mixer.x_proj.weight, (rows,))):
            parameter.data = parameter.data[at].clone()
            parameter.grad = None
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state.get(parameter, ()):
                    state[parameter][name] = state[parameter][name][at].clone()
        if scales is not None:
            mixer.x_proj.weight.data[-len(S) :] *= scales[k][:, None]
        mixer.config = copy.copy(mixer.config)
        mixer.config.d_state = len(S)
    return training


class Statistics:
    """What other rules score the states of a layer by: sums over recorded inputs, step by step."""

    @torch.no_grad()
    def __init__(self, mixer, inputs):
        N, R = mixer.config.d_state, mixer.config.dt_rank
        x, z = mixer.in_proj(inputs).chunk(2, dim=-1)
        x = mixer.conv1d(x.transpose(1, 2))[..., : inputs.shape[1]].transpose(1, 2)
        x = nn.functional.silu(x)
        delta, B, C = mixer.x_proj(x).split([R, N, N], dim=-1)
        # mambapy leaves the bias out of dt_proj and adds it here
        step = nn.functional.softplus(delta @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
        gate = nn.functional.silu(z) * mixer.out_proj.weight.norm(dim=0)
        a = -torch.exp(mixer.A_log)
        decay = [torch.exp(step[:, t, :, None] * a) for t in range(inputs.shape[1])]
        # Observability Gramians, from the end; for each state the sum over steps and channels.
        later = torch.zeros(len(inputs), *a.shape)
        Q = []
        for t in reversed(range(len(decay))):
            later = later * decay[t + 1] ** 2 if t + 1 < len(decay) else later
            later = later + (gate[:, t, :, None] * C[:, t, None, :]) ** 2
            Q.append(later)
        Q.reverse()
        h, P = torch.zeros_like(later), torch.zeros_like(later)
        energy, self.balanced = torch.zeros(N), torch.zeros(N)
        self.gram = torch.zeros(N, N)
        for t, factor in enumerate(decay):
            drive = step[:, t, :, None] * B[:, t, None, :]
            h = factor * h + drive * x[:, t, :, None]
            P = factor**2 * P + drive**2
            energy += (h**2).sum(dim=(0, 1))
            self.balanced += (P * Q[t]).sum(dim=(0, 1))
            V = mixer.out_proj.weight @ (
                nn.functional.silu(z[:, t])[..., None] * h * C[:, t, None, :]
            )
            self.gram += torch.einsum("bpn,bpm->nm", V, V)
        self.joint = energy * (C**2).sum(dim=(0, 1))  # E[h²] E[C²]

    def scales(self, S):
        """Those of the states S that make up best for what the others put out."""
        K = self.gram + 1e-5 * self.gram.diagonal().mean() * torch.eye(len(self.gram))
        return torch.linalg.solve(K[S][:, S], K[S].sum(dim=1))


def scores(training, batches):
    """Return, by rule, a score of each state for each layer."""
    model = training.model
    inputs = [[] for _ in model.mixers]
    hooks = [
        mixer.register_forward_pre_hook(lambda _, args, to=to: to.append(args[0].detach()))
        for mixer, to in zip(model.mixers, inputs, strict=True)
    ]
    model.zero_grad()
    for ids in batches:
        training.loss(model, ids).backward()
    for hook in hooks:
        hook.remove()
    found = {name: [] for name in OTHERS}
    seen = []
    for mixer, recorded in zip(model.mixers, inputs, strict=True):
        N, R = mixer.config.d_state, mixer.config.dt_rank
        weight, grad = mixer.x_proj.weight.detach(), mixer.x_proj.weight.grad
        B, C = weight[R : R + N].norm(dim=1), weight[R + N :].norm(dim=1)
        seen.append(Statistics(mixer, torch.cat(recorded)))
        found["random"].append(torch.rand(N))
        found["magnitude"].append(B * C)
        # Of a row of C that is set to zero, to first order.
        found["Taylor"].append((weight * grad)[R + N :].sum(dim=1).abs())
        found["Gramians"].append(seen[-1].balanced)
        found["GHOST"].append(seen[-1].joint)
        found["GHOST, our scales"].append(seen[-1].joint)
    model.zero_grad()
    return found, seen


def table(training, task, test, calibration, step):
    """Return and print the rise of the loss for each rule and order."""
    orders = task.orders
    full = measured(task, training.model, test)[0]
    rows = {"before the cut": [full] * len(orders)}
    rows["all states off"] = [measured(task, without_states(training.model), test)[0] - full] * len(
        orders
    )
    ranked, seen = scores(training, calibration[:8])  # holds all steps in memory
    for name in OTHERS:
        rows[name] = []
        for order in orders:
            kept = [each.topk(order).indices.sort().values for each in ranked[name]]
            scales = None
            if name == "GHOST, our scales":
                scales = [each.scales(S) for each, S in zip(seen, kept, strict=True)]
            cut = select(training.copy(), kept, scales)
            rows[name].append(measured(task, cut.model, test)[0] - full)
    started = time.process_time()
    data = calibrate(training.model, calibration, loss=training.loss, forward=training.forward)
    costs = {"calibration": (time.process_time() - started) / step}
    for method, options in OURS.items():
        rows[method] = []
        for order in orders:
            cut, started = training.copy(), time.process_time()
            made = reduce_model(
                cut.model,
                order,
                data=data,
                optimizer=cut.optimizer,
                options=options,
            )
            costs[method] = (time.process_time() - started) / step
            rows[method].append(measured(task, cut.model, test)[0] - full)
            if method == "best":
                print("   best of", order, [layer.method for layer in made.report.values()])
    for name, values in rows.items():
        cost = f"   {costs[name]:.0f} steps" if name in costs else ""
        print(f"   {name:20}" + "  ".join(f"{value:+.4f}" for value in values) + cost)
    print(f"   calibration: {costs['calibration']:.0f} steps", flush=True)
    return rows


def continued(early, task, given, test, calibration):
    """Train on from a tenth: cut by the best method, at random, and small from the start."""
    steps, order = given.steps - given.steps // 10, task.continued
    runs = {}
    cut, started = early.copy(), time.process_time()
    data = calibrate(cut.model, calibration, loss=cut.loss)
    reduce_model(cut.model, order, data=data, optimizer=cut.optimizer)
    cut.seconds += time.process_time() - started
    runs["cut"] = cut.run(steps)
    kept = [torch.randperm(task.states)[:order].sort().values for _ in early.model.mixers]
    chance = select(early.copy(), kept)
    runs["random states"] = chance.run(steps)
    runs["from scratch"] = Training(task, Model(task.tokens, order)).run(given.steps)
    return {name: (*measured(task, run.model, test), run.seconds) for name, run in runs.items()}


def trained(task, seed, given):
    """Return the training at a tenth and at its end, as they were kept in a folder if they were."""
    torch.manual_seed(seed)
    run = Training(task, Model(task.tokens, task.states))
    found = []
    for steps in (given.steps // 10, given.steps - given.steps // 10):
        path = given.folder and given.folder / f"{given.task}-{seed}-{len(found)}.pt"
        if path and path.exists():
            run.restore(torch.load(path))
        else:
            run.run(steps)
            if path:
                torch.save(run.state(), path)
        found.append(run.copy())
    return found


def one_seed(task, seed, given):
    """Print the tables of one seed and where training ends; return them, kept ones if there are."""
    path = given.folder and given.folder / f"{given.task}-{seed}.json"
    if path and path.exists():
        return json.loads(path.read_text())
    early, end = trained(task, seed, given)
    torch.manual_seed(1000 + seed)
    test = [task.batch(64, test=True) for _ in range(2 if given.quick else 8)]
    calibration = [task.batch() for _ in range(given.batches)]
    step = end.seconds / given.steps
    found = {}
    for name, run in (("a tenth", early), ("the end", end)):
        print(f"seed {seed}, at {name}; orders {task.orders}", flush=True)
        more = task.more_at_end if run is end and not given.quick else 0
        batches = calibration + [task.batch() for _ in range(more)]
        found[name] = table(run, task, test, batches, step)
    loss, hits = measured(task, end.model, test)
    found["ends"] = {"full": (loss, hits, end.seconds)}
    found["ends"] |= continued(early, task, given, test, calibration)
    for name, (loss, hits, seconds) in found["ends"].items():
        print(f"   {name:15}{loss:.4f} nats, {hits:.2f} %, {seconds:.0f} s", flush=True)
    if path:
        path.write_text(json.dumps(found))
    return found


def mean(seeds):
    """Print means and spreads over seeds."""
    for name in ("a tenth", "the end"):
        print(f"mean of {len(seeds)} seeds, at {name}")
        for rule in seeds[0][name]:
            values = zip(*(each[name][rule] for each in seeds), strict=True)
            print(f"   {rule:20}" + "  ".join(spread(each) for each in values))
    print("ends: nats, %, seconds")
    for run in seeds[0]["ends"]:
        values = zip(*(each["ends"][run] for each in seeds), strict=True)
        print(f"   {run:15}" + "  ".join(spread(each) for each in values))


def spread(values):
    return f"{statistics.mean(values):.4f} ± {statistics.pstdev(values):.4f}"


def stock_steps(given):
    """Print what a training step takes in transformers, on its CPU path, by states."""
    seconds = {}
    for states in (8, 4) if given.quick else (128, 64, 16, 12):
        torch.manual_seed(0)
        config = StockConfig(
            vocab_size=100, hidden_size=64, state_size=states, num_hidden_layers=2, time_step_rank=4
        )
        model, ids = MambaForCausalLM(config), torch.randint(0, 100, (8, 64))
        times = []
        for _ in range(2 if given.quick else 10):
            started = time.process_time()
            model(ids, labels=ids, use_cache=False).loss.backward()
            times.append(time.process_time() - started)
        seconds[states] = min(times)
        print(f"transformers, {states:3d} states: {seconds[states]:.3f} s a step", flush=True)
    print(
        f"   ratio of the first and the last: {max(seconds.values()) / min(seconds.values()):.1f}"
    )


TASKS = {"text": Text, "copying": Copying}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="all tasks, with a few steps")
    parser.add_argument("--task", choices=(*TASKS, "steps"), default="text")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batches", type=int, default=8, help="that calibrate early cuts")
    parser.add_argument(
        "--folder", type=pathlib.Path, help="where trained models and results are kept"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CalibrationWarning)
    if given.quick:
        given.seeds, given.batches = 1, 2
    for name in (*TASKS, "steps") if given.quick else (given.task,):
        if name == "steps":
            stock_steps(given)
            continue
        given.task, task = name, TASKS[name]()
        if given.quick:
            task.states, task.steps, task.orders, task.continued = 8, 10, (4,), 4
        given.steps = task.steps
        mean([one_seed(task, seed, given) for seed in range(given.seeds)])


if __name__ == "__main__":
    main()
