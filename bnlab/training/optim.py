"""Optimizers: fused kernels; weight decay, rate and training itself may tell normalization from the rest."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from bnlab.errors import ConfigError, IncompatibleError
from bnlab.norms.strategy import NormModule
from bnlab.registry import Registry
from bnlab.schema import param


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec(ABC):
    """The parameters common to every optimizer."""

    name: ClassVar[str]

    lr: float
    weight_decay: float = param(5e-4, "times the weights, added to the gradient", low=0.0)
    decay_norm: bool = param(False, "decay gamma and beta too")
    norm_lr: float = param(1.0, "a factor on the learning rate of gamma and beta", above=0.0)
    only: Literal["all", "norm"] = param("all", "what is trained: all of it, or gamma and beta alone")

    @abstractmethod
    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the model's parameters."""

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return parameter groups: of normalization, with its own decay and factor on the rate, and of the rest.

        They are formed from the modules themselves, never from parameter names; where both are treated alike they are
        one. With `only=norm` the rest is left out and takes no gradient any more. Errors: IncompatibleError when there
        is nothing but the rest.
        """
        norms = {id(p) for m in model.modules() if isinstance(m, NormModule) for p in m.parameters()}
        rest = [p for p in model.parameters() if id(p) not in norms]
        apart = [p for p in model.parameters() if id(p) in norms]
        if self.only == "norm":
            if not apart:
                raise IncompatibleError(
                    "optim.only=norm: no norm layer of this model learns anything\n"
                    "take a norm with gamma or beta (norm=batch norm.affine=true), or set optim.only=all"
                )
            for parameter in rest:
                parameter.requires_grad_(False)
            rest = []
        elif self.decay_norm and self.norm_lr == 1:
            rest, apart = list(model.parameters()), []
        decay = self.weight_decay if self.decay_norm else 0.0
        groups = [
            {"params": rest, "weight_decay": self.weight_decay, "factor": 1.0},
            {"params": apart, "weight_decay": decay, "factor": self.norm_lr},
        ]
        return [group for group in groups if group["params"]]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step: `rate` times the factor of each group.

    A group from a checkpoint that is older than the factors has none.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)


optimizers: Registry[OptimizerSpec] = Registry("optim")


@optimizers.register("sgd")
@dataclass(frozen=True, kw_only=True)
class Sgd(OptimizerSpec):
    """Stochastic gradient descent with (Nesterov) momentum."""

    lr: float = param(0.1, "learning rate at the schedule's peak", above=0.0)
    momentum: float = param(0.9, "share of the previous update kept", low=0.0, high=0.9999)
    nesterov: bool = param(True, "look ahead along the momentum")

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ConfigError("optim.momentum=0: Nesterov needs momentum; set optim.nesterov=false as well")

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        return lean(torch.optim.SGD)(
            self.groups(model), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=True
        )


@optimizers.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(OptimizerSpec):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    lr: float = param(0.003, "learning rate at the schedule's peak", above=0.0)
    beta1: float = param(0.9, "decay of the gradient's mean", low=0.0, high=0.9999)
    beta2: float = param(0.999, "decay of the gradient's mean square", low=0.0, high=0.999999)
    weight_decay: float = param(0.01, "decoupled weight decay", low=0.0)

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        return lean(torch.optim.AdamW)(self.groups(model), lr=self.lr, betas=(self.beta1, self.beta2), fused=True)


def lean(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return torch's optimizer `kind` without the decorators of its methods.

    They import torch's compiler at the first call, which takes longer than building the model and the data, and let it
    see each step; nothing here compiles an optimizer.
    """
    decorated = ("add_param_group", "zero_grad", "step", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in decorated}
    return type(f"Lean{kind.__name__}", (kind,), methods | {"step": torch.no_grad()(methods["step"])})
