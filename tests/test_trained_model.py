"""What is examined: a run or a module of the user's own, its weights and data, and everything that is refused."""

from __future__ import annotations

import argparse
import gzip
import io
import math
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_cli import SHORT, bnlab
from torch import Tensor, nn

from bnlab.api import examined, recalibrated_file, warn_of_scale
from bnlab.errors import BnlabError, ConfigError, RecordError
from bnlab.experiment.shift_study import shift_study
from bnlab.experiment.target import check_target
from bnlab.experiment.trained_model import TrainedModel, find, of_module
from bnlab.measure.modes import preserved
from bnlab.report.console import Terminal
from bnlab.report.shift_report import shift_table
from bnlab.training import checkpoint

MODULE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Flattens by `view`, as models written for the usual memory layout do."""

    def __init__(self, classes=10, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 8 * 8, classes)

    def forward(self, x):
        x = self.bn(self.conv(x))
        return self.fc(x.view(x.size(0), -1))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return self.net(x), None


def colour():
    return Net(channels=3)


def few():
    return Net(classes=4)


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))


def number():
    return 3


made = nn.Flatten()  # draws nothing




class TwoInputs(nn.Module):
    def forward(self, x, y):
        return Net()(x)


def needy(depth):
    return Net(depth)


def quits():
    raise SystemExit(3)


def broken():
    raise OSError("no weights on this disk")
'''
DATA = ["trainer.device=cpu", "eval.probe_samples=64"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mymodels.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    sys.modules.pop("mymodels", None)
    yield tmp_path
    sys.modules.pop("mymodels", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    done = bnlab("train", "norm=batch", "data.batch_size=32", *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[0]


def own(factory: str, weights: Path | None = None, *overrides: str, data: str | None = "digits") -> TrainedModel:
    return find([*DATA, *overrides], f"mymodels:{factory}", weights, data)


def refusal(error: type[BnlabError], ask: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        ask()
    message, _, way_out = str(caught.value).partition("\n")
    assert way_out
    return message


def net() -> nn.Module:
    from mymodels import Net  # type: ignore[import-not-found]

    torch.manual_seed(7)
    made: nn.Module = Net()
    return made


# ---------------------------------------------------------------- a module


def test_a_module_is_taken_with_its_data_as_the_command_line_says(place: Path) -> None:
    found = own("Net", None, "data.batch_size=16")
    assert found.label == "mymodels:Net"
    assert found.about[-1] == "weights as the factory makes them"
    assert (found.batch_size, found.state, found.folder) == (16, None, None)
    assert not any(module.training for module in found.model.modules())
    assert len(found.probe("train")) == 64
    images, _ = next(found.train.sequential(len(found.train)))
    assert images.is_contiguous()
    assert abs(images.mean().item()) < 1e-4
    assert abs(images.std().item() - 1) < 1e-3
    raw, _ = next(own("Net", None, "model.input_norm=none").train.sequential(500))
    assert raw.min() == 0
    assert raw.max() == 1


def test_weights_that_a_factory_draws_are_those_of_the_seed(place: Path) -> None:
    first, again, other = (own("Net", None, f"seed={seed}").model.state_dict()["fc.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def _lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}}


def _beside(state: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    return {"state_dict": dict(state), **more}


@pytest.mark.parametrize(
    "packed",
    [
        lambda state: {"epoch": 1, "ema": dict(state)},
        lambda state: {"net": {f"module.{name}": value for name, value in state.items()}, "acc": 91.2},
        lambda state: {"checkpoint": {"network": {"params": dict(state)}}},
        lambda state: {"n_averaged": torch.tensor(5)} | {f"module.{name}": value for name, value in state.items()},
        lambda state: {name.replace("conv.", "conv.module."): value for name, value in state.items()},
        lambda state: {f"model.{name}": v for name, v in state.items()} | {"criterion.weight": torch.ones(10)},
        lambda state: dict(state) | {"aux.weight": torch.zeros(3)},
        lambda state: _beside(state, best=np.float64(91.2), curve=np.arange(3), seen=np.int64(4), done=np.bool_(True)),
        lambda state: _beside(state, args=argparse.Namespace(lr=0.1, out=Path("x")), optimizer={"state": {0: {}}}),
        lambda state: state,
        dict,
        lambda state: {"model": state, "step": 3},
        lambda state: {"model_state_dict": dict(state)},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        _lightning,
        lambda state: {name: value for name, value in state.items() if name != "bn.num_batches_tracked"},
    ],
    ids=[
        *["ema", "net", "three keys", "averaged", "part parallel", "criterion", "another head", "numpy", "namespace"],
        *["plain", "dict", "model", "nested", "parallel", "parallel-nested", "lightning-compiled", "uncounted"],
    ],
)
def test_weights_are_found_however_a_script_packed_them(place: Path, packed: Callable[[Any], Any]) -> None:
    trained = net()
    trained(torch.randn(4, 1, 8, 8))
    torch.save(packed(trained.state_dict()), place / "weights.pt")
    found = own("Net", place / "weights.pt")
    assert found.is_untrained is False
    assert found.label == f"mymodels:Net with {place / 'weights.pt'}"
    known = trained.state_dict()
    for name, value in found.model.state_dict().items():
        if name != "bn.num_batches_tracked":
            assert torch.equal(value, known[name]), name


def test_a_name_of_the_model_that_looks_like_a_wrapper_is_kept(place: Path) -> None:
    (place / "mymodels.py").write_text(
        MODULE + "\n\ndef wrapped():\n    return nn.Sequential(__import__('collections').OrderedDict(module=Net()))\n"
    )
    torch.save(nn.Sequential(net()).state_dict(), place / "other.pt")
    torch.save({f"module.{name}": value for name, value in net().state_dict().items()}, place / "own.pt")
    assert torch.equal(
        own("wrapped", place / "own.pt").model.state_dict()["module.fc.bias"], net().state_dict()["fc.bias"]
    )
    assert own("wrapped", place / "other.pt").place.names["module.conv.weight"] == "0.conv.weight"


@pytest.mark.parametrize("text", ["hello", "epoch,loss\n1,0.3\n", "# notes on weights\n", "{}", "0", "weights"])
def test_a_text_is_no_file_of_weights(place: Path, text: str) -> None:
    (place / "weights.pt").write_text(text)
    message = refusal(RecordError, lambda: own("Net", place / "weights.pt"))
    assert message.endswith("weights.pt: refused (no file of tensors that torch.save wrote)")


def taught(scale: Callable[[Tensor], Tensor], momentum: float = 0.1, steps: int = 30) -> nn.Module:
    """Return the net after its first layers saw digits in a scale, whose pixels are in [0, 1]."""
    model, data = net(), own("Net", None, "model.input_norm=none")
    vars(model.bn)["momentum"] = momentum
    pixels, _ = next(data.train.sequential(len(data.train)))
    with torch.no_grad():
        for part in range(steps):
            model.train()(scale(pixels[32 * part : 32 * part + 32]))
    return model.eval()


@pytest.mark.parametrize("momentum", [0.1, 0.02])
@pytest.mark.parametrize(
    ("trained_in", "norm", "factor", "way_out"),
    [
        ("in [0, 1]", "none", 1.0, ""),
        ("in [0, 1]", "standardize", 0.376, "none"),
        ("standardized", "standardize", 1.0, ""),
        ("standardized", "none", 1 / 0.376, "standardize"),
        ("from 0 to 255", "none", 255.0, "none, and 255 * x before the model, or without a division by 255 in it"),
        ("in [-1, 1]", "none", 2.0, "none, and 2 * x - 1 before the model"),
    ],
)
def test_statistics_of_images_in_another_scale_are_told(
    place: Path, capsys: Any, trained_in: str, norm: str, factor: float, way_out: str, momentum: float
) -> None:
    """The deviation of digits is 0.376: a convolution is linear in the scale, whatever is left of its initial share."""
    mean, std = (float(moment) for moment in (own("Net").bundle.mean, own("Net").bundle.std))
    scales: dict[str, Callable[[Tensor], Tensor]] = {
        "in [0, 1]": lambda x: x,
        "standardized": lambda x: (x - mean) / std,
        "from 0 to 255": lambda x: 255 * x,
        "in [-1, 1]": lambda x: 2 * x - 1,
    }
    found = of_module(taught(scales[trained_in], momentum), None, ["data=digits", *DATA, f"model.input_norm={norm}"])
    said = found.other_scale()
    assert (bool(said), found.is_scale_given) == (bool(way_out), True)
    if said:
        given = "standardized" if norm == "standardize" else "in [0, 1]"
        figures = re.search(
            rf"images {re.escape(trained_in)} times (.*), and of images {re.escape(given)} times (\S*)\. T", said
        )
        assert figures, said
        assert float(figures[1]) == pytest.approx(1, rel=0.1)
        assert float(figures[2]) == pytest.approx(factor, rel=0.1)
        assert said.endswith(f" Try model.input_norm={way_out}.")
        warn_of_scale(found)
        assert capsys.readouterr().err.startswith("warning: The images are not in the scale")
        unsaid = replace(found, is_scale_given=False)
        with pytest.raises(ConfigError, match=r"(?s)^The images are not .*\nnothing is written; model\.in"):
            recalibrated_file(unsaid, None, "population", 64, False, place / "new.pt", lambda text: None)
        assert not (place / "new.pt").exists()
        probed = examined(found, "bnlab recalibrate", 64, True, lambda text: None)
        assert set(probed.explained) == {""}  # one diagnosis, and no other below a table
        verdict = probed.verdict
        assert verdict.startswith("The images are not in the scale of its training: ")
        assert "recalibrate" not in verdict.lower()


def test_weights_that_were_never_loaded_are_asked_for(place: Path) -> None:
    found = own("Net")
    assert (found.other_scale(), found.is_scale_given) == ("", False)
    probed = examined(found, "bnlab recalibrate", 64, True, lambda text: None)
    assert "never updated (mean 0, variance 1): check that the weights were loaded." in probed.verdict
    assert "updates (" not in probed.verdict


def test_a_model_that_shapes_itself_by_its_input_is_taken(place: Path) -> None:
    assert own("lazy").model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: net(), "refused ("),
        (lambda: [1, 2], "refused (holds a list)"),
        (lambda: {0: torch.ones(1)}, "holds no state dict"),
        (lambda: {"epoch": 3}, "holds no state dict"),
        (
            lambda: nn.BatchNorm2d(4).state_dict(),
            "lacks conv.weight, conv.bias, bn.weight, … (8 in all); also has weight",
        ),
        (lambda: nn.Linear(2, 2).state_dict(), "also has weight, bias"),
        (lambda: dict(net().named_parameters()), "holds no running statistics: lacks bn.running_mean, bn.running_var"),
        (
            lambda: net().state_dict() | {"fc.bias": torch.zeros(7)},
            "does not fit the model: fc.bias is (7,) in the file, (10,) in the model",
        ),
        (lambda: net().state_dict() | {"fc.bias": "seven"}, "does not fit the model: "),
        (
            lambda: net().state_dict() | {"fc.bias": torch.ones(10, dtype=torch.int8)},  # quantized
            "does not fit the model: fc.bias is int8 in the file",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(place: Path, content: Callable[[], Any], said: str) -> None:
    torch.save(content(), place / "weights.pt")
    message = refusal(RecordError, lambda: own("Net", place / "weights.pt"))
    assert message.startswith(f"{place / 'weights.pt'}: ")
    assert said in message


def test_a_key_chooses_among_weights_and_the_choice_is_said(place: Path) -> None:
    first, second = net().state_dict(), {name: value + 1 for name, value in net().state_dict().items()}
    torch.save({"state_dict": first, "state_dict_ema": second, "epoch": 3}, place / "two.pt")
    found = own("Net", place / "two.pt")
    assert torch.equal(found.model.state_dict()["fc.bias"], first["fc.bias"])
    assert "weights: state_dict, not state_dict_ema (--key)" in found.about
    chosen = find(DATA, "mymodels:Net", place / "two.pt", "digits", key="state_dict_ema")
    assert torch.equal(chosen.model.state_dict()["fc.bias"], second["fc.bias"])
    assert chosen.place.keys == ("state_dict_ema",)
    message = refusal(ConfigError, lambda: find(DATA, "mymodels:Net", place / "two.pt", "digits", key="state_dict_ena"))
    assert "--key state_dict_ena: " in message
    assert "did you mean state_dict_ema?" in message
    with pytest.raises(ConfigError, match="--key x: only with --checkpoint"):
        find(DATA, "mymodels:Net", None, "digits", key="x")


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # of TorchScript
def test_a_file_that_is_no_torch_file_of_tensors_is_refused_by_what_it_holds(place: Path) -> None:
    torch.save(net(), place / "whole.pt")
    np.savez(place / "weights.npz", **{name: value.numpy() for name, value in net().state_dict().items()})
    torch.jit.save(torch.jit.trace(net().eval(), torch.zeros(1, 1, 8, 8)), place / "traced.pt")
    (place / "weights.safetensors").write_bytes(b"\0" * 16)
    (place / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n")
    (place / "page.pt").write_text("<!DOCTYPE html>404")
    (place / "weights.pt.gz").write_bytes(gzip.compress(b"x"))
    (place / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (place / "arrays.pkl").write_bytes(pickle.dumps({"fc.bias": np.zeros(10)}, protocol=2))
    with zipfile.ZipFile(place / "packed.zip", "w") as archive:
        archive.write(place / "page.pt")
    for name, why in {
        "pointer.pt": "a Git LFS pointer",
        "page.pt": "a page of HTML",
        "weights.pt.gz": "gzip: unpack it first",
        "weights.h5": "HDF5",
        "arrays.pkl": "no file of tensors that torch.save wrote",
        "packed.zip": "no file of tensors that torch.save wrote",
        "whole.pt": "it holds mymodels.Net, and to make one runs its code",
        "weights.npz": "arrays of numpy.savez",
        "traced.pt": "TorchScript",
        "weights.safetensors": "safetensors is not installed|SafetensorError",
    }.items():
        with pytest.raises(RecordError, match=f"{name}: refused ..?({why}).*\n.*let the factory load the file"):
            own("Net", place / name)


def test_a_file_that_ends_too_early_is_said_to_be_damaged(place: Path) -> None:
    torch.save(net().state_dict(), place / "cut.pt")
    whole = (place / "cut.pt").read_bytes()
    for length in (len(whole) // 2, len(whole) - 8, 20):
        (place / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(RecordError, match=r"cut\.pt: is damaged or incomplete$"):
            own("Net", place / "cut.pt")


def test_a_safetensors_file_is_read_where_its_library_is_installed(place: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    library.save_file(net().state_dict(), place / "weights.safetensors")
    found = own("Net", place / "weights.safetensors").model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in net().state_dict().items())


def test_a_missing_file_is_named(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.pt: cannot be read: No such file"):
        own("Net", place / "nowhere.pt")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("broken", "called without arguments it fails: OSError: no weights on this disk"),
        ("needy", "called without arguments it fails: TypeError: "),
        ("number", "must return a torch.nn.Module, not int"),
        ("made", "is a model itself (Flatten)"),
        ("TwoInputs", "on images of shape (2, 1, 8, 8) (N, C, H, W) it fails: TypeError: "),
        ("few", "for 2 images of 10 classes: in evaluation mode it returns shape (2, 4)"),
        ("colour", "on images of shape (2, 1, 8, 8) (N, C, H, W) it fails: RuntimeError: "),
    ],
)
def test_a_model_that_cannot_be_examined_is_refused(place: Path, factory: str, said: str) -> None:
    message = refusal(ConfigError, lambda: own(factory))
    assert message.startswith(f"--module mymodels:{factory}: ")
    assert said in message


def test_what_has_no_meaning_beside_a_module_is_refused(place: Path) -> None:
    assert "needs data" in refusal(ConfigError, lambda: own("Net", data=None))
    assert refusal(ConfigError, lambda: own("Net", None, "norm=layer")).startswith("norm=layer: cannot be set")
    assert "model.width" in refusal(ConfigError, lambda: own("Net", None, "model.width=3"))
    assert "model.input_norm=batch" in refusal(ConfigError, lambda: own("Net", None, "model.input_norm=batch"))
    for command, override, said in [
        ("probe", "input_norm=none", "did you mean model.input_norm=none?"),
        ("shift", "batch_size=4", "did you mean data.batch_size=4?"),
        ("probe", "eval.stats=batch", 'the table "Statistics to evaluate with" of `bnlab probe`'),
        ("shift", "eval.shifted=blur-5", "`bnlab shift --shift NAME --severity N`"),
        ("probe", "eval.batch_size=4", "`bnlab shift --batch-size N`"),
        ("recalibrate", "eval.prior=4", "`bnlab shift --stats mixed`"),
        ("recalibrate", "trainer.epochs=4", "these can: data, model.input_norm, "),
    ]:
        with pytest.raises(ConfigError, match=f"^{re.escape(override)}: (.|\n)*{re.escape(said)}"):
            check_target([override], "mymodels:Net", None, "digits", command=command)
    check_target(["eval.batch_size=4"], "mymodels:Net", None, "digits", command="recalibrate")
    check_target(["eval.prior=4"], "mymodels:Net", None, "digits", command="shift")
    with pytest.raises(ConfigError, match="runs/x: with --module only overrides are allowed"):
        own("Net", None, "runs/x")
    assert "no such key; did you mean data.path?" in refusal(
        ConfigError, lambda: own("Net", None, "data.paths=3", data="folder")
    )


# ---------------------------------------------------------------- a module that needs care

CARE = """
import os
import sys
from collections import deque, namedtuple
from dataclasses import dataclass
import numpy as np
import torch
from torch import nn
from mymodels import Net

