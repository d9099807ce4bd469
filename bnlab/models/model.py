"""What every model is: the common parameters, the block they are built from, and one pass that draws the weights.

A model asks `strategy.layer(channels)` and never which strategy it is. All weights come from one generator in module
order; biases start at 0 and draw nothing, so the weights are the same under every strategy and every bias setting.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnlab.errors import ConfigError, IncompatibleError
from bnlab.norms.strategy import NormLayer, Strategy, strategies
from bnlab.registry import Registry
from bnlab.schema import param
from bnlab.seeding import derived_seed, generator

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}

# By which an activation shrinks what passes it. relu: He et al. 2015. elu, gelu: 1 / sqrt(E[f(z)^2]) for a standard
# normal z, which is He's argument. selu: as Klambauer et al. 2017 require. tanh, sigmoid: as in
# torch.nn.init.calculate_gain.
GAINS: dict[str, float] = {
    "relu": math.sqrt(2),
    "elu": 1.2452,
    "selu": 1.0,
    "gelu": 1.5335,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
}

BEFORE = ("pre", "both")  # placements with a norm between layer and activation


PLACES_OF_DROPOUT = "after norm and activation of each layer, before them, or once, before the last layer"


@dataclass(frozen=True, kw_only=True)
class ModelSpec(ABC):
    """The parameters common to every model; a subclass adds its own and makes the network."""

    name: ClassVar[str]
    has_space: ClassVar[bool] = True  # the layers see H x W

    placement: Literal["pre", "post", "both", "last"] = param(
        "pre", "norm before the activation, after it, both, or one norm in all, on the input of the last layer"
    )
    norm_every: int = param(1, "normalize only the layers k, 2k, ...; the others keep their bias", low=1)
    norm_rest: Literal["none", "frozen", "refrozen"] = param(
        "none",
        "what the other layers get: nothing, or statistics of the training set taken once, at initialization; "
        "refrozen: and again under the weights that are evaluated",
    )
    bias: Literal["auto", "true", "false"] = param("auto", "bias before a norm; auto: dropped where it has no effect")
    activation: Literal["relu", "elu", "selu", "gelu", "sigmoid", "tanh"] = param(
        "relu", "the nonlinearity of every hidden layer"
    )
    init: Literal["he", "lecun", "glorot", "orthogonal"] = param(
        "he",
        "how weights are drawn: normal of variance gain^2 / fan_in, 1 / fan_in, uniform over both fans, orthogonal",
    )
    gain: float = param(1.0, "a factor on all initial weights", above=0.0)
    dropout: float = param(0.0, "share of activations dropped while training", low=0.0, high=0.99)
    dropout_place: Literal["after", "before", "classifier"] = param("classifier", PLACES_OF_DROPOUT)
    input_norm: Literal["none", "standardize", "batch"] = param(
        "standardize", "input: as it is, standardized by the training set, or batch normalized"
    )
    input_scale: float = param(1.0, "a factor on the pixels, which are from 0 to 1; 255: raw ones", above=0.0)

    def __post_init__(self) -> None:
        if self.input_scale != 1.0 and self.input_norm == "standardize":
            raise ConfigError(
                f"model.input_scale={self.input_scale:g}: has no effect on standardized input\n"
                "set model.input_norm=none or batch"
            )
        if self.dropout == 0.0 and self.dropout_place != type(self).dropout_place:
            raise ConfigError(
                f"model.dropout_place={self.dropout_place}: has no effect without dropout\n"
                "set model.dropout=0.5 or another share as well"
            )
        if self.placement == "last" and self.norm_every > 1:
            raise IncompatibleError(
                f"model.norm_every={self.norm_every}: has no meaning with model.placement=last, which has one norm\n"
                "set model.norm_every=1, or model.placement=pre"
            )
        if self.norm_rest != "none" and self.norm_every == 1:
            raise IncompatibleError(
                f"model.norm_rest={self.norm_rest}: has no effect with model.norm_every=1, which leaves no others\n"
                "set model.norm_every=2 or more, or model.norm_rest=none"
            )
        if isinstance(self.bias, bool):  # YAML reads true and false as booleans
            object.__setattr__(self, "bias", str(self.bias).lower())

    @property
    def norms_see_pixels(self) -> bool:
        """Whether the norm layers see H x W."""
        return self.has_space

    def strategies(self, strategy: Strategy) -> list[Strategy]:
        """Return the strategies that a model with `strategy` holds, `strategy` first."""
        rest = self.rest(strategy)
        before = strategies["batch"](affine="false") if self.input_norm == "batch" else None
        return [strategy, *(other for other in (rest, before) if other is not None)]

    def rest(self, strategy: Strategy) -> Strategy | None:
        """Return the strategy of the layers that `norm_every` leaves out, with the common parameters of `strategy`."""
        if self.norm_rest == "none":
            return None
        common = {key: getattr(strategy, key) for key in ("eps", "affine", "eps_outside")}
        return strategies["frozen"](**common | {"again": self.norm_rest == "refrozen"})

    @abstractmethod
    def layers(self, blocks: Blocks, image_shape: tuple[int, int, int], num_classes: int) -> list[nn.Module]:
        """Return the network's modules in order, weights not yet drawn.

        Errors: ConfigError when the parameters do not fit each other or the image.
        """

    def begin(self, model: nn.Module, images: Callable[[int], Tensor]) -> None:  # noqa: B027  (most take nothing)
        """Set what the model takes from its first training images, of which `images(n)` returns n as it sees them."""


models: Registry[ModelSpec] = Registry("model", "bnlab.models")


def build(
    spec: ModelSpec, strategy: Strategy, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> nn.Module:
    """Return the network for images of `image_shape` (C, H, W), its weights drawn on the CPU in float32 from `seed`.

    `input_norm=batch` puts batch normalization without gamma and beta in front; `standardize` is the data's business.
    Errors: IncompatibleError when strategy and model do not fit each other, ConfigError when model and image do not.
    """
    check_fit(spec, strategy)
    modules = spec.layers(Blocks(spec, strategy), image_shape, num_classes)
    if spec.input_norm == "batch":
        modules.insert(0, strategies["batch"](affine="false").layer(image_shape[0]))
    model = nn.Sequential(*modules)
    for number, (_, layer) in enumerate(norm_layers(model)):
        layer.seed(derived_seed(seed, "noise", number))
    initialize(model, spec, generator(seed, "weights"))
    return model


def num_weights(spec: ModelSpec, strategy: Strategy, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """Return how many weights the network would have; nothing is held in memory for it."""
    with torch.device("meta"):
        modules = spec.layers(Blocks(spec, strategy), image_shape, num_classes)
    return sum(weight.numel() for module in modules for weight in module.parameters())


def check_fit(spec: ModelSpec, strategy: Strategy) -> None:
    """Refuse a strategy that is undefined in this model. Errors: IncompatibleError naming both."""
    if strategy.facts.needs_space and not spec.norms_see_pixels:
        where = f"model={spec.name}" + (f" with model.placement={spec.placement}" if spec.has_space else "")
        raise IncompatibleError(
            f"norm={strategy.name}: is over the pixels of an image, and the norm layers of {where} see none\n"
            "use a model over images (model=cnn) or another norm (norm=layer)"
        )
    if strategy.per_activation and not spec.norms_see_pixels:
        raise IncompatibleError(
            f"norm.per=activation: is per=channel where the norm layers see no pixels, as in model={spec.name}\n"
            "set norm.per=channel, or take a model over images (model=cnn)"
        )
    if strategy.weight_transform is not None and spec.placement == "last":
        raise IncompatibleError(
            f"norm={strategy.name}: transforms the weights of the layer that it follows, and with model.placement=last "
            f"it follows none\nset model.placement=pre, or take norm=group"
        )
    if strategy.activation(1) is None:
        return
    for key, needed in (("placement", "pre"), ("activation", "relu")):
        if getattr(spec, key) != needed:
            raise IncompatibleError(
                f"norm={strategy.name}: brings its own activation, so model.{key}={getattr(spec, key)} has no meaning\n"
                f"set model.{key}={needed}, or take another norm"
            )


def norm_layers(model: nn.Module) -> Iterator[tuple[str, NormLayer]]:
    """Yield (name, layer) of every norm layer, in module order."""
    for name, module in model.named_modules():
        if isinstance(module, NormLayer):
            yield name, module


def initialize(model: nn.Module, spec: ModelSpec, draw: torch.Generator) -> None:
    """Draw the weights of every convolution and linear layer in module order; biases are 0.

    With the gain g of the activation, 1 for the last layer, which none follows: he: normal, variance g^2 / fan_in;
    lecun: normal, 1 / fan_in; glorot: uniform within +-sqrt(6 / (fan_in + fan_out)), as Keras has it; orthogonal: W, of
    fan_in columns, has orthogonal rows or columns, whichever are fewer, of length g. All times `spec.gain`.

    He et al. 2015; LeCun et al. 1998; Glorot and Bengio 2010; Saxe et al. 2014.
    """
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for module in weighted:
            gain = 1.0 if module is weighted[-1] else GAINS[spec.activation]
            _draw(module.weight, spec.init, gain, spec.gain, draw)
            if isinstance(module, Conv) and module.begins_as_identity:
                nn.init.dirac_(module.weight[: module.in_channels]).mul_(spec.gain)
            if module.bias is not None:
                module.bias.zero_()


def _draw(weight: Tensor, init: str, gain: float, factor: float, draw: torch.Generator) -> None:
    fan_in = weight[0].numel()
    if init == "glorot":
        bound = factor * math.sqrt(6 / (fan_in + fan_in // weight.shape[1] * weight.shape[0]))
        weight.uniform_(-bound, bound, generator=draw)
    elif init == "orthogonal":
        nn.init.orthogonal_(weight, factor * gain, generator=draw)
    else:
        weight.normal_(0.0, factor * (gain if init == "he" else 1.0) / math.sqrt(fan_in), generator=draw)


class Linear(nn.Linear):
    """A linear layer whose weights are left to `initialize`: torch's own draw would use the global generator.

    A strategy may have it compute with transformed weights.
    """

    weight_transform: Callable[[Tensor], Tensor] | None = None

    def reset_parameters(self) -> None:
        """Draw nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(
            x, self.weight if self.weight_transform is None else self.weight_transform(self.weight), self.bias
        )


