"""Cut a stock Mamba checkpoint by a text: python mamba_checkpoint.py FOLDER TEXT NEW_FOLDER ORDER."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ssmreduce import calibrate, reduce_model

LENGTH, COUNT = 64, 64
folder, text, new_folder, order = sys.argv[1:]

model = AutoModelForCausalLM.from_pretrained(folder)
ids = list(Path(text).read_bytes())
if (Path(folder) / "tokenizer.json").exists():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(new_folder)
    ids = tokenizer(Path(text).read_text())["input_ids"]
sequences = torch.tensor(ids).unfold(0, LENGTH, LENGTH)[:COUNT]
data = calibrate(model, sequences.split(16), loss=lambda model, ids: model(ids, labels=ids).loss)
print(reduce_model(model, int(order), data=data))
model.save_pretrained(new_folder)