Outputs = namedtuple("Outputs", ["logits", "aux"])


@dataclass
class Held:
    main: torch.Tensor
    other: torch.Tensor


class Returning(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.net = kind, Net()

    def forward(self, x):
        y = self.net(x)
        if self.kind == "auxiliary":
            return Outputs(y, -y) if self.training else y
        return {
            "dict": lambda: {"logits": y, "hidden": x},
            "tuple": lambda: (y, x.flatten(1)),
            "nested": lambda: {"heads": (y, x)},
            "two": lambda: Held(y, -y),
            "more": lambda: torch.cat([y, y], 1),
            "one number": lambda: y[:, :1],
            "map": lambda: y[:, :, None, None].expand(-1, -1, 8, 8),
            "squeezed": lambda: y.squeeze(),
            "none": lambda: None,
            "complex": lambda: torch.complex(y, y),
            "in place": lambda: self.net(x.mul_(2)),
            "exits": lambda: sys.exit(4),
        }[self.kind]()


def named(kind):
    return lambda: Returning(kind)


auxiliary, dictionary, pair, nested, two, more, number, map_, squeezed, nothing, exits = map(named, [
    "auxiliary", "dict", "tuple", "nested", "two", "more", "one number", "map", "squeezed", "none", "exits"])
complex_, in_place = named("complex"), named("in place")


def noisy():
    print("hello from the factory")
    os.system("echo hello from a process")
    return Net()


def quits():
    sys.exit(3)


def raises():
    raise BaseException("enough")


def compiled():
    return torch.compile(Net(), backend="eager")


def parallel():
    return nn.DataParallel(Net())


def inside():
    net = Net()
    net.bn = torch.compile(nn.DataParallel(net.bn), backend="eager")
    return net


def scripted():
    return torch.jit.trace(Net().eval(), torch.zeros(2, 1, 8, 8))


class Own(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.register_buffer("running_std", torch.ones(4))

    def forward(self, x):
        if self.training or self.how == "leaky":
            with torch.no_grad():
                self.running_std.lerp_(x.std((0, 2, 3)) + 2, 0.1)
        if self.how == "by gradient" and torch.is_grad_enabled():
            return x * 100
        return x / self.running_std[:, None, None]


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.moving_mean = torch.zeros(4, 1, 1)

    def forward(self, x):
        if self.training:
            self.moving_mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3))[:, None, None])
        return x - self.moving_mean


