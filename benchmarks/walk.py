"""How far one call goes through the code: functions, calls and changes of file.

The way of one PyTorch S5 layer with AdamW through `reduce_model`, or of a dense system with 20 states
through `balanced_truncation` and `solve_lyapunov`, after a first call that imports everything.
Comprehensions and lambdas belong to the function that they stand in. With one BLAS thread
(OPENBLAS_NUM_THREADS=1) there is one function less: nothing is set and given back.

    python benchmarks/walk.py             the counts, and what each part of the package adds
    python benchmarks/walk.py --core      those of the two functions for a dense system
    python benchmarks/walk.py --calls     every function, the most called first
    python benchmarks/walk.py --tree 4    the tree of calls to a depth of 4
"""

import argparse
import collections
import itertools
import pathlib
import sys

import numpy as np
import torch
from s5 import S5

import ssmreduce

ROOT = pathlib.Path(ssmreduce.__file__).parent


class Walk:
    """Every call of a function of ours while `recorded` runs, in order, with its depth."""

    def __init__(self, recorded):
        self.calls = []
        self._depth = 0
        sys.setprofile(self._record)
        try:
            recorded()
        finally:
            sys.setprofile(None)

    def _record(self, frame, event, _):
        code = frame.f_code
        if not code.co_filename.startswith(str(ROOT)) or code.co_name.startswith("<"):
            return
        if event == "call":
            file = pathlib.Path(code.co_filename).relative_to(ROOT).as_posix()
            self.calls.append((self._depth, file, code.co_qualname))
            self._depth += 1
        elif event == "return":
            self._depth -= 1

    @property
    def changes_of_file(self):
        files = [file for _, file, _ in self.calls]
        return 1 + sum(file != last for last, file in itertools.pairwise(files))


def trained_model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), S5(8, 32), torch.nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    inputs = torch.randn(8, 40, 4)
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def cut_of_a_model():
    model, optimizer = trained_model()
    return lambda: ssmreduce.reduce_model(model, 12, optimizer=optimizer)


def dense_calls():
    rng = np.random.default_rng(1)
    A = rng.standard_normal((20, 20)) - 6.0 * np.eye(20)
    B, C = rng.standard_normal((20, 1)), rng.standard_normal((1, 20))
    time = ssmreduce.Continuous()
    return {
        "balanced_truncation": lambda: ssmreduce.balanced_truncation(
            ssmreduce.StateSpace(A, B, C, time=time), 5
        ),
        "solve_lyapunov": lambda: ssmreduce.solve_lyapunov(A, B @ B.T, time=time),
    }


def show(name, walk, options):
    counts = collections.Counter((file, function) for _, file, function in walk.calls)
    print(
        f"{name}: {len(counts)} functions in {len({file for file, _ in counts})} files, "
        f"{len(walk.calls)} calls, {walk.changes_of_file} changes of file"
    )
    for part in sorted({file.split("/")[0] for file, _ in counts}):
        here = [n for (file, _), n in counts.items() if file.split("/")[0] == part]
        print(f"  {part:20s} {len(here):4d} functions {sum(here):5d} calls")
    if options.calls:
        for (file, function), n in counts.most_common():
            print(f"{n:5d}  {file}  {function}")
    for depth, file, function in walk.calls:
        if depth < options.tree:
            print(f"{'  ' * depth}{file}  {function}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--core", action="store_true", help="functions for a dense system")
    parser.add_argument("--calls", action="store_true", help="list every function")
    parser.add_argument("--tree", type=int, default=0, help="print the tree to this depth")
    options = parser.parse_args()
    if options.core:
        for name, call in dense_calls().items():
            call()
            show(name, Walk(call), options)
    else:
        cut_of_a_model()()
        show("reduce_model", Walk(cut_of_a_model()), options)


if __name__ == "__main__":
    main()
