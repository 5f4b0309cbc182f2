"""A picture of the imports: which packages and modules of a checkout use which, from top to bottom.

Each box is a package or a module at the top of ``ssmreduce``, with the number of its modules. The levels,
and what counts as an import, are those of ``tests/meta/test_layering.py`` in that checkout; within a level,
what is imported stands lower. Arrows that point up or belong to a circle are red. Faint ones only shorten a
way of other arrows.

    python benchmarks/imports.py docs/imports.png                  this checkout
    python benchmarks/imports.py before.png --checkout PATH        another one
"""

import argparse
import ast
import collections
import io
import runpy
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from PIL import Image

LEFT_OUT = {"__init__", "__main__"}
"""The list of public names, and what runs the command line."""

BLACK, GREY, RED = "0.2", "0.85", "tab:red"


@dataclass(frozen=True)
class Imports:
    """What each package or module at the top imports of the others."""

    targets: dict[str, set[str]]
    modules: dict[str, int]
    levels: list[set[str]]

    @classmethod
    def of(cls, checkout):
        rules = runpy.run_path(str(checkout / "tests" / "meta" / "test_layering.py"))
        targets, modules = collections.defaultdict(set), collections.Counter()
        for path in sorted((checkout / "ssmreduce").rglob("*.py")):
            own = path.relative_to(checkout / "ssmreduce").parts[0].removesuffix(".py")
            modules[own] += 1
            for name, _ in rules["imported"](ast.parse(path.read_text(encoding="utf-8")), path):
                targets[own] |= set(name.removeprefix("ssmreduce.").split(".")[:1])
        kept = modules.keys() - LEFT_OUT
        return cls(
            {own: (targets[own] & kept) - {own} for own in sorted(kept)}, modules, rules["LEVELS"]
        )

    @property
    def arrows(self):
        return [(own, target) for own in self.targets for target in sorted(self.targets[own])]

    def level(self, name):
        return next(level for level, names in enumerate(self.levels) if name in names)

    def reached(self, name):
        """Everything that some way of arrows leads to."""
        found, waiting = set(), [name]
        while waiting:
            new = self.targets[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    def is_red(self, own, target):
        return self.level(target) > self.level(own) or own in self.reached(target)

    def is_faint(self, own, target):
        ways = [self.reached(other) for other in self.targets[own]]
        return any(target in way and own not in way for way in ways)

    def rows(self):
        """Boxes from the bottom up: by level, and in a level above those that they import."""
        rows = []
        for level in range(len(self.levels)):
            left = {name for name in self.targets if self.level(name) == level}
            while left:
                free = {name for name in left if not self.targets[name] & (left - {name})}
                rows.append(sorted(free or left))  # a circle stands in one row
                left -= set(rows[-1])
        return rows


def places(imports):
    """The middle of each box; rows of one box alternate, so that long arrows pass beside them."""
    found = {}
    for height, row in enumerate(imports.rows()):
        shift = (-0.3, 0.3)[height % 2] if len(row) == 1 else 0.0
        for k, name in enumerate(row):
            found[name] = (1.15 * (k - (len(row) - 1) / 2.0) + shift, float(height))
    return found


def draw(imports, title):
    where = places(imports)
    top = max(y for _, y in where.values())
    figure = Figure(figsize=(8.0, 1.0 + 0.42 * top), layout="constrained")
    axes = figure.subplots()
    boxes = {}
    for name, (x, y) in where.items():
        label = f"{name}  {imports.modules[name]}" if imports.modules[name] > 1 else name
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": BLACK, "linewidth": 0.8}
        text = axes.text(x, y, label, ha="center", va="center", fontsize=9, zorder=4, bbox=box)
        boxes[name] = text.get_bbox_patch()
    kinds = collections.Counter()
    for own, target in imports.arrows:
        red, faint = imports.is_red(own, target), imports.is_faint(own, target)
        rank, color, width = (3, RED, 1.8) if red else (1, GREY, 0.7) if faint else (2, BLACK, 0.9)
        kinds[color] += 1
        bend = 0.04 + 0.012 * (where[own][1] - where[target][1])
        axes.add_patch(
            FancyArrowPatch(
                where[own],
                where[target],
                patchA=boxes[own],
                patchB=boxes[target],
                shrinkA=0,
                shrinkB=0,
                arrowstyle="->",
                mutation_scale=9,
                color=color,
                linewidth=width,
                zorder=rank,
                connectionstyle=f"arc3,rad={bend if where[own][0] <= 0 else -bend}",
            )
        )
    axes.set_title(
        f"{title}: {sum(imports.modules.values())} modules, {sum(kinds.values())} arrows, "
        f"{kinds[RED]} up or in a circle",
        fontsize=10,
    )
    widest = max(abs(x) for x, _ in where.values())
    axes.set(xlim=(-widest - 0.8, widest + 0.8), ylim=(-0.6, top + 0.6))
    axes.set_axis_off()
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="the file to write")
    parser.add_argument("--checkout", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--title", default="now")
    options = parser.parse_args()
    drawn = io.BytesIO()
    draw(Imports.of(options.checkout), options.title).savefig(drawn, dpi=110)
    Image.open(drawn).convert("RGB").quantize(32).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