def attributes():
    net = Net()
    net.bn = Attributes()
    return net


def frozen_parameters():
    net = Net()
    net.bn = Attributes()
    net.bn.moving_mean = nn.Parameter(net.bn.moving_mean, requires_grad=False)
    return net


class Random(Net):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x))


class Shares(Net):
    def forward(self, x):
        return super().forward(x) if self.training else super().forward(x).softmax(1)


class Sets(nn.BatchNorm2d):
    def forward(self, x):
        return x - self.running_mean[:4, None, None]


def sets():
    net = Net()
    net.bn = Sets(8)
    return net


class Kept(nn.Module):
    def __init__(self, where):
        super().__init__()
        self.where = where
        if where == "object":
            self.held = type("Held", (), {"mean": torch.zeros(4, 1, 1)})()
        else:
            kinds = {"dict": {"mean": torch.zeros(4, 1, 1)}, "array": np.zeros((4, 1, 1))}
            self.held = kinds.get(where, deque(maxlen=3))

    def forward(self, x):
        mean = x.detach().mean((0, 2, 3))[:, None, None] + 1
        if self.training and self.where == "object":
            self.held.mean = mean
        elif self.training and self.where == "dict":
            self.held["mean"] = mean
        elif self.training and self.where == "array":
            self.held += mean.numpy()
        elif self.training:
            self.held.append((mean, None))
        held = {
            "object": lambda: self.held.mean,
            "dict": lambda: self.held["mean"],
            "array": lambda: torch.from_numpy(self.held).float(),
        }.get(self.where, lambda: sum((each for each, _ in self.held), torch.zeros(4, 1, 1)))()
        return x - held


