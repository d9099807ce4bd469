"""What is examined: a run or a module of the user's own, its weights and data, and everything that is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_cli import SHORT, bnlab
from torch import Tensor, nn

from bnlab.errors import BnlabError, ConfigError, RecordError
from bnlab.experiment.trained_model import TrainedModel, find
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


@pytest.mark.parametrize(
    "packed",
    [
        lambda state: state,
        dict,
        lambda state: {"model": state, "step": 3},
        lambda state: {"model_state_dict": dict(state)},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        _lightning,
        lambda state: {name: value for name, value in state.items() if name != "bn.num_batches_tracked"},
    ],
    ids=["plain", "dict", "model", "nested", "parallel", "parallel-nested", "lightning-compiled", "uncounted"],
)
def test_weights_are_found_however_a_script_packed_them(place: Path, packed: Callable[[Any], Any]) -> None:
    trained = net()
    trained(torch.randn(4, 1, 8, 8))
    torch.save(packed(trained.state_dict()), place / "weights.pt")
    found = own("Net", place / "weights.pt")
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
    assert "lacks module.conv.weight" in refusal(RecordError, lambda: own("wrapped", place / "other.pt"))


def test_a_model_that_shapes_itself_by_its_input_is_taken(place: Path) -> None:
    assert own("lazy").model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: net(), "refused ("),
        (lambda: [1, 2], "refused (holds a list)"),
        (lambda: {0: torch.ones(1)}, "holds no state dict"),
        (lambda: {"epoch": 3}, "lacks conv.weight, conv.bias, bn.weight, … (8 in all); also has epoch"),
        (lambda: nn.Linear(2, 2).state_dict(), "also has weight, bias"),
        (
            lambda: net().state_dict() | {"fc.bias": torch.zeros(7)},
            "does not fit the model: fc.bias is (7,) in the file, (10,) in the model",
        ),
        (lambda: net().state_dict() | {"ema": torch.zeros(1)}, "does not fit the model: also has ema"),
        (lambda: net().state_dict() | {"fc.bias": "seven"}, "does not fit the model: "),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(place: Path, content: Callable[[], Any], said: str) -> None:
    torch.save(content(), place / "weights.pt")
    message = refusal(RecordError, lambda: own("Net", place / "weights.pt"))
    assert message.startswith(f"{place / 'weights.pt'}: ")
    assert said in message


def test_a_missing_file_is_named(place: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere\.pt: cannot be read: No such file"):
        own("Net", place / "nowhere.pt")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("broken", "called without arguments it fails: OSError: no weights on this disk"),
        ("quits", "called without arguments it fails: SystemExit: 3"),
        ("needy", "called without arguments it fails: TypeError: "),
        ("number", "must return a torch.nn.Module, not int"),
        ("Pair", "must return logits of shape (2, 10 or more) for 2 images of 10 classes, not tuple"),
        ("few", "for 2 images of 10 classes, not shape (2, 4)"),
        ("colour", "fails on images of shape (2, 1, 8, 8) (N, C, H, W): RuntimeError: "),
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
    with pytest.raises(ConfigError, match="runs/x: with --module only overrides are allowed"):
        own("Net", None, "runs/x")
    assert "no such key; did you mean data.path?" in refusal(
        ConfigError, lambda: own("Net", None, "data.paths=3", data="folder")
    )


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
