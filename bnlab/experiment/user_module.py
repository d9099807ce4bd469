"""A model of the user's own, made ready to be examined as one of bnlab's: unwrapped, fed its dtype, its logits found.

What the factory settled stays: layers that it froze stay in evaluation mode, momentum is its own. All that is done to
the model is hooks on the whole and the `train` of frozen layers.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.conformance.own_code import load_factory, own_code
from bnlab.errors import BnlabError, ConfigError
from bnlab.measure.layer_statistics import kept, normalizations, running_layers
from bnlab.measure.modes import evaluating, preserved
from bnlab.measure.population_statistics import hooked
from bnlab.measure.unseen import comes_back, misread, unseen

WRAP_IT = "wrap the model in a module that returns its logits alone"


class UserModule:
    """The model that `package.module:factory()` makes, or a copy of one that is there, which stays as it is.

    `output` names its logits where it returns several tensors: the key of a dict, the field of an object, the place in
    a tuple. Errors: ConfigError; as of `own_code`.
    """

    def __init__(self, source: str | nn.Module, output: str | None = None) -> None:
        self.named, self.output = called(source), output
        # how to say which, in the language that the model was given in
        self._option = "--output {}" if isinstance(source, str) else 'output="{}"'
        if isinstance(source, str):
            make, doing = load_factory(source), "called without arguments it"
            if isinstance(make, nn.Module):
                raise ConfigError(
                    f"{self.named}: is a model itself ({type(make).__name__})\nname a function that returns it"
                )
            way_out = "name a function or a class that takes none and returns the model"
        else:
            make, doing = partial(copy.deepcopy, source), "copied, so that yours stays as it is, it"
            way_out = "copy.deepcopy must be able to copy it"
        with own_code(self.named, doing, way_out):
            model = make()
            if not isinstance(model, nn.Module):
                raise ConfigError(
                    f"{self.named}: must return a torch.nn.Module, not {type(model).__name__}\n"
                    "give a function or a class that takes no arguments"
                )
            scripted = next((each for each in model.modules() if isinstance(each, torch.jit.ScriptModule)), None)
            if scripted is not None:
                raise ConfigError(
                    f"{self.named}: holds TorchScript ({type(scripted).__name__}), which hooks cannot look into\n"
                    "take the nn.Module that was scripted or traced"
                )
            if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
                raise ConfigError(
                    f"{self.named}: has weights on the meta device, where they hold no values\n"
                    "move it by to_empty(device='cpu') and load its weights first"
                )
            written = list(model.state_dict())
            self.model, wrappers = _unwrapped(model)
            self.names = dict(zip(self.model.state_dict(), written, strict=True))  # -> as its own state dict has them
        self.about = [f"{', '.join(wrappers)} taken off"] if wrappers else []
        self.about += _keep_frozen(self.model)
        self.unseen: list[str] = []  # what of it cannot be measured
        self.unread = ""  # the layers that keep something in training that bnlab does not read
        self._doing = "called with images it"
        self._chosen: str | None = None
        self._width = 0
        self._was_put_back = False
        self._gives_shares: dict[bool, bool] = {}  # in training mode or not: probabilities, in place of logits

    def ready_for(self, images: Tensor, classes: int) -> None:
        """Feed the model its own dtype, and let it return its logits for `classes`; try it on two of `images`.

        Errors: ConfigError where it cannot take them, or gives no logits.
        """
        self._classes = classes
        dtype = next((p.dtype for p in _floating(self.model)), torch.float32)
        if dtype != torch.float32:
            self.about.append(f"in {str(dtype).removeprefix('torch.')}")

        def before(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            mode = "training" if model.training else "evaluation"
            self._doing = f"in {mode} mode on a batch of {len(inputs[0]):,} it"
            return (inputs[0].to(dtype, copy=True), *inputs[1:])  # some write into what they are given

        self.model.register_forward_pre_hook(before)
        self.model.register_forward_hook(lambda model, inputs, output: self._logits(output, len(inputs[0])))
        many, images = images, images[:2]
        shape = tuple(images.shape)
        way_out = (
            "it is given them alone: wrap it in a module that gives it what it takes, such as x.permute(0, 2, 3, 1) of "
            "(N, H, W, C); of data=folder, data.channels and data.size can be set"
        )
        with torch.no_grad(), own_code(self.named, f"on images of shape {shape} (N, C, H, W) it", way_out):
            logits = self.model(images)
            self._check_channels(images)
            if self._chosen:
                self.about.append(f"output {self._chosen}")
            if logits.shape[1] > classes:
                self.about.append(f"{logits.shape[1]:,} outputs for {classes:,} classes")
            self.unseen, self.unread = unseen(self.model, images)
            self._check_averages(many)
        modes = [name for mode, name in ((True, "training"), (False, "evaluation")) if self._gives_shares.get(mode)]
        if modes:
            self.about.append(f"returns probabilities in {' and '.join(modes)} mode: their logarithm is taken")
        self.about += [*self._alone(images), *self.unseen]

    def _check_channels(self, images: Tensor) -> None:
        """Refuse running statistics that are not one mean a channel, such as one set for each ghost of a batch."""

        def see(layer: nn.Module, x: Tensor) -> None:
            count = len(kept(layer)[0])
            if x.dim() < 2 or count != x.shape[1]:
                name = next(name for name, module in self.model.named_modules() if module is layer)
                raise ConfigError(
                    f"{self.named}: layer {name} ({type(layer).__name__}) keeps {count:,} running means and is given "
                    f"shape {tuple(x.shape)}, where bnlab reads one a channel, axis 1\n"
                    "put a layer in its place that keeps one set, such as torch.nn.BatchNorm2d with the means of its "
                    "sets, or bnlab's norm=ghost"
                )

        with preserved(self.model), evaluating(self.model), hooked(running_layers(self.model), see):
            self.model(images)

    def _check_averages(self, images: Tensor) -> None:
        """Refuse running statistics of something else than the layer's input, as where it takes a mask, and those that
        are kept where they cannot be put back.
        """
        if not comes_back(self.model, images):
            raise ConfigError(
                f"{self.named}: a pass in training mode changes what evaluation gives, and cannot be taken back\n"
                "let its modules keep what they remember in buffers (register_buffer), lists or dictionaries of tensors"
            )
        found = None
        with contextlib.suppress(Exception):  # of training mode, which is said where it is needed
            found = misread(self.model, images)
        if found:
            raise ConfigError(
                f"{self.named}: layer {found[0]} averages something else than its input over batch and pixels: "
                f"{found[1]}, so statistics that are put into it would be wrong\n"
                "do what it does first (a mask, another axis, a scale) in the module around it, and give what comes of "
                "that to torch.nn.BatchNorm1d or BatchNorm2d"
            )

    def _alone(self, images: Tensor) -> list[str]:
        """Say what becomes of a single image, where that is not what becomes of two."""
        try:
            with torch.no_grad(), own_code(self.named, ""):
                self.model(images[:1])
        except BnlabError as error:
            reason = str(error).partition("\n")[0].rpartition(" fails: ")[2]
            return [f"fails on a batch of one image ({reason})"]
        return ["loses the batch axis of a single image, as squeeze() does; it is put back here"] * self._was_put_back

    @contextlib.contextmanager
    def examined(self) -> Iterator[None]:
        """Let it run without torch.compile, whose graphs do not call hooks; what it raises becomes an error."""
        compiles = "torch._dynamo" in sys.modules  # of seconds to import
        eagerly = torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()
        way_out = "it is called with images alone, in both modes: take larger batches, or wrap it in a module that can"
        with eagerly, own_code(self.named, lambda: self._doing, way_out):
            yield

    def _logits(self, output: Any, samples: int) -> Tensor:
        """Return the logits (N, outputs) among what the model returned for `samples` images."""
        named = dict(_tensors(output))
        if self.output is not None and "" not in named:
            if self.output not in named:
                raise ConfigError(
                    f"{self._option.format(self.output)}: {self._returned(output)}\n"
                    f"there are: {', '.join(named) or 'none'}"
                )
            named = {self.output: named[self.output]}
        if samples == 1:  # give the logits back the axis that `squeeze()` takes from them
            lost = {name for name, t in named.items() if t.dim() == 1 and len(t) == self._width}
            self._was_put_back = self._was_put_back or bool(lost)
            named = {name: t[None] if name in lost else t for name, t in named.items()}
        fits = [
            name
            for name, t in named.items()
            if t.dim() == 2 and len(t) == samples and t.shape[1] >= self._classes and not t.is_complex()
        ]
        exact = [name for name in fits if named[name].shape[1] == self._classes]
        fits = fits if len(fits) == 1 else exact or fits
        if len(fits) > 1:
            fits = [name for name in fits if name.rpartition(".")[2] == "logits"][:1] or fits
        if len(fits) != 1:
            raise ConfigError(
                f"{self.named}: must return logits of shape ({samples}, {self._classes} or more) for "
                f"{samples} images of {self._classes} classes: {self._returned(output)}\n"
                + (f"name one of them: {self._option.format(fits[0])}" if fits else f"{_kind(named)}{WRAP_IT}")
            )
        self._chosen = fits[0]
        logits = named[fits[0]]
        self._width = logits.shape[1]
        if samples > 1 and (mode := self.model.training) not in self._gives_shares:
            one = (logits.float().sum(1) - 1).abs().max() < 0.01
            self._gives_shares[mode] = bool(one and (logits >= 0).all())
        if self._gives_shares.get(self.model.training):
            return logits.float().clamp(min=torch.finfo(torch.float32).tiny).log()
        return logits

    def _returned(self, output: Any) -> str:
        mode = "training" if self.model.training else "evaluation"
        if isinstance(output, Tensor):
            numbers = " of complex numbers" if output.is_complex() else ""
            return f"in {mode} mode it returns shape {tuple(output.shape)}{numbers}"
        held = [f"{name} {tuple(tensor.shape)}" for name, tensor in _tensors(output)]
        return f"in {mode} mode it returns a {type(output).__name__}" + (f" with {', '.join(held)}" if held else "")


def called(source: str | nn.Module) -> str:
    """Return what messages call a module: the option that names its factory, or its class."""
    return f"--module {source}" if isinstance(source, str) else type(source).__name__


def _floating(model: nn.Module) -> Iterator[Tensor]:
    for held in (model.parameters(), model.buffers()):
        yield from (tensor for tensor in held if tensor.is_floating_point())


def _kind(named: Mapping[str, Tensor]) -> str:
    """Say what a model that gives no logits may be for."""
    if any(tensor.dim() == 4 and tensor[0, 0].numel() > 1 for tensor in named.values()):
        return "maps of an image, as of segmentation, are not compared; otherwise "
    if named and all(tensor.dim() == 1 or tensor[0].numel() == 1 for tensor in named.values()):
        return "one number an image, as of regression, has no classes to compare; otherwise "
    return ""


def _tensors(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in what a model returned, each with its name: `logits`, `0`, `heads.main`."""
    if isinstance(output, Tensor):
        yield name, output
        return
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(output, Mapping):
        parts = output.items()
    elif hasattr(output, "_fields"):
        parts = zip(output._fields, output, strict=True)
    elif isinstance(output, (tuple, list)):
        parts = enumerate(output)
    elif dataclasses.is_dataclass(output) or hasattr(output, "logits"):
        parts = vars(output).items()
    for key, value in parts:
        yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _unwrapped(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return the model without what runs it otherwise, at the top and inside, and the names of what was taken off."""
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    taken: dict[str, None] = {}

    def bare(module: nn.Module) -> nn.Module:
        while True:
            if isinstance(module, kinds):
                taken[type(module).__name__] = None
                module = module.module
            elif isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
                taken["torch.compile"] = None
                module = inner
            else:
                return module

    model = bare(model)
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = bare(child)
    return model, list(taken)


def _keep_frozen(model: nn.Module) -> list[str]:
    """Let `train` leave in evaluation mode what the factory left there; say how many normalization layers these are.

    A model that is in evaluation mode as a whole has been handed over so, and nothing of it is frozen.
    """
    frozen = [module for module in model.modules() if not module.training]
    if len(frozen) == sum(1 for _ in model.modules()):
        return []
    for module in frozen:
        vars(module)["train"] = _train_all_but(module)
    layers = normalizations(model).values()
    count = sum(layer in frozen for layer in layers)
    return [f"{count} of {len(layers)} norm layers are in eval mode as the factory left them"] if count else []


def _train_all_but(module: nn.Module) -> Any:
    def train(mode: bool = True) -> nn.Module:
        type(module).train(module, mode)
        module.training = False
        return module

    return train