class Recalls(Net):
    def __init__(self):
        super().__init__()
        self.all, self.wide = [], torch.ones(1).expand(3)

    def forward(self, x):
        self.last = self.bn(self.conv(x))
        self.all.append(self.last)
        return self.fc(self.last.flatten(1))


class Quiet(Net):
    def train(self, mode=True):
        super().train(mode)


class Halved(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x / 2)


class Turned(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x.transpose(1, 3)).transpose(1, 3)


class Masked(nn.BatchNorm1d):
    def forward(self, x, mask):
        return x.index_put((mask,), super().forward(x[mask]))


class Bright(Net):
    def forward(self, x):
        flat = x.flatten(1)
        return self.fc(self.bn(flat, flat.sum(1) > 0).repeat(1, 4))


class Pieces(nn.BatchNorm2d):
    def forward(self, x):
        return torch.cat([super(Pieces, self).forward(part) for part in x.split(8)])


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.momentum = 0.9
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x):
        if self.training:
            mean, var = x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3), correction=0)
            self.running_mean.mul_(0.9).add_(0.1 * mean)
            self.running_var.mul_(0.9).add_(0.1 * var)
        return (x - self.running_mean[:, None, None]) / self.running_var[:, None, None].sqrt()


def with_norm(make, kind=Net):
    def factory():
        net = kind()
        net.bn = make()
        return net
    return factory


