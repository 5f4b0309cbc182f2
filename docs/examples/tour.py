"""The program of ``docs/tour.rst``: an S5 layer is looked at, cut, and cut while it trains."""
# ruff: noqa: E402

# A model
import copy

import torch
from s5 import S5
from torch.nn.functional import cross_entropy, gelu

from ssmreduce.demo.tones import make_tones

torch.manual_seed(0)
data = make_tones(0)  # sequences of 200 samples; labels 0 ... 15
inputs = torch.tensor(data.train_sequences)[..., None]
labels = torch.tensor(data.train_labels)
test_inputs = torch.tensor(data.test_sequences[:1000])[..., None]
test_labels = torch.tensor(data.test_labels[:1000])


class Model(torch.nn.Module):
    def __init__(self, states=64):
        super().__init__()
        self.encoder = torch.nn.Linear(1, 16)
        self.ssm = S5(16, states)
        self.head = torch.nn.Linear(16, 16)

    def forward(self, x):
        x = self.encoder(x)
        x = x + gelu(self.ssm(x))
        return self.head(x.square().mean(dim=1))


def loss_of(model, batch):
    return cross_entropy(model(batch[0]), batch[1].long())


def draw(steps=400):
    """Batches of 50 sequences."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        at = torch.randint(0, len(inputs), (50,), generator=generator)
        yield inputs[at], labels[at]


@torch.no_grad()
def accuracy(model):
    return (model(test_inputs).argmax(-1) == test_labels).float().mean().item()


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
for batch in draw():
    loss_of(model, batch).backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
print(f"accuracy {accuracy(model):.1%}")

# What a state does
import numpy as np

from ssmreduce import read_system

layer = read_system(model.ssm)
poles = np.asarray(layer.eigenvalues)
hertz = abs(np.angle(poles)) / (2 * np.pi) * 8000
kept = abs(poles) ** 50
for k in (0, 20, 40):
    print(f"state {k:2} rings at {hertz[k]:4.0f} Hz; 50 samples leave {kept[k]:.1%}")

# What the states are worth
from ssmreduce import hankel_singular_values

values = hankel_singular_values(layer, horizon=200)
for count in (8, 16, 24, 32, 64):
    share = values[:count].sum() / values.sum()
    print(f"the first {count:2} of {len(values)} make up {share:.1%}")

# What fewer would cost
from ssmreduce import CutOptions, sweep

options = CutOptions(horizon=200)
costs = sweep(model, [32, 24, 16, 12, 10, 8, 6], metric=accuracy, options=options)
print(costs)

# Half of them
from ssmreduce import reduce_model

half = copy.deepcopy(model)
print(reduce_model(half, 32, options=options))
print(f"accuracy {accuracy(model):.1%} with 64, {accuracy(half):.1%} with 32")

# Ten
ten = copy.deepcopy(model)
print(reduce_model(ten, 10, options=options))
print(f"accuracy {accuracy(ten):.1%} with 10")

# With data
from ssmreduce import calibrate

batches = [(inputs[at : at + 64], labels[at : at + 64]) for at in range(0, 512, 64)]
data = calibrate(model, batches, loss=loss_of)
for order in (8, 6):
    white, known = copy.deepcopy(model), copy.deepcopy(model)
    reduce_model(white, order, options=options)
    reduce_model(known, order, data=data)
    without, with_data = accuracy(white), accuracy(known)
    print(f"{order} states: {without:.1%} without data, {with_data:.1%} with data")

# While it trains
from ssmreduce import InTrainingReducer, ReductionSchedule

torch.manual_seed(0)
young = Model()
optimizer = torch.optim.AdamW(young.parameters(), 1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
reducer = InTrainingReducer(ReductionSchedule.at(100, 200), options=options)
for step, batch in enumerate(draw(), start=1):
    loss_of(young, batch).backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    reducer.step(step, young, optimizer)
for event in reducer.events:
    print(event)
print(f"accuracy {accuracy(young):.1%}")

# Save and load
from ssmreduce import load_reduced

torch.save(young.state_dict(), "reduced.pt")
again = Model()  # at full size: the file says how many states there are
load_reduced(again, torch.load("reduced.pt", weights_only=True))
print(f"accuracy {accuracy(again):.1%} with {len(again.ssm.seq.Lambda)} states")
