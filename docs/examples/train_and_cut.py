"""A model with two S5 layers, cut in the middle of its training, saved and loaded."""

import torch
from s5 import S5

from ssmreduce import HankelMass, load_reduced, reduce_model


class Model(torch.nn.Module):
    """Two S5 layers on sequences with four channels."""

    def __init__(self, states: int = 32) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([S5(4, states), S5(4, states)])
        self.head = torch.nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map (B, L, 4) to (B, L, 4)."""
        for layer in self.layers:
            inputs = inputs + torch.tanh(layer(inputs))
        return self.head(inputs)


def train(model: Model, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Learn to add up a sequence."""
    for _ in range(steps):
        inputs = torch.randn(16, 64, 4)
        loss = torch.mean((model(inputs) - inputs.cumsum(dim=1) / 8) ** 2)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


torch.manual_seed(0)
model = Model()
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
print(f"loss {train(model, optimizer, 40):.3f}")

result = reduce_model(model, HankelMass(0.9), optimizer=optimizer)
print(result)
print(f"loss {train(model, optimizer, 40):.3f}")

torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "reduced.pt")

saved = torch.load("reduced.pt", weights_only=True)
again = Model()  # full size: the file says how many states there are
load_reduced(again, saved["model"])
optimizer = torch.optim.AdamW(again.parameters(), 2e-3)
optimizer.load_state_dict(saved["optimizer"])
print(f"loss {train(again, optimizer, 40):.3f}")
