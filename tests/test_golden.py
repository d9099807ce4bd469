"""The golden record: a change of the code that means to change no figure changes none."""

from __future__ import annotations

import json

import golden
import pytest

HOW = "at a commit that is known to be right: python tests/golden.py --write"


@pytest.mark.slow
def test_digits_and_outputs_are_those_of_the_record() -> None:
    """Every strategy on mlp and cnn: tables, weights, and what compare, show and probe make of them."""
    record = json.loads(golden.RECORD.read_text())
    if record["made_with"] != golden.made_with():
        pytest.skip(f"recorded with {record['made_with']}, here {golden.made_with()}; a new record, {HOW}")
    now = golden.small_record()
    assert now["runs"] == record["runs"], f"a training gives other digits; if that is meant, {HOW}"
    changed = [name for name, digest in record["outputs"].items() if now["outputs"].get(name) != digest]
    assert not changed, f"{changed} print otherwise: python tests/golden.py DIR before and after shows how; then {HOW}"