in_object, in_dict, in_array, in_deque = (
    with_norm(lambda where=where: Kept(where)) for where in ("object", "dict", "array", "deque")
)
halved, pieces, slow = with_norm(lambda: Halved(4)), with_norm(lambda: Pieces(4)), with_norm(Slow)
turned = lambda: nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), Turned(8), nn.Flatten(), nn.Linear(512, 10))
masked = with_norm(lambda: Masked(64), Bright)


def passing_by():
    net = Net()
    bn = net.bn
    net.bn = nn.Identity()
    net.kept = bn
    return net


def own(how):
    def make():
        net = Net()
        net.bn = Own(how)
        return net
    return make


running_std, leaky, by_gradient = map(own, ["plain", "leaky", "by gradient"])


def half():
    return Net().half()


def brain():
    return Net().bfloat16()


def double():
    return Net().double()


def frozen():
    net = nn.Sequential(Net(), nn.BatchNorm1d(10), nn.Dropout())
    net[0].eval()
    return net


def handed_over():
    return Net().eval()
"""


@pytest.fixture
def care(place: Path) -> Iterator[Path]:
    (place / "mycare.py").write_text(CARE)
    sys.modules.pop("mycare", None)
    yield place
    sys.modules.pop("mycare", None)


def careful(factory: str, output: str | None = None) -> TrainedModel:
    return find(DATA, f"mycare:{factory}", None, "digits", output=output)


def test_logits_are_found_among_what_a_model_returns(care: Path) -> None:
    images = torch.zeros(3, 1, 8, 8)
    for factory, output, name in [
        ("auxiliary", None, None),
        ("dictionary", None, "logits"),
        ("pair", None, "0"),
        ("nested", None, "heads.0"),
        ("two", "other", "other"),
        ("two", "main", "main"),
    ]:
        found = careful(factory, output)
        with torch.no_grad():
            logits = found.model(images)
            expected = found.model.net(images)  # type: ignore[operator]
        assert torch.equal(logits, -expected if name == "other" else expected), factory
        assert (f"output {name}" in found.about) == (name is not None), factory
    training = careful("auxiliary").model.train()
    assert training(images).shape == (3, 10)
    assert "20 outputs for 10 classes" in careful("more").about
    squeezed = careful("squeezed")
    assert squeezed.model(images[:1]).shape == (1, 10)
    assert any("loses the batch axis of a single image" in said for said in squeezed.about)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")  # of TorchScript
@pytest.mark.parametrize(
    ("factory", "output", "said", "way_out"),
    [
        ("two", None, "in evaluation mode it returns a Held with main (2, 10), other (2, 10)", "--output main"),
        ("two", "aux", "--output aux: in evaluation mode it returns a Held", "there are: main, other"),
        ("number", None, "it returns shape (2, 1)", "as of regression"),
        ("map_", None, "it returns shape (2, 10, 8, 8)", "as of segmentation"),
        ("nothing", None, "it returns a NoneType", "returns its logits alone"),
        ("complex_", None, "it returns shape (2, 10) of complex numbers", "returns its logits alone"),
        ("sets", None, "layer bn (Sets) keeps 8 running means and is given shape (2, 4, ", "keeps one set"),
        ("scripted", None, "holds TorchScript (TopLevelTracedModule)", "take the nn.Module that was"),
    ],
)
def test_what_gives_no_logits_is_refused_with_a_way_out(
    care: Path, factory: str, output: str | None, said: str, way_out: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        careful(factory, output)
    first, _, second = str(caught.value).partition("\n")
    assert said in first
    assert way_out in second


def test_a_model_that_writes_into_its_images_changes_no_image(care: Path) -> None:
    found = careful("in_place")
    assert not found.module.unseen  # type: ignore[union-attr]
    images, _ = next(found.test.sequential(4))
    before = images.clone()
    with torch.no_grad():
        assert torch.equal(found.model(images), found.model(images))
    assert torch.equal(images, before)


def test_probabilities_are_taken_for_what_they_are(care: Path) -> None:
    shares, logits = careful("Shares"), careful("Net")
    assert "returns probabilities in evaluation mode: their logarithm is taken" in shares.about
    shares.model.load_state_dict(logits.model.state_dict())
    one, other = (nn.functional.cross_entropy(*_some(each)) for each in (shares, logits))
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("factory", ["in_dict", "in_array", "in_deque"])
def test_what_lists_and_dictionaries_keep_comes_back(care: Path, factory: str) -> None:
    found = careful(factory)
    assert found.module.unseen == ["keeps something in training that bnlab does not read: bn (Kept)"]  # type: ignore[union-attr]
    images, _ = _some(found)
    with preserved(found.model), torch.no_grad():
        found.model.train()(torch.ones(4, 1, 8, 8))
        assert not torch.equal(found.model.eval()(next(found.train.sequential(16))[0]), images)
    assert torch.equal(_some(found)[0], images)


def test_what_is_kept_where_it_cannot_come_back_is_refused(care: Path) -> None:
    assert "a pass in training mode changes what evaluation gives" in refusal(ConfigError, lambda: careful("in_object"))


def test_what_a_model_remembers_of_its_last_images_is_no_statistics(care: Path) -> None:
    assert careful("Recalls").module.unseen == []  # type: ignore[union-attr]
    assert not careful("Quiet").model.training


def test_statistics_of_something_else_than_the_input_are_refused(care: Path) -> None:
    """Or what is put into them, by recalibrating or to measure, would be of something else than the layer's own."""
    for factory, said in {
        "halved": "layer bn (Halved) averages something else than its input",
        "turned": "layer 1 (Turned) averages something else than its input",
        "masked": "layer bn (Masked) averages something else than its input",
    }.items():
        assert said in refusal(ConfigError, lambda factory=factory: careful(factory)), factory  # type: ignore[misc]
    for factory in ("pieces", "slow", "Net"):
        assert careful(factory).module.unseen == [], factory  # type: ignore[union-attr]


