"""The conformance card: what every strategy declares is what is found; modules with one fault each are found out."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from helpers_cases import for_each
from helpers_cli import Done, bnlab
from rich.cells import cell_len
from torch import Tensor, nn

from bnlab.cli.check import check
from bnlab.conformance.card import examine
from bnlab.conformance.findings import Card, Finding
from bnlab.conformance.proving import CHECKS, apart
from bnlab.conformance.subject import Subject, of_factory, of_function, of_strategy
from bnlab.errors import BnlabError, ConfigError
from bnlab.norms.strategy import Facts, strategies
from bnlab.report.check_report import CARD_FORMATS, card_table, error_text, matrix_table
from bnlab.report.console import Terminal


def found(card: Card) -> dict[str, bool | None]:
    return {finding.about.key: finding.found for finding in card.findings}


def finding(card: Card, key: str) -> Finding:
    return next(f for f in card.findings if f.about.key == key)


# ---------------------------------------------------------------- strategies


@pytest.fixture(scope="module")
def cards() -> dict[str, Card]:
    return {name: examine(of_strategy(strategies[name]())) for name in strategies}


@for_each("name", list(strategies))
def test_every_strategy_is_what_it_declares(cards: dict[str, Card], name: str) -> None:
    against = [(f.about.key, f.found, f.error, f.note) for f in cards[name].contradictions]
    assert against == []
    assert [f.about.key for f in cards[name].findings] == list(CHECKS)


@pytest.mark.slow
@for_each(
    ("name", "parameters", "label"),
    [
        ("batch", {"eps_outside": True, "momentum": None}, "batch momentum=null eps_outside=true"),
        ("batch", {"stat_samples": 4}, "batch stat_samples=4"),
        ("batch", {"eps": 1e-12}, "batch eps=1e-12"),
        ("ghost", {"size": 2, "update": "sequential"}, "ghost size=2 update=sequential"),
        ("ghost", {"size": 8, "affine": False}, "ghost size=8 affine=false"),
        ("layer", {"over": "channel", "eps_outside": True}, "layer over=channel eps_outside=true"),
    ],
)
def test_with_other_parameters_too(name: str, parameters: dict[str, Any], label: str) -> None:
    card = examine(of_strategy(strategies[name](**parameters)))
    assert card.contradictions == []
    assert set(card.subject.split()) == set(label.split())


def test_a_ghost_is_tried_with_batches_larger_than_it() -> None:
    assert examine(of_strategy(strategies["ghost"](size=20))).batch > 2 * 20


LIES = {"exact_gradient": ("twice", "vmap"), "reads_batch": ("workers",)}  # what else a false fact is against


@pytest.mark.slow
@for_each(
    ("fact", "key"),
    [
        ("reads_batch", "mode"),
        ("keeps_stats", "past"),
        ("cancels_bias", "bias"),
        ("exact_gradient", "gradient"),
        ("cancels_scale", "scale"),
        ("cancels_shift", "shift"),
        ("needs_batch", "one_sample"),
    ],
)
def test_a_false_fact_is_a_contradiction(fact: str, key: str) -> None:
    facts = replace(Facts(True, True, True, False, True), cancels_scale=True, cancels_shift=True)
    lying = replace(of_strategy(strategies["batch"]()), facts=replace(facts, **{fact: not getattr(facts, fact)}))
    against = {f.about.key for f in examine(lying).contradictions}
    assert key in against
    assert against <= {key, "mates_train", "one_sample", *LIES.get(fact, ())}


# ---------------------------------------------------------------- modules with one fault each


class Right(nn.Module):
    """Batch normalization by its formula; the methods are what the faulty ones change."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        dims = (0, *range(2, x.dim()))
        return wide.mean(dims), wide.var(dims, correction=0)

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = self.statistics(x)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var, 0.1)
        return self.scaled(x, mean, var)

    def scaled(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (x.dim() - 2))
        y = (x - mean.view(shape)) * (self.weight / (var + self.eps).sqrt()).view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


class EvaluatesWithTheBatch(Right):
    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, *self.statistics(x))


class ForgetsTheMean(Right):
    """Its gradient treats the mean as a constant."""

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x)
        return mean.detach(), var


class Cancels(Right):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = super().statistics(x)[0]
        square = super().statistics(x * x)[0]
        return mean, (square - mean * mean).clamp(min=0)


