"""What makes a base model a classifier: the head that its outputs come from. No heavy imports."""

from dataclasses import dataclass, field

from instant_soup.config.fields import Stored


@dataclass(frozen=True)
class Head(Stored):
    """Of texts a head drawn from the seed; of images class names and prompts, frozen."""

    outputs: int = 0  # texts: as the encoded data has them
    seed: int = 0
    classes: list[str] = field(default_factory=list)  # images
    templates: list[str] = field(default_factory=list)
