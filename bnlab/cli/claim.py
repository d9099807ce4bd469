"""`bnlab claim`: questions with a rule fixed beforehand, and what runs answer to them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from bnlab.cli.options import DryRun, Format, Inline, Retries, Timeout, number_in, one_of
from bnlab.errors import ConfigError, DataError, count_of

if TYPE_CHECKING:
    from bnlab.claims.claim import Claim
    from bnlab.report.claim_report import Pair
    from bnlab.runner.claims import Wish
    from bnlab.runner.supervisor import JobOptions

app = typer.Typer(no_args_is_help=True, help="Claims and the verdicts that runs give them.")
VERDICTS = ("confirmed", "refuted", "undecided", "not run")


def complete_name(incomplete: str) -> list[str]:
    from bnlab.claims.claim import claim_files

    return [name for name in claim_files() if name.startswith(incomplete)]


Names = Annotated[Optional[list[str]], typer.Argument(metavar="NAME", autocompletion=complete_name, hidden=True)]
Budget = Annotated[
    Optional[str], one_of("--budget", choices=("quick", "full"), help="Of which budget; default: the latest.")
]


@app.command("list", short_help="List claims: their last verdicts and questions.")
def list_claims(
    words: Annotated[Optional[list[str]], typer.Argument(metavar="WORD...", hidden=True)] = None,
    source: Annotated[
        Optional[str], typer.Option("--source", metavar="TEXT", help="Only claims from this source, such as 003.")
    ] = None,
    verdict: Annotated[
        Optional[str], typer.Option("--verdict", metavar="WORD,...", help="Only such verdicts, such as undecided.")
    ] = None,
    format: Format = "table",
) -> None:
    """List every claim: its last verdict, with figures and age, and its question. Runs nothing.

    WORDs keep those that have each of them in the name, the question or a quote.
    """
    from bnlab.claims.outside import OUTSIDE
    from bnlab.report.claim_report import claims_table, rows_of
    from bnlab.report.console import results
    from bnlab.report.rows import TIDY_FORMATS

    asked, wanted = " ".join(words or ()).lower().split(), VERDICTS if verdict is None else verdict.split(",")
    for each in wanted:
        if each not in VERDICTS:
            raise ConfigError(f"--verdict {each}: must be one of {', '.join(VERDICTS)}")
    pairs = [
        (claim, found)
        for claim, found in _pairs()
        if (source is None or source in claim.sources)
        and (found.verdict if found else "not run") in wanted
        and all(word in "\n".join((claim.name, claim.question, *claim.quotes)).lower() for word in asked)
    ]
    out = results()
    if not pairs:
        raise ConfigError("no claim is like that\n`bnlab claim list` names all")
    if format == "table":
        out.print(claims_table(pairs, out, OUTSIDE if not words and source is verdict is None else ()))
    else:
        out.emit(TIDY_FORMATS[format]({}, rows_of(pairs)))


@app.command(short_help="Show a claim: its rule, plan and last verdict.")
def show(
    words: Annotated[list[str], typer.Argument(metavar="NAME [KEY=VALUE]", autocompletion=complete_name, hidden=True)],
    budget: Budget = None,
) -> None:
    """Show what a claim asks, its rule and plan, and its last verdict. Runs nothing.

    KEY=VALUE asks for the variant that `bnlab claim run NAME KEY=VALUE` makes.
    """
    from bnlab.claims.claim import ALL, check_override, find_claims
    from bnlab.claims.verdict import latest_verdict
    from bnlab.report.claim_report import card
    from bnlab.report.console import results

    names, more = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if len(names) != 1 or names == [ALL]:
        raise ConfigError(f"{' '.join(words)}: must name one claim\n`bnlab claim list` names all")
    for word in more:
        check_override(word, word, foreign=False)
    (claim,), out = find_claims(names), results()
    out.print(card(claim, latest_verdict(claim.name, budget, more), out, more))
    for word, each in claim.budgets.items():
        looks = ", ".join(map(str, each.looks))
        plan = f"at most {claim.num_runs(each, more):,} trainings, looked at with {looks} seeds" if claim.train else ""
        others = ["a bench" if claim.bench else "", "a check" if claim.check else ""]
        out.say(f"{word:<10}{'; '.join(filter(None, [plan, *others]))}")


@app.command(short_help="Do what is missing, and give verdicts.")
def run(
    words: Annotated[
        list[str], typer.Argument(metavar="NAME... [KEY=VALUE]...", autocompletion=complete_name, hidden=True)
    ],
    budget: Annotated[
        str, one_of("--budget", choices=("quick", "full"), help="How much it may cost: quick.")
    ] = "quick",
    seeds: Annotated[Optional[int], number_in("--seeds", int, 1, 1000, help="Seeds of the last look.")] = None,
    expect: Annotated[
        Optional[str], one_of("--expect", choices=VERDICTS[:3], help="Exit with 1 where a verdict is another.")
    ] = None,
    timeout: Timeout = None,
    retries: Retries = 0,
    inline: Inline = False,
    dry_run: DryRun = False,
) -> None:
    """Train and time what is missing, and print a card a claim as soon as it is decided.

    NAME is one of `bnlab claim list`, a claim's file, or all. KEY=VALUE applies to every experiment, and makes a
    variant with a verdict of its own; but data.root=FOLDER only says where the data lie, and hydra/launcher=joblib and
    the like where runs are trained, as for `bnlab train`. A verdict of any kind is exit code 0; 1: a job failed.
    """
    from bnlab.claims.claim import find_claims
    from bnlab.config.compose import hydra_lines
    from bnlab.runner.claims import Wish
    from bnlab.runner.supervisor import JobOptions

    names = _names_among(words)
    launch = hydra_lines([word for word in words if "=" in word])
    wish = Wish(budget, seeds, tuple(word for word in words if "=" in word and word not in launch), tuple(launch))
    wish.check()
    claims = find_claims(names)
    if dry_run:
        return _show_plans(claims, wish)
    raise typer.Exit(_run(claims, wish, JobOptions(timeout, retries, inline=inline), expect))


def _names_among(words: Sequence[str]) -> list[str]:
    """Return the words that are no override. Errors: ConfigError where there is none."""
    if names := [word for word in words if "=" not in word]:
        return names
    raise ConfigError("name a claim, or all\n`bnlab claim list` names them")


def _run(claims: Sequence[Claim], wish: Wish, options: JobOptions, expect: str | None) -> int:
    from bnlab.cli.train import handle_signals, stopped
    from bnlab.report.claim_report import card
    from bnlab.report.console import messages, results
    from bnlab.report.progress import make_progress
    from bnlab.runner.claims import Tools, carry_out_claims
    from bnlab.runner.sweep import runner_for
    from bnlab.training.job import Terminated

    handle_signals()
    out, trouble, trained = results(), 0, 0
    try:
        with runner_for(options) as runner, make_progress(sys.stderr, in_rounds=True) as progress:
            runner.callback = progress
            tools = Tools(runner, options, _measure, _evaluate, _check)
            for number, outcome in enumerate(carry_out_claims(claims, wish, tools)):
                progress.closed()  # or it would be drawn over the card
                if number:
                    out.say("")
                out.print(card(outcome.claim, outcome.verdict, out, wish.more))
                for line in outcome.failed:
                    messages().say(line)
                trained += outcome.num_trained
                trouble |= bool(outcome.failed) or (expect is not None and outcome.verdict.verdict != expect)
    except (KeyboardInterrupt, Terminated) as stop:
        return stopped(stop)
    messages().say(f"{count_of(trained, 'run')} trained; `bnlab claim report` shows all verdicts")
    return int(trouble)


def _measure(lines: Sequence[str], base: Path) -> None:
    """Time the arms of a bench and record them below a folder."""
    from bnlab.bench.arms import read
    from bnlab.bench.straggler_launch import LATE_MS, WORKERS, plan_of, read_sections, run_workers, threads_of
    from bnlab.cli.bench import contests, timed
    from bnlab.cli.bench_record import record, record_profiles, record_workers

    limits, sections, _ = read(lines)
    if limits.mode == "workers":
        _, sections, _ = read_sections(lines, WORKERS, (0.0, LATE_MS))
        plan = plan_of(sections, (0.0, LATE_MS), limits)
        record_workers(sections, run_workers(plan, WORKERS, threads_of(sections), lambda *_: None), base)
        return
    if limits.mode == "profile":
        from bnlab.bench.profiling import profiled

        record_profiles(sections, [profiled(section) for section in sections], base)
        return
    record(sections, timed(limits, contests(limits, sections)), base)


def _evaluate(folder: Path, changes: Sequence[Mapping[str, Any]]) -> None:
    """Evaluate a finished run again, in this process."""
    from bnlab.experiment.evaluate_again import evaluate_again

    evaluate_again(folder, changes)


def _check(tree: Mapping[str, Any], key: str) -> float:
    """Return the error of a property of a configuration's strategy."""
    from bnlab.conformance.card import error_of
    from bnlab.conformance.subject import of_strategy
    from bnlab.experiment.config import parse_config

    return error_of(of_strategy(parse_config(tree).norm), key)


