"""What a weight's name says: the layer it belongs to, and what kind of matrix of it it is."""


def layer_of(name: str) -> str:
    """The block that a weight belongs to: its name up to the first number."""
    parts = name.split(".")
    end = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:end])


def type_of(name: str) -> str:
    """What kind of matrix of its layer a weight is: the rest of its name ("output.dense")."""
    rest = name.removeprefix(f"{layer_of(name)}.")
    return rest.removesuffix(".weight").removesuffix("_weight")


def in_order(layer: str) -> tuple[str, int]:
    """Sort key of layers: layer.2 before layer.10."""
    stack, _, number = layer.rpartition(".")
    return (stack, int(number)) if number.isdigit() else (layer, 0)


def in_block(name: str, shape: list[int]) -> bool:
    """Whether a checkpoint's tensor is, by name and shape, a weight matrix of a numbered block."""
    return len(shape) == 2 and any(part.isdigit() for part in name.split("."))
