"""A Mamba model of transformers that learns to repeat, loses most of its states, and stays stock."""

import copy
import tempfile

import torch
from transformers import MambaConfig, MambaForCausalLM

from ssmreduce import calibrate, reduce_model

PERIOD, TOKENS = 4, 8


def batch(count: int = 16) -> torch.Tensor:
    """Random words of four letters, each repeated four times."""
    return torch.randint(0, TOKENS, (count, PERIOD)).repeat(1, 4)


def loss(model: MambaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the next letter, from the second word on."""
    scores = model(ids, use_cache=False).logits[:, PERIOD - 1 : -1]
    return torch.nn.functional.cross_entropy(scores.transpose(1, 2), ids[:, PERIOD:])


def without_states(model: MambaForCausalLM) -> MambaForCausalLM:
    """A copy in which nothing reads the states: what convolutions and skips alone can do."""
    copied = copy.deepcopy(model)
    for block in copied.backbone.layers:
        block.mixer.x_proj.weight.data[-block.mixer.ssm_state_size :] = 0.0
    return copied


torch.manual_seed(0)
config = MambaConfig(
    vocab_size=TOKENS, hidden_size=32, state_size=32, num_hidden_layers=2, conv_kernel=2
)
model = MambaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
for _ in range(120):
    optimizer.zero_grad()
    loss(model, batch()).backward()
    optimizer.step()

model.eval()
data = calibrate(model, [batch() for _ in range(8)], loss=loss)
result = reduce_model(model, 4, data=data, optimizer=optimizer)
print(result)
with torch.no_grad():
    off = loss(without_states(model), batch(64)).item()
print(f"all states off: {off:.3g}")

with tempfile.TemporaryDirectory() as path:
    model.save_pretrained(path)
    again = MambaForCausalLM.from_pretrained(path)
print(again.config.state_size, again.backbone.layers[0].mixer.A_log.shape)
