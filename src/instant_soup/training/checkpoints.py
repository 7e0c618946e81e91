"""Where a stopped run goes on: the folder of its checkpoint, and stops between two steps."""

import hashlib
import json
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from instant_soup.files import project_root, sha256

EVERY = 120.0  # seconds
PACKAGE = Path(__file__).parent.parent


@contextmanager
def stop_between_steps() -> Iterator[threading.Event]:
    """Turn Ctrl-C and termination into an event, so that no step is left half done."""
    stop_asked = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda *_: stop_asked.set()) for s in signals]
    try:
        yield stop_asked
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def folder(
    settings: Any, tensors: Iterable[dict[str, torch.Tensor]] = (), files: Iterable[Path] = ()
) -> Path:
    """A folder named after everything that a run depends on, this package's code included.

    It lies in the main repository, so that an experiment in a copy finds it again.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for named in tensors:
        for name in sorted(named):
            digest.update(named[name].numpy().tobytes())
    for file in [*sorted(PACKAGE.rglob("*.py")), *sorted(files)]:
        digest.update(sha256(file).encode())
    return project_root() / ".dvc/tmp/instant-soup/checkpoints" / digest.hexdigest()[:16]
