"""What all tests share: a real sweep to read, and a process that each test leaves as it was."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers_cli import SHORT, bnlab, server


def pytest_configure(config: pytest.Config) -> None:
    """Let no run of a test sign with the user's key; and hear Ctrl-C, which a shell lets its background jobs ignore.

    Of several processes that test, all give their command lines to one server.
    """
    if "BNLAB_TEST_STATE" not in os.environ:
        os.environ["BNLAB_TEST_STATE"] = os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="bnlab-tests-")
        atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("numprocesses", None):
        server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file of the longest tests, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: item.path.name != "test_launchers.py")


@pytest.fixture(autouse=True)
def _process_left_as_it_was() -> Iterator[None]:
    threads, place, level = torch.get_num_threads(), os.getcwd(), logging.getLogger().level
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    yield
    torch.set_num_threads(threads)
    os.chdir(place)
    logging.getLogger().setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def trained_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two strategies with two seeds were trained as one sweep; to be copied, not changed."""
    place = tmp_path_factory.mktemp("swept")
    done = bnlab("train", "-m", "norm=none,batch", "seed=0,1", *SHORT, "trainer.steps=30", cwd=place)
    assert done.returncode == 0, done.stderr
    return place
