"""Files take their place when they are whole: a full disk or Ctrl-C leaves what was there."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssmreduce import InTrainingReducer, ReductionSchedule
from ssmreduce._files import written_whole
from ssmreduce.demo import report
from ssmreduce.demo.experiment import Experiment
from ssmreduce.demo.report import FILES, write_results
from ssmreduce.demo.settings import make_settings

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def half_written(path: Path, failure: BaseException) -> None:
    with written_whole(path) as new:
        new.write_text("half of the n")
        raise failure


@pytest.mark.parametrize("failure", [FULL, KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_failure_leaves_what_was_there(
    failure: BaseException, is_there: bool, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    if is_there:
        path.write_text("old")
    before = contents(tmp_path)
    with pytest.raises(type(failure)):
        half_written(path, failure)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failure_at_the_end_leaves_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="No space left"), written_whole(path) as new:
        new.write_text("new")
    assert contents(tmp_path) == {"results.json": b"old"}


def test_a_new_file_takes_the_place_and_the_permissions(tmp_path: Path) -> None:
    path, fresh, plain = (tmp_path / name for name in ("old.txt", "fresh.txt", "plain.txt"))
    path.write_text("old")
    plain.write_text("")
    path.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to(path)
    for target in (link, fresh):
        with written_whole(target) as new:
            assert new.suffix == ".txt"
            new.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == fresh.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert fresh.stat().st_mode == plain.stat().st_mode
    assert len(contents(tmp_path)) == 4


class FullDisk:
    """Takes some bytes of each file, and then no more."""

    def __init__(self, stream: Any, room: int) -> None:
        self.stream, self.room = stream, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise FULL
        return int(self.stream.write(data))


@pytest.mark.parametrize("fails_at", range(len(FILES)))
def test_the_demo_leaves_earlier_results(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment(make_settings(quick=True, output=tmp_path))
    assert write_results(experiment, tmp_path) == [tmp_path / name for name in FILES]
    json.loads((tmp_path / FILES[0]).read_text())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    count = 0

    def counted(path: Path) -> Any:
        nonlocal count
        count += 1
        if count > fails_at:
            monkeypatch.setattr(os, "fsync", fail)
        return written_whole(path)

    def fail(_: int) -> None:
        raise FULL

    monkeypatch.setattr(report, "written_whole", counted)
    with pytest.raises(OSError, match="No space left"):
        write_results(experiment, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES}
    kept = [tmp_path / name for name in FILES[fails_at:]]
    assert {path: path.stat().st_mtime_ns for path in kept} == {path: before[path] for path in kept}


def test_a_checkpoint_keeps_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssmreduce.training.transformers import ReductionCallback

    callback = ReductionCallback(InTrainingReducer(ReductionSchedule(10)))
    (tmp_path / "checkpoint-3").mkdir()
    where = SimpleNamespace(output_dir=tmp_path)
    state = SimpleNamespace(global_step=3, is_world_process_zero=True)
    callback.on_save(where, state, None)
    before = contents(tmp_path / "checkpoint-3")
    assert [*before] == ["ssmreduce.pt"]
    save = torch.save

    def saved(value: Any, file: Any) -> None:
        save(value, FullDisk(file, 100))

    monkeypatch.setattr(torch, "save", saved)
    with pytest.raises((OSError, RuntimeError)):
        callback.on_save(where, state, None)
    assert contents(tmp_path / "checkpoint-3") == before
    callback.load(tmp_path / "checkpoint-3")