def _show_plans(claims: Sequence[Claim], wish: Wish) -> None:
    """Say what each claim needs, and what of it is in the pool."""
    from bnlab.report.listing import show_rows
    from bnlab.runner.claims import plan_of
    from bnlab.runner.pool import find_finished
    from bnlab.runner.supervisor import JobOptions
    from bnlab.runner.sweep import runner_for

    rows = []
    with runner_for(JobOptions()) as runner:
        pool = find_finished()
        for claim in claims:
            plan = plan_of(claim, wish, runner.preflight)
            there = len(
                {w.run.identity for wanted in plan.trainings if (w := wanted.base or wanted).run.identity in pool}
            )
            looks = ", ".join(map(str, plan.budget.looks)) if plan.trainings else "-"
            numbers = (plan.num_trainings, there, len(plan.benches), len(plan.checks))
            rows.append((claim.name, *map(str, numbers), looks))
    show_rows(("claim", "trainings", "there", "benches", "checks", "looks"), rows)


@app.command(short_help="Write the scorecard of all verdicts.")
def report(
    names: Names = None,
    budget: Budget = None,
    format: Annotated[
        str, one_of("--format", "-f", choices=("table", "md", "json", "html"), help="How to write it.")
    ] = "table",
    out_file: Annotated[
        Optional[Path], typer.Option("--out", metavar="FILE", help="Write it there; .html, .md, .json say the format.")
    ] = None,
) -> None:
    """Write the scorecard: the verdicts that there are, or the claims named with theirs. Runs nothing."""
    from bnlab.claims.outside import OUTSIDE
    from bnlab.record.plain_files import write_bytes
    from bnlab.report.claim_page import page
    from bnlab.report.claim_report import as_json, as_md, claims_table, summary_line
    from bnlab.report.console import messages, results

    formats = {"md": as_md, "json": as_json, "html": page}
    if out_file is not None and out_file.suffix[1:] in formats:
        format = out_file.suffix[1:]
    pairs, outside = _pairs(names or (), budget), () if names else OUTSIDE
    summary = summary_line(pairs)  # which says how many have no verdict
    pairs = [pair for pair in pairs if names or pair[1]]
    if format == "table":
        if out_file is not None:
            raise ConfigError(f"--out {out_file}: must end in .html, .md or .json\nthe page, .html, has the pictures")
        out = results()
        out.print(claims_table(pairs, out, outside, summary))
        return
    text = formats[format](pairs, outside, summary)
    if out_file is None:
        results().emit(text)
    else:
        write_bytes(out_file, text.encode())
        messages().say(f"written: {out_file}")


