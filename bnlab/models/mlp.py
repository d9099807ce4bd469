"""A multilayer perceptron: one hidden linear block a width, then the classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from bnlab.errors import ConfigError
from bnlab.models.model import PLACES_OF_DROPOUT, Blocks, Linear, ModelSpec, models
from bnlab.schema import param


@models.register("mlp")
@dataclass(frozen=True, kw_only=True)
class Mlp(ModelSpec):
    """A multilayer perceptron: hidden linear layers of the given widths."""

    has_space = False

    widths: tuple[int, ...] = param((256, 256), "units of each hidden layer", low=1, high=2**16)
    depth: int | None = param(None, "hidden layers, all of the one width; null: one for each width", low=1, high=10_000)

    dropout_place: Literal["after", "before", "classifier"] = param("after", PLACES_OF_DROPOUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth is not None and len(self.widths) > 1:
            raise ConfigError(
                f"model.depth={self.depth}: repeats one width, and model.widths={list(self.widths)} names "
                f"{len(self.widths)}\nset model.widths=[{self.widths[0]}], or model.depth=null"
            )

    def layers(self, blocks: Blocks, image_shape: tuple[int, int, int], num_classes: int) -> list[nn.Module]:
        channels, height, width = image_shape
        inputs = channels * height * width
        modules: list[nn.Module] = [nn.Flatten()]
        widths = self.widths * (self.depth or 1)
        for number, outputs in enumerate(widths, 1):
            modules += blocks.linear(inputs, outputs)
            modules += blocks.last_norm(outputs) if number == len(widths) else []
            modules += blocks.dropout("after")
            inputs = outputs
        return [*modules, *blocks.dropout("classifier"), Linear(inputs, num_classes)]
