"""What meters read in the runs of a claim: the charts of its card, and the pictures of its page."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_cli import environment
from helpers_runs import make_run

from bnlab.claims.claim import Claim, read_claim
from bnlab.claims.outcome import PartVerdict
from bnlab.claims.verdict import ClaimVerdict
from bnlab.record.read import read_runs
from bnlab.report.claim_page import page
from bnlab.report.claim_report import card
from bnlab.report.console import Terminal

RANGES = {"none": (8.0, 4.0, 2.0), "batch": (4.0, 1.0, 0.25)}  # of the first seed; the second has 4 times as much
PARTS = ("loss_range[norm=none] / loss_range[norm=batch] > 1.5", "gradient_slope[norm=none] > 0.1")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two arms of two seeds whose meters read at steps 0, 10 and 20."""
    monkeypatch.setenv("BNLAB_RUNS", str(tmp_path / "runs"))
    for norm, values in RANGES.items():
        for seed in range(2):
            ranges = [value * 4**seed for value in values]
            slopes = [-0.5, 0.0, 0.5] if norm == "none" else [0.0, 0.0, 0.0]
            meters = {
                "landscape": {"curve": {"step": [0, 10, 20], "loss_range": ranges}},
                "gradients": {"curve": {"step": [0, 10, 20], "gradient_slope": slopes}},
            }
            run = make_run(tmp_path / f"runs/{norm}{seed}", norm=norm, seed=seed, summary={"meters": meters})
            rows = [
                f"{step},0,gradients,{figure},{d}.x,{d},-,{d}"
                for step in (0, 20)
                for figure in ("weight", "gradient")
                for d in (1, 2)
            ]
            (run / "meters.csv").write_text("\n".join(["step,epoch,meter,figure,layer,depth,axis,value", *rows, ""]))
    return tmp_path / "runs"


def claim_of(place: Path, rule: Any) -> Claim:
    tree = {"claim": "mine", "question": "Why?", "train": "norm=none,batch", "rule": rule}
    (place / "mine.yaml").write_text(yaml.safe_dump(tree))
    return read_claim(place / "mine.yaml")


def verdict_on(runs: Path, claim: Claim, *more: str) -> ClaimVerdict:
    identities = (*(run.identity for run in read_runs([runs])[0]), *more)
    part = PartVerdict("x", "", "ratio", "", "> 1.5", (1.5,), "confirmed", None, "", 2.0, 1.8, 2.2, n=2)
    return ClaimVerdict(
        "mine", "quick", (), claim.rule_sha256, False, "confirmed", None, (part,), (), (2,), 2, identities, (), 0, "1",
        "digits", 1.0, 0.0,
    )  # fmt: skip


def shown(claim: Claim, verdict: ClaimVerdict, monkeypatch: pytest.MonkeyPatch, width: int = 80) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal(stream := io.StringIO())
    out.print(card(claim, verdict, out))
    return stream.getvalue().splitlines()


