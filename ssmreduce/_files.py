"""Files that are there in full or not at all: written under another name, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a new file in the same folder, which takes the place of `path` at the end.

    If anything fails before, a full disk or Ctrl-C say, the new file is removed and what was at `path` stays.

    Notes
    -----
    The new file is on the disk before it gets its name, so that a crash leaves the old or the new one.
    It has the permissions of the old one, or those that new files get. A link is followed.
    """
    path = Path(os.path.realpath(path))
    new = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    try:
        new.touch(exist_ok=False)
        if path.exists():
            new.chmod(path.stat().st_mode & 0o777)
        yield new
        with new.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
