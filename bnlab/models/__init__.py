"""Networks that ask a strategy for their norm layers: importing the package enters all of them in `models`."""

from bnlab.models.cnn import Cnn
from bnlab.models.mlp import Mlp
from bnlab.models.model import ModelSpec, build, models, norm_layers
from bnlab.models.resnet import Resnet

__all__ = ["Cnn", "Mlp", "ModelSpec", "Resnet", "build", "models", "norm_layers"]
