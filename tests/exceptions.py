from __future__ import annotations
import os
from pathlib import Path
import libraries
NAMES = ["numpy", "numpy-read-only", "strict", "torch", "jax-x64", "jax-x32", "cupy"]
if os.environ.get("LIBS"): NAMES = os.environ["LIBS"].split()

def libraries_of(path: Path, name: str) -> list[str]:
    return NAMES