class Conv(nn.Conv2d):
    """A convolution like `Linear`."""

    weight_transform: Callable[[Tensor], Tensor] | None = None
    begins_as_identity = False  # its first filters pass on a channel each, as far as there are any

    def reset_parameters(self) -> None:
        """Draw nothing."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight_transform is None else self.weight_transform(self.weight)
        return self._conv_forward(x, weight, self.bias)  # type: ignore[no-any-return]


class Blocks:
    """Makes the blocks of one model: (convolution or linear) + norm + activation, counted for `norm_every`."""

    def __init__(self, spec: ModelSpec, strategy: Strategy) -> None:
        self.spec = spec
        self.strategy = strategy
        self.pixels = 1  # of each channel behind the blocks to come; a model over images keeps it right
        self._made = 0

    def linear(self, inputs: int, outputs: int) -> list[nn.Module]:
        """Return a hidden linear block."""
        before, after = self.halves(lambda bias: Linear(inputs, outputs, bias=bias), outputs)
        return before + after

    def conv(self, inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
        """Return a hidden 3x3 convolution block."""
        before, after = self.conv_halves(inputs, outputs, stride)
        return before + after + self.dropout("after")

    def conv_halves(self, inputs: int, outputs: int, stride: int = 1) -> tuple[list[nn.Module], list[nn.Module]]:
        """Return a 3x3 convolution block, cut in front of the activation."""
        return self.halves(lambda bias: Conv(inputs, outputs, 3, stride, 1, bias=bias), outputs)

    def halves(self, make: Callable[[bool], Linear | Conv], channels: int) -> tuple[list[nn.Module], list[nn.Module]]:
        """Return (what comes before the activation, the activation and what comes after it)."""
        self._made += 1
        strategy = self._strategy_of(self._made)
        before, behind = (
            [] if strategy is None or self.spec.placement not in places else [strategy.layer_for(channels, self.pixels)]
            for places in (BEFORE, ("post", "both"))
        )
        activation = None if strategy is None else strategy.activation(channels)
        layer = make(self._keeps_bias(strategy))
        layer.weight_transform = None if strategy is None else strategy.weight_transform
        return [layer, *self.dropout("before"), *before], [activation or self.activation(), *behind]

    def last_norm(self, channels: int) -> list[nn.Module]:
        """Return the norm that `placement=last` has on the input of the last layer, as a list of one or of none."""
        return [self.strategy.layer_for(channels, self.pixels)] if self.spec.placement == "last" else []

    def activation(self) -> nn.Module:
        """Return a fresh activation."""
        return ACTIVATIONS[self.spec.activation]()

    def dropout(self, place: str) -> list[nn.Module]:
        """Return the dropout of a place, a list of one or none; selu needs alpha dropout to keep its moments."""
        if self.spec.dropout == 0.0 or self.spec.dropout_place != place:
            return []
        return [nn.AlphaDropout(self.spec.dropout) if self.spec.activation == "selu" else nn.Dropout(self.spec.dropout)]

    def _strategy_of(self, number: int) -> Strategy | None:
        """Return the strategy of block `number`, counted from 1; None: it is not normalized."""
        if self.spec.placement == "last":
            return None
        if number % self.spec.norm_every == 0:
            return self.strategy
        return self.spec.rest(self.strategy)

    def _keeps_bias(self, strategy: Strategy | None) -> bool:
        if strategy is None:
            return True
        if self.spec.bias != "auto":
            return self.spec.bias == "true"
        if self.dropout("before"):  # a bias that some samples have lost does not cancel
            return True
        return not (self.spec.placement in BEFORE and strategy.facts.cancels_bias)