@pytest.mark.parametrize("factory", ["attributes", "frozen_parameters"])
def test_what_is_kept_elsewhere_than_in_buffers_comes_back(care: Path, factory: str) -> None:
    model = careful(factory).model
    with preserved(model):
        model.train()
        model(torch.ones(4, 1, 8, 8))
        assert model.bn.moving_mean.any()  # type: ignore[union-attr,operator]
    assert not model.bn.moving_mean.any()  # type: ignore[union-attr,operator]


def _some(found: TrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = next(found.train.sequential(16))
    with torch.no_grad():
        return found.model.eval()(images), labels


def test_what_cannot_be_measured_by_layer_is_named(care: Path) -> None:
    for factory, said in {
        "running_std": ["keeps something in training that bnlab does not read: bn (Own)"],
        "leaky": ["changes in evaluation, which then depends on what was evaluated before: bn (Own)"],
        "by_gradient": [
            "evaluation depends on torch.is_grad_enabled(): it is measured without gradients",
            "keeps something in training that bnlab does not read: bn (Own)",
        ],
        "attributes": ["keeps something in training that bnlab does not read: bn (Attributes)"],
        "frozen_parameters": ["keeps something in training that bnlab does not read: bn (Attributes)"],
        "Random": ["evaluation is random: the same images come out otherwise each time"],
        "passing_by": ["never called, so nothing of it is measured: kept (BatchNorm2d)"],
        "handed_over": [],
    }.items():
        found = careful(factory)
        assert found.module is not None
        assert found.module.unseen == said, factory
        assert [each for each in found.about if each in said] == said
    for factory, last in (
        ("running_std", "If these are moving averages, call the buffers running_mean and running_var"),
        ("passing_by", "never called, so nothing of it is measured: kept (BatchNorm2d)"),
    ):
        done = bnlab("recalibrate", "--module", f"mycare:{factory}", "--data", "digits", *DATA, cwd=care)
        assert done.returncode == 2
        assert "nothing to recalibrate" in done.stderr
        assert "leave it" not in done.stderr or factory != "running_std"
        assert done.stderr.splitlines()[-1].startswith(last)


def test_what_bnlab_does_not_read_is_not_called_zero(care: Path) -> None:
    """A gap that lies in layers of one's own is theirs, and no row says 0 that nobody measured."""
    trained = careful("running_std")
    with torch.no_grad():
        trained.model.bn.running_std.fill_(50.0)  # type: ignore[union-attr,operator]
        trained.model.fc.weight.mul_(50.0)  # type: ignore[union-attr,operator]
    found = examined(trained, "bnlab recalibrate", 64, True, lambda words: None)
    said = "Most of it is in what bnlab does not read: bn (Own). If these are moving averages"
    assert "At chance in both modes" in found.verdict  # it is not trained, so the causes stand in the parts alone
    assert said in " ".join(repr(found).split())
    assert "-0.0000" not in repr(found)
    *statistics, dropout, other, _ = found.probing.decompositions[-1].terms
    why = "not measurable: bnlab does not read bn (Own)"
    assert {(term.absent, math.isnan(term.moved)) for term in statistics[:6]} == {(why, True)}
    assert (dropout.moved, other.moved > 0) == (0, True)
    gap = found.probing.gaps[-1]
    assert all(map(math.isnan, (gap.train_accuracy.value, gap.acc_gap.value, gap.logit_rms, gap.mate_noise)))  # type: ignore[arg-type]
    assert math.isfinite(gap.eval_accuracy.value)
    text = repr(found)
    assert "no layer" not in text
    assert text.split("Layers by depth")[1].split("\n")[1] == why

    study = shift_study(trained, ["noise"], [1], ["running", "batch"], 64, lambda words: None)
    out = Terminal(io.StringIO())
    with out.capture() as shown:
        out.print(shift_table(study, out))
    assert "keeps something in training that bnlab does not read: bn (Own)" in shown.get()
    assert "one and the same" not in shown.get()


@pytest.mark.parametrize("factory", ["compiled", "parallel", "inside"])
def test_a_wrapper_is_taken_off_and_names_stay_those_of_the_file(care: Path, factory: str) -> None:
    found = careful(factory)
    assert [name for name, _ in found.model.named_modules()] == ["", "conv", "bn", "fc"]
    assert any(said.endswith("taken off") for said in found.about)
    import mycare  # type: ignore[import-not-found]

    assert list(found.place.names.values()) == list(getattr(mycare, factory)().state_dict())


@pytest.mark.parametrize(("factory", "dtype"), [("half", "float16"), ("brain", "bfloat16"), ("double", "float64")])
def test_a_model_is_fed_its_own_dtype(care: Path, factory: str, dtype: str) -> None:
    found = careful(factory)
    assert f"in {dtype}" in found.about
    assert found.model(torch.zeros(2, 1, 8, 8)).dtype == getattr(torch, dtype)


def test_what_the_factory_froze_stays_frozen_and_is_said(care: Path) -> None:
    found = careful("frozen")
    assert "1 of 2 norm layers are in eval mode as the factory left them" in found.about
    net, norm, dropout = found.model.train()  # type: ignore[misc]
    assert not any(module.training for module in net.modules())
    assert norm.training
    assert dropout.training
    whole = careful("handed_over")
    assert whole.model.train().bn.training  # type: ignore[union-attr]
    assert not any("eval mode" in said for said in whole.about)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("quits", "called without arguments it ends the program: SystemExit: 3"),
        ("raises", "called without arguments it ends the program: BaseException: enough"),
        ("exits", "on images of shape (2, 1, 8, 8) (N, C, H, W) it ends the program: SystemExit: 4"),
    ],
)
def test_a_module_that_ends_the_program_is_told_with_exit_code_1(care: Path, factory: str, said: str) -> None:
    with pytest.raises(BnlabError) as caught:
        careful(factory)
    assert caught.value.exit_code == 1
    assert said in str(caught.value)


