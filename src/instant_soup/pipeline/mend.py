"""Clear away what a killed DVC has left and what stops the next one; `make repro` begins with it.

    python -m instant_soup.pipeline.mend

DVC writes two files in place: dvc.lock, and the list of what its processes read and write. Killed
in the middle, it leaves half of one, or nothing. Neither is needed: the list is of living processes
only, and DVC's run cache knows what dvc.lock says.
"""

import json
from pathlib import Path
from typing import Any

import psutil
import yaml

from instant_soup.files import project_root
from instant_soup.pipeline.processes import run_stage, try_lock

BUSY, LOCK = Path(".dvc/tmp/rwlock"), Path("dvc.lock")
# DVC holds one of these while it writes one of those.
OF_BUSY, OF_LOCK = Path(".dvc/tmp/rwlock.lock"), Path(".dvc/tmp/lock")
DAMAGED = Path(".dvc/tmp/dvc.lock.damaged")


def mend(root: Path) -> list[str]:
    """Remove the list if it is damaged or of dead processes, and put a damaged dvc.lock aside.

    What a DVC is writing at this moment stays.

    Args:
        root: The repository.

    Returns:
        A line for each thing that was done.
    """
    said = []
    (root / BUSY.parent).mkdir(parents=True, exist_ok=True)
    with open(root / OF_BUSY, "a") as guard:
        if try_lock(guard) and (root / BUSY).exists() and _is_left(root / BUSY):
            (root / BUSY).unlink()
            said.append(f"{BUSY}: left by a DVC that was killed; removed")
    with open(root / OF_LOCK, "a") as guard:
        if try_lock(guard) and (root / LOCK).exists() and not _is_whole(root / LOCK):
            (root / LOCK).replace(root / DAMAGED)
            said.append(
                f"{LOCK}: damaged by a DVC that was killed; put aside as {DAMAGED}: finished "
                "stages come back from DVC's run cache"
            )
    return said


def _is_left(path: Path) -> bool:
    """Whether a list is damaged, or has processes of which none is a running DVC."""
    try:
        listed = json.loads(path.read_text())
        written = list(listed.get("write", {}).values())
        read = [one for some in listed.get("read", {}).values() for one in some]
        numbers = {one["pid"] for one in [*written, *read]}
        return bool(numbers) and not any(map(_is_dvc, numbers))
    except (ValueError, AttributeError, TypeError, KeyError):
        return True


def _is_dvc(number: int) -> bool:
    """Whether a process is a DVC: its number may be another's by now."""
    try:
        return any("dvc" in word for word in psutil.Process(number).cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # another user's: nothing is known of it


def _is_whole(path: Path) -> bool:
    """Whether a dvc.lock can be read."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found: Any = yaml.load(path.read_text(), Loader=loader)
        return all(isinstance(stage, dict) for stage in found["stages"].values())
    except (ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return False


def main() -> None:
    """Run the command."""
    for line in mend(project_root()):
        print(line)


if __name__ == "__main__":
    run_stage(main)
