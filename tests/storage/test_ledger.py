"""A list of results that outlasts whoever writes it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bilevel.errors import InputError
from bilevel.storage.ledger import Ledger, key

WRITER = """
import sys
from bilevel.storage.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    number = len(ledger)
    while True:
        ledger.append(str(number), {"text": "x" * 5000})
        print(number, flush=True)
        number += 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "answers.jsonl"


def test_what_is_appended_is_known(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.known(["a"]) == {}
        ledger.append("a", {"text": "line\nline \u2028 \ud800", "score": 0.1, "pair": (1, 2)})
        ledger.append("b", None)
        assert ledger.known("a")["a"]["pair"] == [1, 2]
    with Ledger(path) as ledger:
        assert len(ledger) == 2
        assert ledger.known(["b", "a", "c"]) == {
            "b": None,
            "a": {"text": "line\nline \u2028 \ud800", "score": 0.1, "pair": [1, 2]},
        }
        ledger.append("a", 3)
    with Ledger(path) as ledger:
        assert ledger.known(["a"]) == {"a": 3}


@pytest.mark.parametrize("torn", ['{"key": "b", "val', '{"key": "b", "value": 2}', '{"key": "\xff'])
def test_a_torn_last_line_is_cut_off(path: Path, torn: str) -> None:
    with Ledger(path) as ledger:
        ledger.append("a", 1)
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode("latin-1"))
    with Ledger(path) as ledger:
        assert len(ledger) == 1
        assert path.read_bytes() == whole
        ledger.append("c", 3)
    with Ledger(path) as ledger:
        assert ledger.known("abc") == {"a": 1, "c": 3}


@pytest.mark.parametrize("line", ["{broken", "3", '{"key": "b"}', "[]", "\xff", ""])
def test_damaged_lines_in_the_middle_are_refused_by_number(path: Path, line: str) -> None:
    with Ledger(path) as ledger:
        ledger.append("a", 1)
    with path.open("ab") as file:
        file.write(line.encode("latin-1") + b'\n{"key": "c", "value": 3}\n')
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"answers.jsonl:2: damaged line .*; remove the line"):
        Ledger(path)
    assert path.read_bytes() == before
    path.write_bytes(
        before.replace(line.encode("latin-1") + b"\n", b"", 1) if line else before.replace(b"\n\n", b"\n")
    )
    with Ledger(path) as ledger:
        assert ledger.known("abc") == {"a": 1, "c": 3}


def test_one_process_at_a_time(path: Path) -> None:
    with Ledger(path), pytest.raises(InputError, match=f"{path}: another process writes here"):
        Ledger(path)
    Ledger(path).close()


def test_what_cannot_be_written_leaves_no_trace(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Ledger(path) as ledger:
        ledger.append("a", 1)
        with pytest.raises(TypeError):
            ledger.append("b", object())
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(OSError, match="no space left"):
                ledger.append("b", 2)
        assert ledger.known("ab") == {"a": 1}
        ledger.append("c", 3)
    with Ledger(path) as ledger:
        assert ledger.known("abc") == {"a": 1, "c": 3}


def test_killed_in_the_middle_of_appends_no_finished_one_is_lost(path: Path) -> None:
    acknowledged = -1
    for wait in (3, 40, 1):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        with writer:
            for _ in range(wait):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split("\n")
            acknowledged = max([acknowledged, *(int(line) for line in rest[:-1])])
        # The lock died with its process.
        with Ledger(path) as ledger:
            assert acknowledged < len(ledger) <= acknowledged + 2
            assert all(
                value == {"text": "x" * 5000} for value in ledger.known(map(str, range(len(ledger)))).values()
            )


def test_the_ledger_needs_no_jax() -> None:
    code = "import sys, bilevel.storage.ledger; print('jax' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_keys_are_what_results_depend_on() -> None:
    made = key("row", "model", {"temperature": 0.7, "top_p": 1})
    assert made == key("row", "model", {"top_p": 1, "temperature": 0.7})
    others = [
        key("row", "model", {"temperature": 0.8, "top_p": 1}),
        key("row", "model"),
        key("rowmodel"),
        key("row", "model", None),
    ]
    assert len({made, *others}) == 5
    assert len(made) == 32
    with pytest.raises(TypeError):
        key(object())