def test_what_a_module_prints_goes_to_stderr(care: Path) -> None:
    options = ["--data", "digits", "--samples", "64", *DATA, "--format", "csv"]
    done = bnlab("probe", "--module", "mycare.py:noisy", *options, cwd=care)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("table,split,name,metric,value,low,high,n\n")
    assert "hello" not in done.stdout
    assert "hello from the factory" in done.stderr
    assert "hello from a process" in done.stderr
    missing = bnlab("probe", "--module", "nowhere.py:noisy", *options, cwd=care)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is no file nowhere.py" in missing.stderr


# ---------------------------------------------------------------- a run


def test_a_run_is_taken_as_it_was_trained(run: Path) -> None:
    found = find([str(run)], None, None, None)
    assert (found.label, found.folder, found.batch_size, found.config.norm.name) == (str(run), run, 32, "batch")
    saved = checkpoint.load(run)
    assert found.state is not None
    assert found.state["step"] == saved["step"] == 20
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, saved["model"][name]), name
    train, test = found.probe("train", 100), found.probe("test")
    assert (len(train), train.batch_size, train.augmented) == (96, 32, None)
    assert torch.equal(test.labels, found.probe("test").labels)


def test_other_weights_may_stand_in_for_those_of_the_run(run: Path, tmp_path: Path) -> None:
    weights = {name: value + 1 for name, value in checkpoint.load(run)["model"].items()}
    torch.save(weights, tmp_path / "other.pt")
    found = find([str(run)], None, tmp_path / "other.pt", None)
    assert found.label == str(tmp_path / "other.pt")
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_what_a_command_does_not_read_of_a_run_is_refused(run: Path) -> None:
    for command, override, said in [
        ("probe", "eval.batch_size=4", "`bnlab shift --batch-size N`"),
        ("recalibrate", "eval.prior=4", "`bnlab shift --stats mixed`"),
    ]:
        with pytest.raises(ConfigError, match=f"^{override}: has no effect on a run here\n.*{re.escape(said)}"):
            check_target([str(run), override], None, None, None, command=command)
    check_target([str(run), "eval.batch_size=4"], None, None, None, command="recalibrate")


def test_what_names_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    def message(*targets: str, data: str | None = None) -> str:
        with pytest.raises(BnlabError) as caught:
            find(list(targets), None, None, data)
        return str(caught.value)

    assert message().startswith("RUN is missing")
    assert message("data.root=x").startswith("RUN is missing")
    assert "no run here" in message(str(tmp_path))
    assert message(str(run), "other").startswith("other: only overrides can follow RUN")
    assert message(str(run), data="mnist").startswith("--data mnist: only with --module")
    assert message(str(run), "norm=layer").startswith("norm=layer: ")
