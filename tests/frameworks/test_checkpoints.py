"""Folders of stock Mamba models: read, cut by a text, written, read again, and used by pipelines."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from ssmreduce import calibrate, reduce_model

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/mamba_checkpoint.py"
AT_CHANCE = pytest.mark.filterwarnings("ignore:the model is at chance")
"""Models of these tests have learned nothing."""

FEW_ROWS = pytest.mark.filterwarnings("ignore:layer .* was fitted to")


pytestmark = pytest.mark.usefixtures("quiet_transformers")


def mamba(layers: int = 2) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 256, "hidden_size": 16, "state_size": 8}
    config = transformers.MambaConfig(
        **sizes,
        num_hidden_layers=layers,
        use_mambapy=True,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    return transformers.MambaForCausalLM(config).eval()


def mamba2(layers: int = 2) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 256, "hidden_size": 16, "state_size": 8}
    heads = {"num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 16}
    config = transformers.Mamba2Config(
        **sizes, **heads, num_hidden_layers=layers, eos_token_id=None, tie_word_embeddings=False
    )
    return transformers.Mamba2ForCausalLM(config).eval()


def bytes_tokenizer() -> Any:
    """A token for each character of ASCII."""
    tokenizer = Tokenizer(models.WordLevel({chr(k): k for k in range(128)}, unk_token=chr(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=chr(1))


def text_file(folder: Path, count: int) -> Path:
    """The first bytes of the readme."""
    path = folder / "text"
    path.write_bytes((ROOT / "README.rst").read_bytes()[:count])
    return path


def run_example(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
    return runpy.run_path(str(EXAMPLE), run_name="__main__")


@AT_CHANCE
@FEW_ROWS
@pytest.mark.parametrize(
    ("make", "has_tokenizer"),
    [
        (mamba, True),
        (mamba2, False),
        pytest.param(lambda: mamba(24), False, marks=pytest.mark.slow),
    ],
    ids=["Mamba, tokenizer", "Mamba-2, bytes", "Mamba, 24 layers"],
)
def test_the_script_cuts_a_checkpoint(
    make: Any, has_tokenizer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    make().save_pretrained(old)
    if has_tokenizer:
        bytes_tokenizer().save_pretrained(old)
    found = run_example(monkeypatch, old, text_file(tmp_path, 20 * 64), new, 3)
    again, ids = AutoModelForCausalLM.from_pretrained(new), found["sequences"][:2]
    assert again.config.state_size == 3
    assert (new / "tokenizer.json").exists() == has_tokenizer
    assert sorted(path.name for path in old.glob("*.safetensors")) == ["model.safetensors"]
    assert {each.mixer.ssm_state_size for each in again.backbone.layers} == {3}
    with torch.no_grad():
        assert torch.equal(again(ids).logits, found["model"](ids).logits)
    assert again.generate(ids, max_new_tokens=4).shape == (2, 68)


def test_the_script_is_short() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len([line for line in lines[1:] if line.strip()]) <= 25


def bamba() -> Any:
    config = transformers.BambaConfig(
        vocab_size=256,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=2,
        mamba_chunk_size=16,
        attn_layer_indices=[1],
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    return transformers.BambaForCausalLM(config).eval()


@pytest.mark.parametrize("make", [mamba, mamba2, bamba])
def test_a_pipeline_runs_on_a_reduced_checkpoint(make: Any, tmp_path: Path) -> None:
    model, tokenizer = make(), bytes_tokenizer()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn_like(each))
    batches = [torch.randint(128, (4, 32)) for _ in range(4)]
    reduce_model(model, 3, data=calibrate(model, batches))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    before = model.state_dict()
    writer = transformers.pipeline("text-generation", model=str(tmp_path))
    after = writer.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    prompts = ["Reduce the states.", "of a layer"]
    found = writer(prompts, max_new_tokens=5, do_sample=False)
    for prompt, (said,) in zip(prompts, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            for _ in range(5):  # without a cache
                best = model(ids, use_cache=False).logits[:, -1:].argmax(-1)
                ids = torch.cat([ids, best], dim=1)
        assert len({*ids[0, -5:].tolist()}) > 1
        assert said["generated_text"] == tokenizer.decode(ids[0], skip_special_tokens=True)
