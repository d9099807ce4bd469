"""What all tests share: no test leaves threads, folder, signal handlers or log level of its process changed."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest
import torch


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
