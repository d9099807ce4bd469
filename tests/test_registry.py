"""Registries: a module dropped into the package is found at the first look-up, by its name and in order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnlab.errors import ConfigError, count_of
from bnlab.norms.strategy import Strategy
from bnlab.registry import Registry

MODULE = """
from dropped.registry import kinds

@kinds.register("{name}")
class Kind:
    pass
"""


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Strategy]]:
    folder = tmp_path / "dropped"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "registry.py").write_text(
        "from bnlab.registry import Registry\nkinds = Registry('kind', 'dropped')\n", encoding="utf-8"
    )
    for module, name in (("a", "second"), ("b", "first")):
        (folder / f"{module}.py").write_text(MODULE.format(name=name), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    from dropped.registry import kinds  # type: ignore[import-not-found]

    yield kinds
    for module in [name for name in sys.modules if name.partition(".")[0] == "dropped"]:
        del sys.modules[module]


def test_a_new_module_is_all_that_a_new_entry_takes(dropped: Registry[Strategy]) -> None:
    assert list(dropped) == ["first", "second"]
    assert dropped["second"].name == "second"
    assert dropped["second"].__module__ == "dropped.a"
    with pytest.raises(ConfigError, match=r"kind=secnd: no such kind; did you mean second\?\nthere are: first, second"):
        dropped["secnd"]


def test_a_name_is_taken_once(dropped: Registry[Strategy]) -> None:
    with pytest.raises(ValueError, match="two entries named 'first'"):
        dropped.register("first")(dropped["second"])


def test_one_is_counted_in_the_singular() -> None:
    assert [count_of(n, "run") for n in (0, 1, 2, 1234)] == ["0 runs", "1 run", "2 runs", "1,234 runs"]
    assert [count_of(n, "batch") for n in (1, 2)] == ["1 batch", "2 batches"]