class Contiguous(Right):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).contiguous()


class ReadsMemory(Right):
    """Takes channels_last for contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and not x.is_contiguous():
            x = x.permute(0, 2, 3, 1).reshape(x.shape)
        return super().forward(x)


class RefusesOne(Right):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("one sample has no variance\nat all")
        return super().forward(x)


class Widens(Right):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.weight.dtype)


class Unguarded(Right):
    def scaled(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (x.dim() - 2))
        return ((x - mean.view(shape)) / var.sqrt().view(shape)).to(x.dtype)


class Noisy(Right):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-12 * torch.randn(x.shape).to(x.dtype)


class LeavesTheRest(Right):
    """Ghosts of four samples; a remainder passes as it is."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or len(x) < 4:
            return super().forward(x)
        whole = len(x) // 4 * 4
        return torch.cat([*(super(LeavesTheRest, self).forward(part) for part in x[:whole].split(4)), x[whole:]])


class Curved(Right):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Absolute(Right):
    """Does not subtract the mean."""

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x)
        return 0 * mean, var


class Unscaled(Right):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x)
        return mean, 0 * var + 1


class UnbiasedPixels(nn.Module):
    """Normalizes each channel of each sample; one pixel has no unbiased variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("images only")
        var, mean = torch.var_mean(x.double(), (2, 3), keepdim=True)
        return ((x - mean) / (var + 1e-5).sqrt()).to(x.dtype)


class InPlace(Right):
    """Writes into its input; without a gradient, for that would be an error."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not x.requires_grad:
            x.zero_()
        return y


class Unbiased(Right):
    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = super().statistics(x)
        count = x.numel() / x.shape[1]
        return mean, var * count / max(count - 1, 1)


class Unsaved(Right):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("running_mean", torch.zeros(channels), persistent=False)


