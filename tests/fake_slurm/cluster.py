"""Stand-ins for Slurm's programs, with this folder on PATH: a cluster of this machine, its state in $FAKE_SLURM.

$FAKE_SLURM/<job>/<task> says how a task of a job array stands; `sbatch` leaves a process behind that starts the tasks,
as many at once as $FAKE_SLURM_CPUS (2), and starts one again for which `scontrol requeue` was called.
"""

import os
import signal
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])


def tasks(job: str) -> list[Path]:
    """Return the state files of `4242` (all of its tasks) or `4242_3`."""
    number, _, task = job.partition("_")
    return [path for path in (STATE / number).iterdir() if path.name.isdigit() and task in ("", path.name)]


def send(task: Path, number: signal.Signals) -> None:
    """Signal all processes of a task, as Slurm does, but the shell of its script and whoever calls this."""
    session = int(task.with_suffix(".pid").read_text())
    for place in Path("/proc").iterdir():
        try:
            found = int((place / "stat").read_text().rpartition(")")[2].split()[3])
            if found == session and int(place.name) not in (session, os.getpid()):
                os.kill(int(place.name), number)
        except (OSError, ValueError):
            continue
