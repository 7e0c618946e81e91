"""Run a stage's script in a warm process: `python stages/run.py calibrate --round 0`.

It is `PYTHONPATH=src python stages/calibrate.py --round 0`, without the seconds that the imports
take (src/instant_soup/pipeline/warm_start.py). The sources are those beside this script: each
experiment runs those of its own copy of the repository.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = str(HERE.parent / "src")

if __name__ == "__main__":
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        sys.exit(__doc__)
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # Processes that a stage starts read the same sources.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [SOURCES, *(o for o in others if o and o != SOURCES)]
    )
    sys.path.insert(1, SOURCES)
    from instant_soup.pipeline import warm_start

    sys.argv[1] = f"stages/{sys.argv[1]}.py"
    warm_start.main()
