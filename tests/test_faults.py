"""What each fault and each piece of bad input ends in, and the table of which test shows it.

Rows are those of the project's list of faults. Most tests stand beside what they are about; here are those of runs and
folders, in test_faults_input.py those of wrong input, in test_faults_output.py those of streams and hostile text.

 1  test_launchers.py::test_jobs_that_harm_their_process_cost_themselves_only_and_are_finished
 2  test_launchers.py::test_a_killed_command_line_leaves_no_process
    test_resume_kills.py::test_kills_of_the_sweep_at_random_moments
 3  test_resume.py::test_a_signal_leaves_a_checkpoint_and_one_line_on_how_to_go_on
 4  test_slurm.py::test_a_requeued_job_goes_on_in_its_folder
 5  test_checkpoints.py::test_a_checkpoint_loads_after_any_kill
 6  test_resume.py::test_bnlab_resume_ends_as_a_run_never_interrupted
 7  test_checkpoints.py::test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on
    test_checkpoints.py::test_two_damaged_checkpoints_are_left_alone
 8  test_checkpoints.py::test_a_checkpoint_that_would_run_code_is_refused_though_its_digest_is_right
 9  test_checkpoints.py::test_a_run_on_a_full_disk_fails_and_goes_on_later
    test_checkpoints.py::test_a_real_full_disk_is_named_by_the_command_line
10  test_cli.py::test_runs_that_cannot_be_written_are_found_before_training
11  test_faults.py::test_twenty_runs_started_at_once_have_twenty_folders
12  test_resume_sweep.py::test_the_second_of_two_resumes_is_refused
13  test_faults.py::test_a_diverged_job_keeps_its_figures_and_the_mean_is_marked
    test_faults.py::test_one_of_five_seeds_diverged_and_an_arm_of_which_all_failed
14  test_faults.py::test_one_of_five_seeds_diverged_and_an_arm_of_which_all_failed
15  test_cli.py::test_mistakes_end_in_one_message
16  test_cli.py::test_mistakes_end_in_one_message
    test_faults_input.py::test_values_out_of_range_name_key_value_and_range
    test_faults_input.py::test_options_of_commands_are_checked_before_anything_starts
17  test_cli.py::test_mistakes_end_in_one_message
    test_faults_input.py::test_a_folder_of_configurations_that_mean_harm
18  test_faults_input.py::test_a_folder_of_configurations_that_mean_harm
19  test_faults_input.py::test_names_that_would_lead_elsewhere
20  test_faults.py::test_compare_of_a_hostile_folder_ends_and_names_what_it_left_out
21  test_faults.py::test_every_bad_form_of_a_status_is_a_line_and_the_others_are_shown
22  test_faults_output.py::test_no_escape_sequence_reaches_the_output
23  test_faults_output.py::test_tables_as_a_kill_or_a_resume_leaves_them
    test_export.py::test_a_torn_end_is_left_out_and_garbage_leaves_the_run_out
24  test_faults_input.py::test_the_tables_of_others_are_never_guessed_at
    test_compare_from.py::test_a_hostile_line_is_named_with_the_reason
    test_compare_from.py::test_a_file_that_is_no_csv_is_named_with_the_reason
25  test_faults_input.py::test_downloads_that_come_to_nothing
    test_download.py::test_a_cut_off_download_goes_on_by_itself
26  test_faults_input.py::test_a_truncated_file_of_mnist
27  test_faults_input.py::test_images_that_cannot_be_used_are_all_named_at_the_start
    test_faults_input.py::test_unusual_images_are_converted_and_trained_on
    test_data_folder.py::test_every_bad_file_is_named_at_once
28  test_cli.py::test_a_device_that_is_not_there
    test_faults.py::test_a_job_without_memory_names_its_batch_size
29  test_faults_output.py::test_streams_that_are_closed_full_or_left_early
    test_faults_output.py::test_narrow_plain_and_ascii_terminals
30  test_faults.py::test_order_is_of_the_record_and_not_of_the_names
    test_record.py::test_runs_are_in_order_though_the_clock_goes_back
31  test_faults_output.py::test_no_cell_is_a_formula_and_no_cell_is_markup
    test_claims.py::test_the_page_is_one_file_that_needs_nothing
32  test_launchers.py::test_jobs_that_harm_their_process_cost_themselves_only_and_are_finished
33  test_faults.py::test_a_wheel_in_an_empty_environment
34  test_cli.py::test_help_is_quick_because_nothing_heavy_is_loaded
    other versions of Python and Hydra are for CI: one process has one of each
35  test_resume_hostile.py::test_places_that_a_strangers_run_names_are_given_by_the_user_or_left_alone
    test_resume_hostile.py::test_a_strangers_sweep_names_no_data_and_no_configurations
36  test_config_files.py::test_an_option_of_a_group_is_one_word
    test_config_files.py::test_what_hydra_would_not_heed_or_not_take_is_named
    test_faults_input.py::test_options_of_commands_are_checked_before_anything_starts
37  test_download.py::test_of_several_fetches_at_once_one_downloads_and_the_others_wait
38  test_checkpoints.py::test_a_checkpoint_is_a_regular_file_of_bounded_size_that_does_not_grow
    test_checkpoints.py::test_a_digest_beside_a_file_of_weights_is_a_regular_file_too
39  test_faults_processes.py::test_a_run_that_is_moved_while_it_trains_ends_with_the_reason_and_goes_on_there
40  test_faults_processes.py::test_ctrl_c_while_modules_load_is_quiet
    test_faults_processes.py::test_ctrl_c_at_any_moment_is_quiet
41  test_faults_processes.py::test_a_pause_counts_in_no_time_out_and_no_clock
    test_faults_processes.py::test_ctrl_z_stops_the_worker_and_fg_goes_on
42  test_faults_processes.py::test_what_killed_exports_left_is_removed_and_what_lives_is_not
    test_faults_processes.py::test_what_a_killed_recalibration_left_is_removed
43  test_trained_model.py::test_a_module_that_ends_the_program_is_told_with_exit_code_1
    test_trained_model.py::test_what_a_module_prints_goes_to_stderr
44  test_faults_processes.py::test_a_done_run_of_another_user_is_shown
45  test_queue.py::test_what_a_launcher_carries_does_not_grow_with_the_jobs
    test_queue.py::test_ten_thousand_jobs_can_be_planned
    test_queue.py::test_many_jobs_are_done_by_as_many_processes_as_there_are_places
46  test_data_folder.py::test_the_pixels_are_those_of_the_files_whatever_their_names_sizes_and_times_say
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers_cli import QUICK, SINGLE, Done, bnlab, environment, in_turn
from helpers_runs import STATUS, make_run

ROOT = Path(__file__).resolve().parents[1]


def test_every_row_has_a_test_that_exists() -> None:
    rows = dict(re.findall(r"^ *(\d+) +(test_\S+.*(?:\n {4,}test_.*)*)", __doc__ or "", re.MULTILINE))
    assert {str(number) for number in range(1, 47)} <= set(rows)
    assert list(rows) == sorted(rows, key=int)
    for row, named in rows.items():
        for file, name in (word.split("::") for word in re.findall(r"\S+::\S+", named)):
            tree = ast.parse((ROOT / "tests" / file).read_text())
            there = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            assert name in there, f"row {row}: {file} has no {name}"


# ---------------------------------------------------------------- jobs that go wrong


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A real sweep: seeds 0 and 1 with a good rate and one too large, seed 2 without memory at its third step."""
    place = tmp_path_factory.mktemp("mixed")
    done = bnlab(
        *("train", "-m", "seed=0,1,2", "optim.lr=0.05,1e6", "name=mixed", *QUICK),
        cwd=place,
        supervised=True,
        PYTHONPATH=f"{ROOT / 'tests' / 'faults'}:{ROOT}",
        BNLAB_TEST_FAULTS=json.dumps({"2": ["memory", 3, None]}),
    )
    return place, done