class LearnsStatistics(Right):
    """Its running mean is a parameter, which an optimizer would move."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        del self.running_mean
        self.running_mean = nn.Parameter(torch.zeros(channels))


class TooLittleEpsilon(Right):
    def scaled(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return super().scaled(x, mean, var - 0.9 * self.eps)


@pytest.fixture(scope="module")
def right() -> Card:
    return examine(of_function("right", Right))


def test_a_sound_module_has_what_batch_norm_has(right: Card, cards: dict[str, Card]) -> None:
    assert found(right) == found(cards["batch"])
    assert not right.declared
    assert right.contradictions == []


@pytest.mark.slow
@for_each(
    ("faulty", "keys", "note"),
    [
        (EvaluatesWithTheBatch, {"mates_eval", "size_eval", "mode", "past", "folding"}, ""),
        (ForgetsTheMean, {"gradient", "twice"}, ""),
        (Cancels, {"offset", "one_class"}, ""),
        (Contiguous, {"layout"}, "not channels_last"),
        (ReadsMemory, {"layout"}, ""),
        (RefusesOne, {"one_sample", "size_eval"}, "fails: ValueError: one sample has no variance"),
        (Widens, {"bfloat16", "float16"}, "returns float32"),
        (Unbiased, {"merged", "chain", "moments", "undone"}, ""),
        (Unsaved, {"buffers"}, "running_mean is learned, or not in the state dict"),
        (LearnsStatistics, {"buffers", "vmap"}, ""),
        (TooLittleEpsilon, {"small", "merged", "moments", "undone"}, ""),
        (Unguarded, {"constant", "one_class", "one_sample", "small", "merged", "moments", "undone"}, "not finite"),
        (Noisy, {"repeat", "vmap", "buffers"}, ""),
        (LeavesTheRest, {"ragged", "bias", "shift", "scale", "workers", "merged", "chain", "moments", "undone"}, ""),
        (Curved, {"folding", "merged", "moments", "undone"}, ""),
        (Absolute, {"bias", "shift", "merged", "chain", "undone"}, ""),
        (Unscaled, {"scale", "merged", "chain", "moments", "undone"}, ""),
        (InPlace, set(), ""),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_fault_is_found_and_nothing_else(
    right: Card, faulty: Callable[[int], nn.Module], keys: set[str], note: str
) -> None:
    card = examine(of_function("faulty", faulty))
    differing = {key for key, holds in found(card).items() if holds != found(right)[key]}
    assert differing == keys
    if note:
        assert any(note in finding(card, key).note for key in keys)
        assert all("\n" not in f.note for f in card.findings)


STATISTICS = ("workers", "merged", "chain", "moments", "undone", "buffers")
WHOLE = dict(zip(STATISTICS, (False, True, True, True, True, True), strict=True))
GIVEN = WHOLE | {"workers": True}  # their statistics are those of the set, whoever has which part
PARTS = dict(zip(STATISTICS, (True, False, False, False, False, True), strict=True))
OWN = dict(zip(STATISTICS, (False, False, False, False, False, True), strict=True))


def test_what_strategies_do_with_the_statistics_of_a_batch(cards: dict[str, Card]) -> None:
    known = {"batch": WHOLE, "sync": WHOLE, "population": GIVEN, "frozen": GIVEN, "ghost": PARTS}
    known |= dict.fromkeys(("renorm", "online", "streaming", "noisy"), OWN)
    for name, card in cards.items():
        holds = {key: found(card)[key] for key in STATISTICS}
        assert holds == known.get(name, {"workers": True} | dict.fromkeys(STATISTICS[1:])), name
        assert found(card)["small"] == (name != "noisy"), name
        assert found(card)["float16"], name


def test_a_module_for_images_only_is_tried_on_images_only() -> None:
    card = examine(of_function("pixels", UnbiasedPixels))
    assert card.images_only
    assert found(card)["mates_train"]
    assert not found(card)["one_pixel"]
    assert finding(card, "one_pixel").note == "output not finite"
    assert finding(card, "scale").note.startswith("with its own epsilon")


def test_the_gradient_is_judged_as_gradcheck_judges_it() -> None:
    for make, agrees in ((Right, True), (ForgetsTheMean, False)):
        module = make(3).double()
        x = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        assert torch.autograd.gradcheck(module, (x,), raise_exception=False) is agrees


def test_a_strategy_that_raises_contradicts() -> None:
    honest = of_strategy(strategies["none"]())
    card = examine(Subject("none", RefusesOne, honest.facts))
    assert {"one_sample", "size_eval"} <= {f.about.key for f in card.contradictions if f.failed}


def test_the_same_card_twice_and_the_random_state_untouched(right: Card) -> None:
    before = torch.get_rng_state()
    again = examine(of_function("right", Right))
    assert again == right
    assert torch.equal(before, torch.get_rng_state())


def test_apart_knows_what_is_no_number() -> None:
    one = torch.ones(3)
    assert apart(one, one) == 0
    assert apart(2 * one, one) == 0.5
    assert apart(one, one * torch.nan) == float("inf")
    with pytest.raises(ValueError, match=r"shape \(2,\) instead of \(3,\)"):
        apart(one, one[:2])


# ---------------------------------------------------------------- a user's own module


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    (tmp_path / "own_norms.py").write_text(
        "from torch import nn\n"
        "def grouped(channels): return nn.GroupNorm(24, channels)\n"
        "def words(channels): return 'none'\n"
        "def halved(channels): return nn.Conv2d(channels, channels, 3)\n"
        "def bare(): return nn.Identity()\n"
        "def refuses(channels): raise RuntimeError('not today')\n"
        "def flat(channels): return nn.BatchNorm1d(channels)\n"
        "number = 3\n"
    )
    (tmp_path / "broken_norms.py").write_text("import torch\nraise OSError('no such thing')\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit('usage: script')\n")
    (tmp_path / "needy_norms.py").write_text("import not_there_at_all\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@for_each(
    ("path", "message"),
    [
        ("own_norms", "must be package.module:factory"),
        ("own_norm:grouped", "no module own_norm .* did you mean own_norms"),
        ("own_norms.deeper:grouped", "no module own_norms.deeper"),
        ("own_norms:groupd", "own_norms has no groupd; did you mean grouped"),
        ("own_norms:number", "must be a function or a class"),
        ("own_norms:words", "must return a torch.nn.Module, not str"),
        ("own_norms:halved", r"must return the shape of its input \(8, 32, 4, 3\), not shape \(8, 32, 2, 1\)"),
        ("own_norms:bare", r"takes 0 positional arguments(.|\n)*takes the number of channels, as make_norm"),
        ("own_norms:refuses", "fails: RuntimeError: not today"),
        ("broken_norms:make", "importing broken_norms fails: OSError: no such thing"),
        ("needy_norms:make", "importing needy_norms fails: ModuleNotFoundError: No module named 'not_there_at_all'"),
    ],
)
def test_a_factory_that_is_none(place: Path, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        of_factory(path)
    assert len(str(caught.value).splitlines()) <= 3


def test_what_cannot_be_written_down_of_a_module_is_unknown() -> None:
    finding = next(each for each in examine(of_factory("torch.nn:Identity")).findings if each.about.key == "merged")
    assert (finding.found, finding.failed, finding.note) == (
        None,
        False,
        "no gamma, beta and eps to write its formula with",
    )


def test_a_script_that_ends_the_program_is_told_so(place: Path) -> None:
    with pytest.raises(BnlabError, match="importing script ends the program: SystemExit: usage: script") as caught:
        of_factory("script:make")
    assert caught.value.exit_code == 1


@for_each(
    ("path", "axes", "flat"),
    [
        ("torch.nn:BatchNorm1d", 1, True),
        ("torch.nn:BatchNorm3d", 3, False),
        ("torch.nn:LayerNorm", 0, True),
        ("torch.nn:LazyBatchNorm2d", 2, False),
    ],
)
def test_a_module_is_tried_on_the_inputs_it_takes(path: str, axes: int, flat: bool) -> None:
    card = examine(of_factory(path))
    assert (card.axes, not card.images_only) == (axes, flat)
    assert {each.about.key for each in card.findings if each.failed} <= {"one_sample"}  # torch refuses one value
    held = {each.about.key: each.found for each in card.findings}
    layer = "LayerNorm" in path
    assert (held["mates_train"], held["past"], held["bias"]) == (layer, layer, not layer)
    assert held["mates_eval"]
    assert held["folding"] is not layer
    assert held["one_pixel"] is (None if layer else True)
    kind = ("vectors only", "sequences and vectors", "images only", "volumes only")[axes]
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    Terminal(stream).print(card_table(card, Terminal(stream)))
    stream.seek(0)
    assert kind in stream.read()


def test_a_module_of_which_nothing_can_be_measured_has_no_card() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("never")

    with pytest.raises(ConfigError, match="broken: nothing can be measured: fails: RuntimeError: never"):
        examine(of_function("broken", lambda channels: Broken()))


def test_the_number_of_channels_suits_the_module(place: Path) -> None:
    assert examine(of_factory("own_norms:grouped")).channels == 24


def test_module_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mine.py").write_text("from torch import nn\ndef make(c):\n    return nn.GroupNorm(4, c)\n")

    def run(*arguments: str) -> Done:
        return bnlab("check", *arguments, cwd=tmp_path, COLUMNS="80", NO_COLOR="1")

    group = run("--module", "pack.mine:make")
    assert (group.returncode, group.stderr) == (0, "")
    assert "mates train  yes" in group.stdout
    assert "✓" not in group.stdout
    bad = run("--module", "pack.mine:made")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "--module pack.mine:made: pack.mine has no made; did you mean make?\n"


def test_torchs_own_batch_norm(capsys: pytest.CaptureFixture[str]) -> None:
    """As a factory it needs no file at all; a batch with one value a channel is an error there."""
    check(module="torch.nn:BatchNorm2d", format="json")
    properties = json.loads(capsys.readouterr().out)["properties"]
    holds = {key for key, value in properties.items() if value["holds"]}
    assert holds == set(CHECKS) - {"mates_train", "mode", "past", "one_sample", "workers"}
    assert properties["one_sample"]["note"].startswith("fails: ValueError: Expected more than 1 value per channel")


# ---------------------------------------------------------------- what is printed


def printed(cards: list[Card], width: int, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    raw = io.BytesIO()
    out = Terminal(io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    out.print(card_table(cards[0], out) if len(cards) == 1 else matrix_table(cards, out))
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(
    cards: dict[str, Card], width: int, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shown in (list(cards.values()), [cards["batch"]]):
        lines = printed(shown, width, monkeypatch, encoding).splitlines()
        assert max(map(cell_len, lines)) <= width
        assert not any("…" in line or line != line.rstrip() for line in lines)


def test_the_matrix_is_one_block_where_there_is_room(cards: dict[str, Card], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(cards.values())
    for width, blocks in ((200, 1), (120, 2), (80, 3)):
        lines = printed(whole, width, monkeypatch).splitlines()
        rows = [line for line in lines if line.startswith("batch ")]
        assert len(rows) == blocks
        assert sum(row.count("yes") + row.split().count("no") for row in rows) == len(CHECKS)


def test_a_narrow_terminal_gets_everything_too(cards: dict[str, Card], monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed([cards["batch"]], 40, monkeypatch)
    assert max(map(cell_len, text.splitlines())) <= 40
    assert all(f.about.line.split()[-1] in text for f in cards["batch"].findings)


def test_a_contradiction_is_marked_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = of_strategy(strategies["none"]())
    assert honest.facts is not None
    lying = examine(replace(honest, facts=replace(honest.facts, cancels_bias=True)))
    single = printed([lying], 80, monkeypatch)
    assert "\n✗ bias" in single
    assert "declared: yes" in single
    assert "\n✗ none, bias: does not hold (error 0." in single
    matrix = printed([lying, lying], 80, monkeypatch, "ascii")
    assert matrix.count("no!") == 2
    assert "\nx none, bias: does not hold" in matrix
    assert json.loads(CARD_FORMATS["json"]([lying]))["properties"]["bias"]["contradicts"] is True
    assert "**against what is declared**" in CARD_FORMATS["md"]([lying])


def test_formats(cards: dict[str, Card], right: Card) -> None:
    one = json.loads(CARD_FORMATS["json"]([right]))
    assert (one["schema"], one["subject"], list(one["properties"])) == (1, "right", list(CHECKS))
    assert one["properties"]["bias"]["declared"] is None
    many = json.loads(CARD_FORMATS["json"](list(cards.values())))
    assert many["schema"] == 1
    assert [card["subject"] for card in many["cards"]] == list(cards)
    rows = list(csv.DictReader(io.StringIO(CARD_FORMATS["csv"](list(cards.values())))))
    assert len(rows) == len(cards) * len(CHECKS)
    assert {row["contradicts"] for row in rows if row["subject"] == "batch"} == {"no"}
    plain = CARD_FORMATS["plain"]([right]).splitlines()
    assert len(plain) == 1 + len(CHECKS)
    assert all(line.count("|") == 6 for line in CARD_FORMATS["md"]([right]).splitlines()[2:])


@for_each(
    ("error", "text"),
    [(None, "–"), (0.0, "0"), (2.2e-16, "2e-16"), (0.0123, "0.012"), (0.284, "0.28"), (3.46, "3.5"), (12345.0, "1e4")],
)
def test_errors_are_short(error: float | None, text: str) -> None:
    assert error_text(error) == text
    assert error_text(float("inf")) == "∞"


# ---------------------------------------------------------------- the command


def test_overrides_choose_strategy_and_parameters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    check(["norm=ghost", "norm.size=8"])
    assert capsys.readouterr().out.startswith("ghost size=8 · ")
    check(["norm=layer,none"], format="json")
    assert [card["subject"] for card in json.loads(capsys.readouterr().out)["cards"]] == ["layer", "none"]
    with pytest.raises(ConfigError, match="did you mean ghost"):
        check(["norm=ghst"])
    with pytest.raises(ConfigError, match="cannot be combined with --module"):
        check(["norm=ghost"], "torch.nn:BatchNorm2d")


def test_overrides_that_name_no_strategy_leave_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cards: dict[str, Card]
) -> None:
    monkeypatch.setattr("bnlab.conformance.card.examine", lambda subject: cards[subject.label])
    for overrides in (["seed=0"], ["model=cnn,mlp"]):
        check(overrides, format="json")
        assert [card["subject"] for card in json.loads(capsys.readouterr().out)["cards"]] == list(strategies)
    with pytest.raises(ConfigError, match="model=cn: no such option"):
        check(["model=cn"])


def test_exit_code_1_on_a_contradiction(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    untrue = property(lambda self: Facts(False, False, True, False, False))
    monkeypatch.setattr(strategies["none"], "facts", untrue)
    with pytest.raises(typer.Exit) as end:
        check(["norm=none"], format="plain")
    assert end.value.exit_code == 1
    assert "none     bias " in capsys.readouterr().out