def test_a_card_draws_what_its_rule_asks_of_meters_by_arm(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = claim_of(runs, {"all": list(PARTS)})
    lines = shown(claim, verdict_on(runs, claim), monkeypatch)
    assert max(map(len, lines)) <= 80
    titles = next(i for i, line in enumerate(lines) if line.startswith("loss range, nats (log)"))
    assert lines[titles].split("   ")[-1].strip() == "gradient slope"
    assert lines[titles + 1].startswith(f"{0.5 * 32 ** (11 / 12):.4g} |")  # means are 16 to 0.5; the first of six rows
    assert lines[titles + 8].split() == ["by", "step:", "*", "none", "+", "batch", "by", "step:", "*", "none"]
    assert titles < next(i for i, line in enumerate(lines) if line.startswith("rule"))


def test_arms_that_several_keys_tell_apart_have_a_chart_a_part(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in list(runs.iterdir()):
        curve = {"step": [0, 20], "loss_range": [1.0, 2.0]}
        name, seed = run.name[:-1], int(run.name[-1])
        config = {"model.name": "mlp"}
        make_run(
            runs / f"mlp-{run.name}", norm=name, seed=seed, config=config, summary={"meters": {"x": {"curve": curve}}}
        )
    rule = "loss_range[norm=none model={model}] / loss_range[norm=batch model={model}] > 1.5"
    claim = claim_of(runs, {"all": [{"for": {"model": ["mlp", "cnn"]}, "holds": rule}]})
    text = "\n".join(shown(claim, verdict_on(runs, claim), monkeypatch))
    assert text.count("loss range, nats, model=mlp (log)") == text.count("loss range, nats, model=cnn (log)") == 1
    assert text.count("by step: * none  + batch") == 2


@pytest.mark.parametrize("rule", ["test_accuracy[norm=none] > 5", "loss_range[norm=layer] > 1", PARTS[0]])
def test_without_a_meter_an_arm_or_a_run_there_is_no_chart(
    rule: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claim_of(runs, rule)
    verdict = verdict_on(runs, claim, *["gone"] * (rule == PARTS[0]))
    assert "by step" not in "\n".join(shown(claim, verdict, monkeypatch))
    assert "<figure" not in page([(claim, verdict)])


def test_runs_are_read_for_verdicts_that_rest_on_meters_only(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def read(paths: Any, identities: set[str]) -> tuple[list[Any], list[Any]]:
        asked.append(identities)
        return read_runs(paths, identities)

    monkeypatch.setattr("bnlab.report.claim_mechanism.read_runs", read)
    plain, metered = claim_of(runs, "test_accuracy[norm=none] > 5"), claim_of(runs, PARTS[0])
    page([(plain, verdict_on(runs, plain))])
    assert not asked
    page([(plain, verdict_on(runs, plain, "other")), (metered, verdict := verdict_on(runs, metered)), (metered, None)])
    assert asked == [set(verdict.runs)]


def test_only_runs_of_these_identities_are_read(runs: Path) -> None:
    every = read_runs([runs])[0]
    wanted = {every[0].identity, every[2].identity}
    assert [run.folder for run in read_runs([runs], wanted)[0]] == [every[0].folder, every[2].folder]
    assert read_runs([runs], {"gone"}) == ([], [])


def test_the_page_draws_lines_over_training_and_gradients_by_depth(runs: Path) -> None:
    claim = claim_of(runs, {"all": list(PARTS)})
    text = page([(claim, verdict_on(runs, claim))])
    figures = re.findall(r"<figure>(.*?)</figure>", text, re.DOTALL)
    titles = [re.findall("<h3>(.*?)</h3>", each)[0] for each in figures]
    assert titles == ["loss range, nats (log scale)", "gradient slope", "gradient length, at first (log scale)",
                      "gradient length, at the end (log scale)"]  # fmt: skip
    assert re.findall(r'<path class="c(\d)" d="([^"]*)"/>\n', figures[0]) == [
        ("0", "M46 6.0L180 24.8L314 43.6"),  # 16, 8 and 4: from the top, a fifth of 16 to 0.5 at each step
        ("1", "M46 24.8L180 62.4L314 100.0"),  # 8, 2 and 0.5
    ]
    assert [word for word in re.findall("<text[^>]*>([^<]*)<", figures[0]) if word[0].isdigit()] == [
        "0.500", "2.83", "16.0", "0", "20"
    ]  # fmt: skip
    assert 'aria-label="loss range, nats by step; at the end: none 4 ' in figures[0]


def test_show_loads_nothing_heavy_for_its_chart(runs: Path, tmp_path: Path) -> None:
    claim = claim_of(runs, PARTS[0])
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/mine.yaml").write_text(claim.path.read_text())
    folder = runs / "claims/mine/quick"
    folder.mkdir(parents=True)
    verdict_on(runs, claim).write(folder)
    code = (
        "import sys\nsys.argv = ['bnlab', 'claim', 'show', 'mine']\nfrom bnlab.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'matplotlib', 'pandas', 'numpy', 'scipy', 'jinja2'} & set(sys.modules)"
    )
    words, where = [sys.executable, "-c", code], environment() | {"BNLAB_RUNS": str(runs)}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=where, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "loss range, nats (log)" in done.stdout