@pytest.mark.slow
def test_a_job_without_memory_names_its_batch_size(mixed: tuple[Path, Done]) -> None:
    _, done = mixed
    assert done.returncode == 1
    states = [line.split()[1] for line in done.stdout.splitlines()]
    assert sorted(states) == ["diverged"] * 2 + ["done"] * 2 + ["failed"] * 2
    named = [line for line in done.stderr.splitlines() if line.endswith("failed: out of memory at data.batch_size=32")]
    assert done.stderr.splitlines().count("try a smaller batch") == 1
    assert len(named) == 2
    assert "2 of 6 jobs done" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_diverged_job_keeps_its_figures_and_the_mean_is_marked(mixed: tuple[Path, Done]) -> None:
    place, done = mixed
    folders = [place / line.split()[0] for line in done.stdout.splitlines() if "  diverged  " in line]
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        with open(folder / "steps.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert int(rows[-1]["step"]) == summary["diverged_at"] < 30
        assert [float(row["loss"]) < float("inf") for row in rows] == [True] * (len(rows) - 1) + [False]
        assert summary["curve"]["test.accuracy"][0] is not None
    shown = bnlab("compare", "--by", "norm", cwd=place)
    assert shown.returncode == 0, shown.stderr
    assert "2/6 diverged" in " ".join(shown.stdout.split())
    assert "means are over finished runs only" in " ".join(shown.stdout.split())


@pytest.mark.slow
def test_one_of_five_seeds_diverged_and_an_arm_of_which_all_failed(tmp_path: Path) -> None:
    for seed in range(5):
        make_run(tmp_path / "runs" / f"a{seed}", norm="none", seed=seed)
        make_run(tmp_path / "runs" / f"b{seed}", seed=seed, state="diverged" if seed == 3 else "done")
        make_run(tmp_path / "runs" / f"c{seed}", norm="layer", seed=seed, state="failed", error="out of luck")
    forms = ("table", "plain", "csv", "json", "md")
    answers = in_turn([["compare", "-f", form] for form in forms], tmp_path)
    assert [done.returncode for done in answers] == [0] * 5
    shown = dict(zip(forms, (done.stdout for done in answers), strict=True))
    lines = {line.split()[0]: line for line in shown["table"].splitlines() if line.startswith(("batch", "layer"))}
    assert "1/5 diverged" in lines["batch"]
    assert "5/5 failed" in lines["layer"]
    assert "–" in lines["layer"]
    rows = {row["label"]: row for row in json.loads(shown["json"])["rows"]}
    assert [(rows[name]["n"], rows[name]["status"]) for name in ("batch", "layer")] == [
        (4, {"done": 4, "diverged": 1}),
        (0, {"failed": 5}),
    ]
    assert rows["layer"]["metrics"]["test_accuracy"]["mean"] is None
    assert all("failed=5" in shown[form] for form in ("plain", "md"))


AT_ONCE = """
import gc, os, sys
from bnlab.cli import main
options = sys.argv[1:]
sys.argv = ["bnlab", "train", *options, "--dry-run"]  # what all of them need is loaded once
try:
    main()
except SystemExit:
    print()
gc.freeze()
wait, go = os.pipe()
children = []
for number in range(20):
    child = os.fork()
    if not child:
        os.close(go)
        os.read(wait, 1)
        sys.stdout = open(f"out{number}", "w")
        sys.argv = ["bnlab", "train", *options]
        try:
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code)  # without taking torch down twenty times
    children.append(child)
os.close(go)
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.slow
def test_twenty_runs_started_at_once_have_twenty_folders(tmp_path: Path) -> None:
    small = [key for key in QUICK if not key.startswith("trainer.steps")]  # its evaluations take the time
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, "norm=none", "trainer.steps=1", "data.train_size=32", *small],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(**SINGLE),
        check=False,
    )
    assert done.stdout.splitlines()[-1] == " ".join("0" * 20), done.stderr
    folders = {(tmp_path / f"out{number}").read_text().split()[0] for number in range(20)}
    assert len(folders) == 20
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("runs/2*")} == folders
    assert all((tmp_path / folder / "summary.json").exists() for folder in folders)


def test_order_is_of_the_record_and_not_of_the_names(tmp_path: Path) -> None:
    """As after a change of the time zone."""
    for order, (name, accuracy) in enumerate((("20300101-000000-run-a", 0.5), ("20200101-000000-run-b", 0.75))):
        make_run(tmp_path / "runs" / name, test_accuracy=[0.1, accuracy], order=order + 1)
    done = bnlab("compare", "-f", "json", cwd=tmp_path)
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["n"], row["metrics"]["test_accuracy"]["mean"]) == (1, 75.0)


# ---------------------------------------------------------------- folders that cannot be trusted


def test_compare_of_a_hostile_folder_ends_and_names_what_it_left_out(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    good = make_run(runs / "good")
    for name in ("fifo", "link", "large", "loop", "\x1b[2J", "tables"):
        (runs / name).mkdir()
    os.mkfifo(runs / "fifo" / "status.json")
    (runs / "link" / "status.json").symlink_to(good / "status.json")
    with open(runs / "large" / "status.json", "wb") as file:
        file.truncate(10 * 2**30)
    (runs / "loop" / "again").symlink_to(runs / "loop")
    (runs / "etc").symlink_to("/etc")
    (runs / "\x1b[2J" / "status.json").write_text("x")
    make_run(runs / "tables", seed=1)
    os.mkfifo(runs / "tables" / "steps.csv")
    (runs / "tables" / "evals.csv").symlink_to("/etc/passwd")
    for number in range(2000):
        (runs / f"empty{number}").mkdir()
    done = bnlab("compare", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 seeds" in done.stdout
    assert sorted(done.stderr.splitlines()) == [
        "runs/\\x1b[2J: unreadable (status.json is not JSON)",
        "runs/etc: unreadable (a link to a folder is not followed)",
        "runs/fifo: unreadable (status.json is not a regular file)",
        "runs/large: unreadable (status.json is larger than 8 MB)",
        "runs/link: unreadable (status.json is a symbolic link)",
        "runs/loop/again: unreadable (a link to a folder is not followed)",
    ]
    exported = bnlab("export", "csv", cwd=tmp_path)
    assert (exported.returncode, "root:" in (tmp_path / "export/csv/evals.csv").read_text()) == (0, False)
    assert "runs/tables: unreadable" in exported.stderr


def test_every_bad_form_of_a_status_is_a_line_and_the_others_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "good")
    for name, text in STATUS.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "status.json").write_text(text)
    plain, strict, shown = in_turn([["compare"], ["compare", "--strict"], ["show", "runs/newer"]], tmp_path)
    assert [plain.returncode, strict.returncode, shown.returncode] == [0, 1, 1]
    assert plain.stdout == strict.stdout
    assert "batch" in plain.stdout
    told = dict(line.split(": ", 1) for line in plain.stderr.splitlines())
    assert set(told) == {f"runs/{name}" for name in STATUS}
    assert all(re.fullmatch(r"unreadable \(.+\)", reason) for reason in told.values())
    newer = "status.json was written by a newer bnlab (schema 2, known: 1)"
    assert told["runs/newer"] == f"unreadable ({newer})"
    assert shown.stderr == f"runs/newer: {newer}\n"


# ---------------------------------------------------------------- installed elsewhere


@pytest.mark.slow
def test_a_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "made")],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "made").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)  # all that an installer does with a wheel like ours, but for the script
    assert "bnlab = bnlab.cli:main" in next(site.glob("bnlab-*/entry_points.txt")).read_text()
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # torch and the rest, as they are here
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*")}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    bare = {k: v for k, v in environment(PYTHONDONTWRITEBYTECODE="1").items() if k != "PYTHONPATH"}

    def installed(*arguments: str) -> Done:
        command = [str(tmp_path / "venv" / "bin" / "python"), "-P", "-m", "bnlab", *arguments]
        return subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, env=bare, check=False)

    listed, config, trained = installed("list"), installed("train", "--cfg", "job"), installed("train", *QUICK)
    assert [done.returncode for done in (listed, config, trained)] == [0, 0, 0], trained.stderr
    assert "ghost" in listed.stdout
    assert "norm:" in config.stdout
    assert trained.stdout.split()[1] == "done"
    assert (site / "bnlab" / "conf" / "config.yaml").is_file()
    guides, shipped = ({path.name for path in (top / "bnlab" / "guide").glob("*.md")} for top in (ROOT, site))
    assert guides == shipped
    assert {path: path.stat().st_mtime_ns for path in site.rglob("*")} == before
    for path in before:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(tmp_path / "venv")
