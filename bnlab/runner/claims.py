"""Claims carried out: what no finished run below `runs` answers yet is trained, once, until the rule is decided.

Runs are shared (`pool.py`), and of a ladder only the levels are trained that the largest one depends on (`climb.py`).
Settings of evaluation alone train nothing: the checkpoint of one run is evaluated again under each. Times are no part
of the pool: a bench is used again for a day, on the same boot of the same machine.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnlab import __version__
from bnlab.claims.cells import arm_of, check_cells, levels_of
from bnlab.claims.claim import Budget, Claim, check_looks, check_override
from bnlab.claims.decide import decide, failed_guards
from bnlab.claims.evaluate import free_keys, unlearned
from bnlab.claims.figures import Absent, check_figures, check_seeds
from bnlab.claims.language import Condition, Expression, Largest, leaves, quantities
from bnlab.claims.outcome import RuleVerdict
from bnlab.claims.planned import planned
from bnlab.claims.rule import parts_of
from bnlab.claims.verdict import ClaimVerdict, folder_of, read_verdict, register, variant_of
from bnlab.compare.arms import text_of
from bnlab.config import compose
from bnlab.errors import BnlabError, ConfigError
from bnlab.metrics import Metric, is_of_the_end
from bnlab.record.evaluations import SETTINGS, with_settings
from bnlab.record.latest import POOL, runs_folder
from bnlab.record.read import Run, evaluated, read_runs, refusals
from bnlab.record.run_folder import FINAL, held
from bnlab.runner.climb import Ladder, climb
from bnlab.runner.pool import Launch, Wanted, find_finished, has, launcher_of, train
from bnlab.runner.supervisor import JobOptions, JobRunner
from bnlab.runner.sweep import labels, refuse_launcher

FRESH_SECONDS = 86_400.0  # for which a bench is used again
BENCH_SECONDS = {"quick": "bench.seconds=15"}
BOOT = Path("/proc/sys/kernel/random/boot_id")
Measure = Callable[[Sequence[str], Path], object]  # times the arms of overrides, and records them below a folder
Check = Callable[[Mapping[str, Any], str], float]  # the error of one property of a configuration's strategy
Evaluate = Callable[[Path, Sequence[Mapping[str, Any]]], object]  # a finished run, under changed settings


@dataclass(frozen=True)
class Tools:
    """Who trains, and what is done in the process of the command line."""

    runner: JobRunner
    options: JobOptions
    measure: Measure
    evaluate: Evaluate
    check: Check


@dataclass(frozen=True)
class Wish:
    """What is asked for with `claim run`."""

    budget: str = "quick"
    seeds: int | None = None  # looked at last, in place of the budget's
    more: tuple[str, ...] = ()  # overrides of every experiment, of which some make a variant
    launch: tuple[str, ...] = ()  # Hydra's own, such as hydra/launcher=joblib

    def check(self) -> None:
        """Raise ConfigError for what cannot be asked for."""
        for word in self.more:
            check_override(word, word, foreign=False)
        launcher_of(self.launch)

    def budget_of(self, claim: Claim) -> Budget:
        budget = claim.budgets[self.budget]
        if self.seeds is None:
            return budget
        looks = (*(n for n in budget.looks if n < self.seeds), self.seeds)
        return replace(budget, looks=check_looks(looks, "--seeds"))


@dataclass(frozen=True)
class ClaimPlan:
    """The experiments of a claim, all checked."""

    claim: Claim
    budget: Budget
    trainings: tuple[Wanted, ...]
    ladders: tuple[tuple[Condition, dict[float, Wanted]], ...]  # one an arm and seed, whose levels nothing else needs
    benches: tuple[tuple[str, ...], ...]
    checks: tuple[tuple[Mapping[str, Any], str], ...]  # a configuration, and a property of its strategy

    @property
    def num_trainings(self) -> int:
        return len({(wanted.base or wanted).run.identity for wanted in self.trainings})

    def until(self, seeds: int) -> list[Wanted]:
        """Return the trainings of so many seeds."""
        return [wanted for wanted in self.trainings if wanted.run.seed < seeds]

    def ladders_until(self, seeds: int) -> list[Ladder]:
        """Return the ladders of so many seeds, to be climbed from their lowest level."""
        return [
            Ladder(dict(levels), condition, min(levels))
            for condition, levels in self.ladders
            if all(wanted.run.seed < seeds for wanted in levels.values())
        ]


@dataclass(frozen=True)
class Outcome:
    """What came of a claim: its verdict, and the jobs without which it had to be formed."""

    claim: Claim
    verdict: ClaimVerdict
    failed: tuple[str, ...]
    num_trained: int


def plan_of(claim: Claim, wish: Wish, preflight: Callable[[Sequence[Mapping[str, Any]]], list[str]]) -> ClaimPlan:
    """Return the experiments of a claim, after every cell of its rule was found to be one arm.

    Errors: ConfigError and what `preflight` raises, which name the claim's file.
    """
    budget = wish.budget_of(claim)
    try:
        jobs: dict[str, tuple[str, dict[str, Any]]] = {}
        seeds = ",".join(map(str, range(budget.looks[-1])))
        for lines in claim.sweeps(budget, wish.more):
            sweep = compose.planned([*lines, f"seed={seeds}"], True)
            for label, (_, tree) in zip(labels(sweep), sweep, strict=True):
                jobs.setdefault(json.dumps(tree, sort_keys=True), (label, tree))
        trainings = tuple(_wanted(claim, list(jobs.values()), preflight))
        asked = [(part.sentence.of, part.best_of) for part in parts_of(claim.rule)]
        asked += [(guard.of, ()) for guard in claim.requires]
        benches = tuple(tuple(_bench_lines(lines, wish)) for lines in claim.benches(budget, wish.more))
        arms = [arm for lines in benches for arm in _bench_arms(lines, preflight)]
        checks = tuple(
            (tree, key)
            for lines, keys in claim.checks(wish.more)
            for _, tree in compose.planned(lines, True)
            for key in keys
        )
        for tree, key in checks:
            from bnlab.conformance.card import check_property  # with torch, which other claims plan without
            from bnlab.experiment.config import parse_config

            parse_config(tree)
            check_property(key)
        runs = [*(wanted.run for wanted in trainings), *arms, *(_checked_run(*each) for each in checks)]
        absent = _absent({wanted.run.identity: wanted.tree for wanted in trainings})
        for part in parts_of(claim.rule):
            _checked(part.sentence.of, runs, part.best_of, f"rule: {part.sentence}", absent)
            check_seeds(part, runs, budget.looks, "" if wish.seeds is None else f"--seeds {wish.seeds}")
        for guard in claim.requires:
            _checked(guard.of, runs, (), f"requires: {guard}", absent)
        ladders = tuple(_ladders(asked, runs, {wanted.run.identity: wanted for wanted in trainings}))
    except BnlabError as error:
        raise type(error)(f"{claim.path}: {error}") from error
    return ClaimPlan(claim, budget, trainings, ladders, benches, checks)


def _ladders(
    asked: Sequence[tuple[Expression, Sequence[str]]], runs: Sequence[Run], wanted: Mapping[str, Wanted]
) -> Iterator[tuple[Condition, dict[float, Wanted]]]:
    """Yield a condition and the levels of each `largest(...)`, by arm and seed, where nothing else needs one of them.

    What is to be evaluated again is trained whole: one checkpoint serves several levels.
    """
    climbed, others = list[tuple[Condition, dict[float, Wanted]]](), set[str]()
    for of, best_of in asked:
        for leaf in leaves(of):
            if isinstance(leaf, Largest) and not best_of:
                by_seed = dict[int, dict[float, Wanted]]()
                for level, its in levels_of(leaf.condition.of, runs, leaf.key, ()).items():
                    for run in (run for run in its if run.identity in wanted):
                        by_seed.setdefault(run.seed, {})[level] = wanted[run.identity]
                climbed += [(leaf.condition, levels) for levels in by_seed.values()]
            else:
                free = [*free_keys(leaf), *best_of]
                others |= {run.identity for quantity in quantities(leaf) for run in arm_of(quantity, runs, free)}
    for condition, levels in climbed:
        if all(each.base is None and each.run.identity not in others for each in levels.values()):
            yield condition, levels


def _checked_run(tree: Mapping[str, Any], key: str, error: float | None = None) -> Run:
    """Return the arm that a property of a strategy is: its error over the cases of `bnlab check`."""
    run = planned({**tree, "check": {"property": key}})
    return run if error is None else replace(run, state="done", summary={"check": error, "curve": {}})


def _wanted(
    claim: Claim,
    jobs: Sequence[tuple[str, dict[str, Any]]],
    preflight: Callable[[Sequence[Mapping[str, Any]]], list[str]],
) -> Iterator[Wanted]:
    """Yield the runs of a claim; where it asks for figures of the end alone, with the training to evaluate."""
    asked = [*(part.sentence.of for part in parts_of(claim.rule)), *(guard.of for guard in claim.requires)]
    at_end = all(is_of_the_end(quantity.metric) for of in asked for quantity in quantities(of))
    bases = [with_settings(tree, SETTINGS) if at_end else tree for _, tree in jobs]
    identities = preflight([*(tree for _, tree in jobs), *bases])
    for (label, tree), base, own, of_base in zip(jobs, bases, identities, identities[len(jobs) :], strict=False):
        training = [word for word in label.split() if word.partition("=")[0] not in SETTINGS or not at_end]
        wanted = Wanted(base, planned(base, of_base), f"{claim.name}: {' '.join(training)}")
        yield wanted if base == tree else Wanted(tree, planned(tree, own), wanted.label, wanted)


def _absent(trees: Mapping[str, Mapping[str, Any]]) -> Absent:
    """Return what tells of the trainings of a claim, by identity, which figures they cannot have."""

    def why(metric: Metric, run: Run, over_depth: bool) -> str | None:
        from bnlab.experiment.figures import absent  # with torch, which other claims plan without

        tree = trees.get(run.identity)
        return None if tree is None else absent(metric, tree, over_depth=over_depth)

    return why


def _checked(of: Any, runs: Sequence[Run], best_of: Sequence[str], where: str, absent: Absent) -> None:
    try:
        check_cells(of, runs, best_of)
        check_figures(of, runs, best_of, absent)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _bench_arms(lines: Sequence[str], preflight: Callable[[Sequence[Mapping[str, Any]]], list[str]]) -> list[Run]:
    """Return the arms that a bench is to time. Errors: ConfigError, and what `preflight` raises."""
    from bnlab.bench.arms import OWN, limits_of  # with torch, which other claims plan without

    mode = limits_of(lines).mode
    trees = [tree for _, tree in compose.planned([line for line in lines if not line.startswith(OWN)], True)]
    preflight(trees)
    return [planned(tree, bench_mode=mode) for tree in trees]


def _bench_lines(lines: Sequence[str], wish: Wish) -> list[str]:
    usual = BENCH_SECONDS.get(wish.budget)
    named = any(line.startswith("bench.seconds=") for line in lines)
    return [*lines, *([usual] if usual and not named else [])]


def carry_out_claims(claims: Sequence[Claim], wish: Wish, tools: Tools) -> Iterator[Outcome]:
    """Yield each claim's verdict as soon as it is there; all claims are checked before the first job starts.

    Errors: ConfigError, EnvironmentFault; then nothing was started. KeyboardInterrupt and Terminated pass; what is done
    stays in the pool.
    """
    wish.check()
    refuse_launcher(launcher_of(wish.launch), tools.runner)
    pool = find_finished()
    kept = {claim.name: verdict for claim in claims if (verdict := _kept(claim, wish, pool)) is not None}
    plans = {claim.name: plan_of(claim, wish, tools.runner.preflight) for claim in claims if claim.name not in kept}
    with held(runs_folder() / POOL):
        for claim in claims:
            if claim.name in kept:
                yield Outcome(claim, kept[claim.name], (), 0)
            else:
                yield _carry_out(plans[claim.name], wish, pool, tools)


def _kept(claim: Claim, wish: Wish, pool: Mapping[str, Run]) -> ClaimVerdict | None:
    """Return the verdict that the same rule came to before, if all that it was made of is still there."""
    verdict = read_verdict(folder_of(claim.name, wish.budget, wish.more))
    if verdict is None or verdict.failed or verdict.exploratory or verdict.version != __version__:
        return None
    looks = wish.budget_of(claim).looks if claim.train else ()
    same = (verdict.rule_sha256, verdict.looks, verdict.variant) == (claim.rule_sha256, looks, variant_of(wish.more))
    there = all(identity in pool for identity in verdict.runs) and all(_is_fresh(Path(b)) for b in verdict.benches)
    return verdict if same and there else None


def _carry_out(plan: ClaimPlan, wish: Wish, pool: dict[str, Run], tools: Tools) -> Outcome:
    start = time.monotonic()
    claim, looks = plan.claim, plan.budget.looks
    folder = folder_of(claim.name, wish.budget, wish.more)
    has_runs = any(wanted.run.identity in pool for wanted in plan.trainings)
    exploratory = register(claim, folder, has_runs=has_runs)
    benches = [run for lines in plan.benches for run in _bench(lines, tools.measure)]
    checks = [_checked_run(tree, key, tools.check(tree, key)) for tree, key in plan.checks]
    launch = Launch(tools.runner, tools.options, wish.launch)
    failed: dict[str, str] = {}
    num_trained = 0
    for seeds in looks:
        ladders = plan.ladders_until(seeds)
        count, lost = climb(ladders, pool, launch)
        untried = {w.run.identity for each in ladders for level, w in each.levels.items() if not each.has_tried(level)}
        wanted = [each for each in plan.until(seeds) if each.run.identity not in untried]
        missing = [each for each in wanted if not has(pool, each) and each.run.identity not in lost]
        needed = {each.run.identity: each for each in (wanted.base or wanted for wanted in missing)}
        untrained = [each for each in needed.values() if not has(pool, each)]
        failed |= lost | train(untrained, pool, launch)
        failed |= _evaluate(missing, pool, tools.evaluate)
        num_trained += count + len(untrained)
        runs = [pool[each.run.identity] for each in wanted if has(pool, each)]
        runs += [replace(each.run, state="failed") for each in wanted if not has(pool, each)]
        runs += [replace(each.run, state="not needed") for each in plan.trainings if each.run.identity in untried]
        verdict = decide(claim.rule, [*runs, *benches, *checks], looks if plan.trainings else ())
        if verdict.verdict != "undecided" or not plan.trainings:
            break
    guards = failed_guards(claim.requires, [*runs, *benches, *checks])
    if guards:
        verdict = RuleVerdict("undecided", "guard", verdict.parts)
    found = ClaimVerdict(
        claim=claim.name,
        budget=wish.budget,
        variant=variant_of(wish.more),
        rule_sha256=claim.rule_sha256,
        exploratory=exploratory,
        verdict=verdict.verdict,
        reason=verdict.reason,
        parts=verdict.parts,
        guards=tuple(guards),
        looks=looks if plan.trainings else (),
        seeds=seeds if plan.trainings else 0,
        runs=tuple(run.identity for run in runs if run.state in FINAL),
        benches=tuple(sorted({str(run.folder.parent) for run in benches})),
        failed=len(failed),
        version=__version__,
        scope=scope_of([*runs, *benches]) if runs or benches else "random batches in float64",
        seconds=round(time.monotonic() - start, 1),
        made=time.time(),
        notes=(*refusals(runs), *_unlearned(claim, [*runs, *benches, *checks])),
    )
    found.write(folder)
    return Outcome(claim, found, tuple(failed.values()), num_trained)


def _unlearned(claim: Claim, runs: Sequence[Run]) -> list[str]:
    """Return each cell of the rule with trainings that learned nothing, once."""
    parts = parts_of(claim.rule)
    return list(dict.fromkeys(line for part in parts for line in unlearned(part.sentence.of, runs, part.best_of)))


def _evaluate(missing: Sequence[Wanted], pool: dict[str, Run], evaluate: Evaluate) -> dict[str, str]:
    """Evaluate trainings again for what is missing, put it into the pool, and return what failed, by identity."""
    failed, by_base = {}, dict[str, list[Wanted]]()
    for each in missing:
        if each.base is not None:
            by_base.setdefault(each.base.run.identity, []).append(each)
    for base, wanted in by_base.items():
        if (run := pool.get(base)) is None:
            continue  # its training failed
        if run.state != "done":
            pool |= {
                each.run.identity: replace(run, identity=each.run.identity, config=each.run.config) for each in wanted
            }
            continue
        try:
            evaluate(run.folder, [{key: each.run.config[key] for key in SETTINGS} for each in wanted])
        except BnlabError as error:
            failed[base] = str(error).partition("\n")[0]
        for found in evaluated(read_runs([run.folder])[0][0], alike=True):
            pool.setdefault(found.identity, found)
    return failed


def _bench(lines: Sequence[str], measure: Measure) -> list[Run]:
    """Return the arms of a bench, measured now unless the same was not long ago."""
    boot = BOOT.read_text() if BOOT.is_file() else ""
    digest = hashlib.sha256(json.dumps([list(lines), __version__, boot]).encode()).hexdigest()[:16]
    base = runs_folder() / POOL / f"bench-{digest}"
    if not (runs := _latest_bench(base)):
        measure(lines, base)
        runs = _latest_bench(base)
    return runs


def _latest_bench(base: Path) -> list[Run]:
    found = [run for run in (read_runs([base])[0] if base.is_dir() else ()) if run.is_bench]
    if not found:
        return []
    latest = max(found, key=lambda run: run.order).folder.parent
    return [run for run in found if run.folder.parent == latest] if _is_fresh(latest) else []


def _is_fresh(bench: Path) -> bool:
    return bench.is_dir() and time.time() - bench.stat().st_mtime < FRESH_SECONDS


def scope_of(runs: Sequence[Run]) -> str:
    """Return what a verdict speaks of: data, models, machine, versions."""

    def named(key: str) -> str:
        return ", ".join(sorted({text_of(run.config[key]) for run in runs if key in run.config}))

    def of_environment(key: str) -> str:
        return ", ".join(sorted({str(run.environment[key]) for run in runs if run.environment.get(key) is not None}))

    threads = of_environment("threads")
    sizes = sorted({run.summary["steps"] for run in runs if run.summary and type(run.summary.get("steps")) is int})
    steps = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}" if sizes else ""
    parts = [
        named("data.name"),
        named("model.name"),
        f"batch {named('data.batch_size')}",
        f"{steps} steps" if steps and not all(run.is_bench for run in runs) else "",
        f"{of_environment('device')}, {threads} {'thread' if threads == '1' else 'threads'}" if threads else "",
        of_environment("gpu") or of_environment("cpu"),
        f"torch {of_environment('torch')}",
    ]
    return " · ".join(part for part in parts if part)
