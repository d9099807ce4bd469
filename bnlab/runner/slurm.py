"""`bnlab train` inside a Slurm batch script: SIGUSR2 saves and requeues, and the restarted job goes on in its folder.

    #SBATCH --requeue --signal=B:USR2@120
    exec bnlab train -m norm=none,batch seed=0,1,2

`hydra/launcher=submitit_slurm` needs nothing of this: submitit does it for the jobs that it starts.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bnlab.errors import EnvironmentFault
from bnlab.record.plain_files import read_plain, write_json

FILE = ".slurm-job"
LARGEST = 2**16  # bytes


def job() -> str | None:
    """Return the number of the Slurm job that this process belongs to."""
    return os.environ.get("SLURM_JOB_ID") or None


def claim(folder: Path, overrides: Sequence[str]) -> None:
    """Note in a new folder which job and which command line it is of; nothing outside of Slurm."""
    if job() is not None:
        write_json(folder / FILE, {"job": job(), "overrides": list(overrides)})


def earlier(runs: Path, overrides: Sequence[str]) -> Path | None:
    """Return the folder of the same command line in this job before it was requeued; None if there is none."""
    if job() is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not runs.is_dir():
        return None
    for folder in sorted(runs.iterdir(), reverse=True):
        try:
            found = json.loads(read_plain(folder / FILE, LARGEST))
        except (OSError, ValueError, RecursionError):
            continue
        begun = any((folder / name).exists() for name in ("sweep.json", "status.json"))
        if begun and found == {"job": job(), "overrides": list(overrides)}:
            return folder
    return None


def requeue() -> None:
    """Ask Slurm to start this job again. Errors: EnvironmentFault with Slurm's answer."""
    command = ["scontrol", "requeue", str(job())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentFault(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        raise EnvironmentFault(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