@app.command(short_help="Check the file of a claim.")
def check(
    words: Annotated[
        list[str], typer.Argument(metavar="FILE... [KEY=VALUE]...", autocompletion=complete_name, hidden=True)
    ],
) -> None:
    """Check claims, by file or name: keys, sentences, and that each cell of a rule is one arm. Runs nothing.

    KEY=VALUE, such as data.root=FOLDER, is what `bnlab claim run` will be given.
    """
    from bnlab.claims.claim import find_claims
    from bnlab.report.console import messages, results
    from bnlab.runner.claims import Wish, plan_of
    from bnlab.runner.supervisor import JobOptions
    from bnlab.runner.sweep import runner_for

    claims, more = find_claims(_names_among(words)), tuple(word for word in words if "=" in word)
    quick, full = Wish(more=more), Wish("full", more=more)
    quick.check()
    with runner_for(JobOptions()) as runner:
        for claim in claims:
            plan = plan_of(claim, quick, runner.preflight)
            try:
                plan_of(claim, full, runner.preflight)
            except DataError as error:
                messages().say(f"the full budget is not checked: {error}")
            counts = {"training": plan.num_trainings, "bench": len(plan.benches), "check": len(plan.checks)}
            needs = ", ".join(count_of(number, what) for what, number in counts.items() if number)
            results().say(f"{claim.path}: right; at most {needs}")


@app.command(short_help="Begin a claim of your own.")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", hidden=True)],
    origin: Annotated[
        Optional[str], typer.Option("--from", metavar="CLAIM", autocompletion=complete_name, help="Copy this claim.")
    ] = None,
) -> None:
    """Write claims/NAME.yaml, and print it: the smallest claim, or a copy of another, to be changed."""
    from bnlab.claims.claim import ALL, NAME, OWN, find_claim
    from bnlab.record.plain_files import write_bytes
    from bnlab.report.console import messages, results

    if not NAME.fullmatch(name):
        raise ConfigError(f"{name}: must be up to 60 of a-z, 0-9 and -")
    if name == ALL:
        raise ConfigError(f"{name}: means every claim\nchoose another name")
    path = OWN / f"{name}.yaml"
    if path.exists():
        raise ConfigError(f"{path}: is there already\nchoose another name, or remove it")
    if origin is None:
        text = SMALLEST.format(name=name)
    else:
        source = find_claim(origin)
        text = source.read_text(encoding="utf-8").replace(f"claim: {source.stem}\n", f"claim: {name}\n", 1)
    OWN.mkdir(exist_ok=True)
    write_bytes(path, text.encode())
    results().emit(text)
    messages().say(f"written: {path}; bnlab claim check {path}")


SMALLEST = """\
# What is asked, which runs answer it, and by which rule: `bnlab guide claims` has every word.
claim: {name}
question: Are 4 groups as accurate as 8, within a point?
base: data=digits model=cnn trainer.threads=1
train: norm=group norm.groups=4,8
rule: test_accuracy[groups=4] - test_accuracy[groups=8] in [-1, 1]
"""


def _pairs(names: Sequence[str] = (), budget: str | None = None) -> list[Pair]:
    """Return these claims, or every one that can be read, with their last verdicts; the others are said on stderr."""
    from bnlab.claims.claim import claim_files, find_claims, read_claim
    from bnlab.claims.verdict import latest_verdict
    from bnlab.report.console import messages

    claims = find_claims(names) if names else []
    for path in () if names else claim_files().values():
        try:
            claims.append(read_claim(path))
        except ConfigError as error:
            messages().say(str(error))
    return [(claim, latest_verdict(claim.name, budget)) for claim in claims]
