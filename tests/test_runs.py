"""Names of runs, `bnlab runs`, its notes, and what it removes and what never."""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path

import pytest
from helpers_cases import for_each
from helpers_runs import make_run

from bnlab.cli import main
from bnlab.errors import ConfigError, EnvironmentFault
from bnlab.record.inventory import LONGEST_NOTE, entries, note_of
from bnlab.record.latest import complete_run, find_run, name_of
from bnlab.record.run_folder import fresh_folder, hold

SWEEP, RUN, OTHER = "20260102-030405-demo-sweep-a1b2c3", "20260103-000000-run-d4e5f6", "20260101-000000-demo-sweep-a7"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sweeps, of which one has failed, and a later single run."""
    monkeypatch.chdir(tmp_path)
    for number, norm in enumerate(("batch", "ghost")):
        run = make_run(tmp_path / "runs" / SWEEP / str(number), norm=norm, seed=0, summary={"wall_seconds": 61.5})
        for name in ("checkpoint.pt", "checkpoint.sha256", "recalibrated-population-64.pt"):
            (run / name).write_text("weights")
        make_run(tmp_path / "runs" / OTHER / str(number), norm=norm, state=("failed", "killed")[number])
    make_run(tmp_path / "runs" / RUN, norm="layer", seed=3, state="interrupted")
    (tmp_path / "runs" / RUN / "checkpoint.pt").write_text("weights")
    return tmp_path / "runs"


def bnlab(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["bnlab", *arguments])
    capsys.readouterr()
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    out, err = capsys.readouterr()
    assert isinstance(code, int)
    return code, out, err


# ---------------------------------------------------------------- names


@for_each(
    ("word", "place"),
    [
        ("latest", RUN),
        ("latest/1", f"{SWEEP}/1"),
        (SWEEP, SWEEP),
        (f"{SWEEP}/0", f"{SWEEP}/0"),
        ("20260102", SWEEP),
        ("demo-sweep-a1", SWEEP),
        ("a1b", SWEEP),
        ("a7/1", f"{OTHER}/1"),
        ("run", RUN),
    ],
)
def test_a_word_names_one_folder(base: Path, word: str, place: str) -> None:
    assert find_run(word) == Path("runs", place)
    assert find_run(word).is_dir()
    assert find_run(name_of(find_run(word))) == find_run(word)
    assert len(name_of(find_run(word))) < len(str(find_run(word)))


def test_a_path_that_exists_wins_and_what_names_nothing_stays_a_path(base: Path) -> None:
    Path("latest").mkdir()
    for word in ("latest", f"runs/{RUN}", str(base / RUN), "nothing", "runs/nothing", "../nothing", "/nothing"):
        assert find_run(word) == Path(word)


def test_a_word_that_begins_several_names_is_refused_with_them(base: Path) -> None:
    for word in ("demo", "a", "2026010"):
        with pytest.raises(ConfigError, match=f"{word}: begins . names in runs\nthere are: .*{SWEEP}, {OTHER}"):
            find_run(word)


def test_a_link_has_no_name_and_another_folder_of_runs_may_be_named(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "20270101-000000-run-link").symlink_to(base / RUN)
    assert find_run("latest") == Path("runs", RUN)
    monkeypatch.setenv("BNLAB_RUNS", str(tmp_path / "mine"))
    with pytest.raises(ConfigError, match="mine: no runs yet; `bnlab train` makes one"):
        find_run("latest")
    make_run(tmp_path / "mine" / RUN)
    assert find_run("latest") == tmp_path / "mine" / RUN
    assert [entry.folder.name for entry in entries()] == [RUN]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BNLAB_RUNS", "~/mine")  # quoted, or of a file of variables: no shell has expanded it
    assert find_run("latest") == tmp_path / "mine" / RUN


def test_names_are_completed(base: Path) -> None:
    assert complete_run("") == ["latest", "run-d4e5f6", "demo-sweep-a1b2c3", "demo-sweep-a7"]
    assert complete_run("demo") == ["demo-sweep-a1b2c3", "demo-sweep-a7"]
    assert sorted(complete_run("latest/")) == ["latest/0", "latest/1"]


@for_each(
    "command", ["show", "probe", "shift", "recalibrate", "resume", "compare", "export csv", "runs rm", "runs note"]
)
def test_every_command_that_takes_a_run_takes_its_name(
    base: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*command.split(), "demo", *(["text"] if command == "runs note" else [])]
    code, out, err = bnlab(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, out, err.splitlines()[0]) == (2, "", "demo: begins 2 names in runs")
    assert "latest" in bnlab("runs", "-h", capsys=capsys, monkeypatch=monkeypatch)[1]


def test_lists_in_options_may_have_commas(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["compare", "a1", "--by", "norm.name,data.name", "--metric", "test_accuracy, test_loss", "-f", "json"]
    code, out, _ = bnlab(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "test_loss" in out) == (0, True)
    one_by_one = ["--by", "norm.name", "--by", "data.name", "--metric", "test_accuracy", "--metric", "test_loss"]
    assert bnlab("compare", "a1", *one_by_one, "-f", "json", capsys=capsys, monkeypatch=monkeypatch)[1] == out


# ---------------------------------------------------------------- the list


def test_the_list_in_every_format(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "notes").mkdir()  # not of bnlab, and no runs in it
    _, out, _ = bnlab("runs", "-f", "json", capsys=capsys, monkeypatch=monkeypatch)
    rows = json.loads(out)["rows"]
    assert [row["name"] for row in rows] == ["run-d4e5f6", "demo-sweep-a1b2c3", "demo-sweep-a7"]
    sweep = rows[1]
    assert (sweep["kind"], sweep["norms"], sweep["seeds"], sweep["models"]) == ("sweep", "batch,ghost", 1, "cnn")
    assert (sweep["states"], sweep["seconds"], sweep["when"]) == ("2 done", 123.0, "2026-01-02 03:04:05")
    size = sum(file.stat().st_size for file in (base / SWEEP).rglob("*") if file.is_file())
    assert (sweep["bytes"], sweep["folder"]) == (size, f"runs/{SWEEP}")
    assert rows[2]["states"] == "1 failed, 1 killed"
    for form in ("plain", "csv", "md", "table"):
        _, out, _ = bnlab("runs", "-f", form, capsys=capsys, monkeypatch=monkeypatch)
        assert out.index("run-d4e5f6") < out.index("demo-sweep-a1b2c3") < out.index("demo-sweep-a7"), form
        assert "2 done" in out


def test_without_runs_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = "runs: no runs yet; `bnlab train` makes one\n"
    assert bnlab("runs", capsys=capsys, monkeypatch=monkeypatch) == (0, "", said)
    for command in ("compare", "report", "plot curves", "export csv", "show latest", "resume latest", "probe latest"):
        assert bnlab(*command.split(), capsys=capsys, monkeypatch=monkeypatch) == (2, "", said), command


@for_each("width", [70, 80, 100, 160])
def test_a_list_of_many_states_cuts_none_of_them(
    width: int, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, state in enumerate(("queued", "queued", "killed", "done", "failed", "interrupted")):
        make_run(base / "20260104-000000-a-sweep-of-a-long-name-0b" / str(number), norm="batch", state=state)
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = bnlab("runs", capsys=capsys, monkeypatch=monkeypatch)
    words = out.replace(",", "").split()
    assert {"queued", "killed", "done", "failed", "interrupted"} <= set(words)
    titles = out.splitlines()[0].split()
    assert ({"when", "size", "took"} <= set(titles)) != ("left out for width" in out)


# ---------------------------------------------------------------- notes


def test_a_note_is_shown_and_is_only_text(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bnlab("runs", "note", "a1b2", "lr \x1b[31mtoo\nhigh\u202e", capsys=capsys, monkeypatch=monkeypatch)
    assert note_of(base / SWEEP) == "lr [31mtoo high"
    assert "lr [31mtoo high" in bnlab("runs", capsys=capsys, monkeypatch=monkeypatch)[1]
    assert "lr [31mtoo high" in bnlab("show", "a1b2/1", capsys=capsys, monkeypatch=monkeypatch)[1]
    assert bnlab("runs", "note", "a1", "x" * (LONGEST_NOTE + 1), capsys=capsys, monkeypatch=monkeypatch)[0] == 2
    assert bnlab("runs", "note", ".", "x", capsys=capsys, monkeypatch=monkeypatch)[0] == 0  # runs lie below
    bnlab("runs", "note", "a1b2", "", capsys=capsys, monkeypatch=monkeypatch)
    assert not (base / SWEEP / "note.txt").exists()
    (base / SWEEP / "note.txt").write_text("y" * 10_000)  # of somebody else
    assert note_of(base / SWEEP) == ""
    (base / SWEEP / "note.txt").unlink()
    (base / SWEEP / "note.txt").symlink_to(base / RUN / "status.json")
    assert note_of(base / SWEEP) == ""


# ---------------------------------------------------------------- removal


def left(base: Path) -> set[str]:
    return {path.name for path in base.iterdir()}


def test_rm_asks_and_removes_what_is_named(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = bnlab("runs", "rm", "a1b2c3", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, len(left(base))) == (2, 3)
    assert "add --yes" in err
    assert bnlab("runs", "rm", capsys=capsys, monkeypatch=monkeypatch)[0] == 2
    assert bnlab("runs", "rm", "a1", "--failed", capsys=capsys, monkeypatch=monkeypatch)[0] == 2
    assert bnlab("runs", "rm", "--older", "30", capsys=capsys, monkeypatch=monkeypatch)[0] == 2
    code, out, _ = bnlab("runs", "rm", "a1b2c3", "latest", "--yes", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, out.startswith("2 removed, ")) == (0, True)
    assert left(base) == {OTHER}


def test_rm_takes_nothing_outside_and_follows_no_link(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = make_run(tmp_path / "elsewhere" / "0").parent
    (base / "link").symlink_to(outside)
    (base / "mine").mkdir()
    (base / SWEEP / "0" / "deeper").symlink_to(outside)
    words = ["runs", ".", "..", "elsewhere", str(outside), "runs/link", "runs/link/0", "runs/mine"]
    for word in [*words, f"runs/{SWEEP}/..", "runs/nothing", f"runs/{SWEEP}/../../elsewhere"]:
        code, out, _ = bnlab("runs", "rm", word, "--yes", capsys=capsys, monkeypatch=monkeypatch)
        assert (code, out) == (2, ""), word
    assert bnlab("runs", "rm", SWEEP, "--yes", capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    assert left(base) == {RUN, OTHER, "link", "mine"}
    assert (outside / "0" / "summary.json").exists()


@pytest.mark.parametrize("where", ["", "0"], ids=["sweep", "job"])
def test_rm_takes_nothing_that_runs(
    base: Path, where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status = json.loads((base / OTHER / "0" / "status.json").read_text())
    (base / OTHER / "0" / "status.json").write_text(json.dumps(status | {"state": "running"}))
    with open(base / OTHER / where / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for word in (OTHER, f"{OTHER}/0", *([] if where else [f"{OTHER}/1"])):
            code, _, err = bnlab("runs", "rm", word, "--yes", capsys=capsys, monkeypatch=monkeypatch)
            assert (code, "in use" in err) == (1, True)
        bnlab("runs", "rm", "--older", "1d", "--yes", capsys=capsys, monkeypatch=monkeypatch)
        assert left(base) == {OTHER}
    assert bnlab("runs", "rm", "--failed", "--yes", capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    assert left(base) == set()


def test_rm_of_failed_and_old_ones(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(base / "mine" / "0", state="failed")  # bnlab did not name it
    new = make_run(base / "29990101-000000-run-new", state="failed")
    assert bnlab("runs", "rm", "--failed", "--older", "8w", "-y", capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    assert left(base) == {SWEEP, RUN, "mine", new.name}
    bnlab("runs", "rm", "--failed", "--yes", capsys=capsys, monkeypatch=monkeypatch)
    assert left(base) == {SWEEP, RUN, "mine"}
    bnlab("runs", "rm", "--older", "30d", "--yes", capsys=capsys, monkeypatch=monkeypatch)
    assert left(base) == {"mine"}


def test_rm_of_checkpoints_leaves_those_that_are_needed(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in (base / SWEEP).iterdir():
        (run / "checkpoint.pt").write_text("w" * 1000)
    code, out, err = bnlab("runs", "rm", "--checkpoints", "--yes", capsys=capsys, monkeypatch=monkeypatch)
    assert (code, "2.0 kB" in out) == (0, True)
    assert f"{SWEEP}: batch, ghost × seed 0 · cnn · mnist, 2 done, 2.0 kB" in err
    assert sorted(path.name for path in base.rglob("*.pt")) == ["checkpoint.pt", *["recalibrated-population-64.pt"] * 2]
    assert (base / RUN / "checkpoint.pt").exists()  # it can be resumed
    assert len(left(base)) == 3


# ---------------------------------------------------------------- a folder of runs that is none, or has an odd name


@for_each("command", [("runs",), ("compare",), ("report",), ("export", "csv"), ("plot", "curves")])
def test_a_file_in_place_of_the_folder_of_runs_is_named(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("")
    code, out, err = bnlab(*command, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, out, err.partition("\n")[0]) == (2, "", "runs: is not a folder")


@for_each("file", ["runs", "runs/pool"])
def test_where_a_folder_is_to_be_written_a_file_is_named(file: str, tmp_path: Path) -> None:
    place = tmp_path / file.replace("/", "-")
    (place / file).parent.mkdir(parents=True)
    (place / file).write_text("")
    with pytest.raises(EnvironmentFault) as raised:
        hold(place / "runs" / "pool")
    said = f"cannot write {place}/runs/pool: {place / file} is no folder\nmove it away, or choose another place"
    assert str(raised.value) == said
    if file == "runs":
        with pytest.raises(EnvironmentFault, match="runs is no folder\nmove it away"):
            fresh_folder(place / "runs", "x")


def test_a_folder_of_runs_may_have_any_name(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a b", "a[1],b=c", "it's $x ${y}", "üñ 日本", "new\nline", "\x1b[2J", "-rf", "*", "a\\b", "\udcff"):
        base = base.rename(base.with_name(name))
        monkeypatch.setenv("BNLAB_RUNS", name)
        for command in (
            ["runs"],
            ["compare"],
            ["show", "latest"],
            ["report", "--out", "r.md"],
            ["runs", "note", RUN, "x"],
        ):
            code, out, err = bnlab(*command, capsys=capsys, monkeypatch=monkeypatch)
            assert (code, "\x1b" in out + err) == (0, False), (name, command, err)
    assert (base / RUN / "note.txt").read_text().strip() == "x"
