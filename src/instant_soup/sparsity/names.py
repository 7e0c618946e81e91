"""What a weight's name tells: its layer, and which kind of matrix it is."""

NO_MAPS = ("bias", "embed", "position", "rel_pos", "a_log")


def layer_of(name: str) -> str:
    """The block that a weight belongs to: its name up to the first number."""
    parts = name.split(".")
    end = next((i + 1 for i, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:end])


def stack_of(name: str) -> str:
    """The stack of blocks that a weight belongs to: its name before the first number."""
    return layer_of(name).rpartition(".")[0]


def type_of(name: str) -> str:
    """The kind of a matrix within its layer: the rest of its name ("output.dense")."""
    rest = name.removeprefix(f"{layer_of(name)}.")
    return rest.removesuffix(".weight").removesuffix("_weight")


def in_order(layer: str) -> tuple[str, int]:
    """Sort key of layers: layer.2 before layer.10."""
    stack, _, number = layer.rpartition(".")
    return (stack, int(number)) if number.isdigit() else (layer, 0)


def is_map(name: str) -> bool:
    """Whether a weight may be a linear map, by its name: no bias, no table, no state space's decay.

    Its own name counts; if that is just "weight", so does its module's ("position_bias.weight").
    """
    own, module = [*reversed(name.lower().split(".")), ""][:2]
    return not any(word in (module if own == "weight" else own) for word in NO_MAPS)


def in_block(name: str, shape: list[int]) -> bool:
    """Whether a checkpoint's tensor is, by name and shape, a weight of a numbered block."""
    return len(shape) > 1 and any(part.isdigit() for part in name.split(".")) and is_map(name)
