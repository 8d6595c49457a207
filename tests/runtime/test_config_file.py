import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from bilevel.errors import InputError
from bilevel.runtime.config_file import read_config, read_raw_config, write_config


class Reduction(enum.Enum):
    ROWS = "mean over rows"
    TOKENS = "mean over tokens"


@dataclass(frozen=True)
class Implicit:
    step_size: float = 1.0


@dataclass(frozen=True)
class Penalty:
    gamma: float = 3.0
    copies: Literal[1, 2] = 2


@dataclass(frozen=True)
class Phase:
    steps: int
    name: str = ""


@dataclass(frozen=True)
class Settings:
    train: Path | None
    estimator: Implicit | Penalty
    steps: int = 100
    rate: float = 1e-5
    reduction: Reduction = Reduction.ROWS
    phases: tuple[Phase, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    shares: Mapping[str, float] = field(default_factory=dict)
    verbose: bool = False


SETTINGS = [
    Settings(train=None, estimator=Implicit()),
    Settings(train=Path("data/rows.json"), estimator=Penalty(gamma=1.0, copies=1), steps=3, verbose=True),
    Settings(
        train=None,
        estimator=Penalty(),
        rate=float("inf"),
        reduction=Reduction.TOKENS,
        phases=(Phase(1, "yes"), Phase(2, "1e-5"), Phase(3, "über: #1")),
        betas=(0.0, 1.0),
        shares={"fault": 0.4, "hard": 1.0},
    ),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_configuration_comes_back_equal(tmp_path: Path, settings: Settings) -> None:
    write_config(tmp_path, settings)
    assert read_config(tmp_path, Settings) == settings


def test_file_is_plain_yaml_in_the_order_of_the_fields(tmp_path: Path) -> None:
    write_config(tmp_path, SETTINGS[1])
    raw = read_raw_config(tmp_path)
    assert list(raw)[:3] == ["train", "estimator", "steps"]
    assert raw["train"] == "data/rows.json"
    assert raw["estimator"] == {"class": "Penalty", "gamma": 1.0, "copies": 1}
    assert "!" not in (tmp_path / "config.yaml").read_text()


def test_missing_keys_take_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: null\nestimator: {class: Implicit}\nrate: 1\n")
    assert read_config(tmp_path, Settings) == Settings(train=None, estimator=Implicit(), rate=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: null\nestimator: {class: Other}\n",
            "estimator must name its class, one of Implicit, Penalty",
        ),
        ("train: null\nestimator: {class: Penalty, gama: 1}\n", "estimator.gama is no option of Penalty"),
        ("estimator: {class: Implicit}\n", "train is missing"),
        ("train: null\nestimator: {class: Implicit}\nsteps: many\n", "steps cannot be 'many'"),
        ("train: null\nestimator: {class: Implicit}\nsteps: true\n", "steps cannot be True"),
        ("train: null\nestimator: {class: Penalty, copies: 3}\n", "estimator.copies cannot be 3"),
        ("train: null\nestimator: {class: Implicit}\nreduction: ALL\n", "reduction cannot be 'ALL'"),
        (
            "train: null\nestimator: {class: Implicit}\nphases: [{steps: 1}, {name: a}]\n",
            r"phases\[1\].steps is missing",
        ),
        ("train: [\n", "broken YAML"),
        ("- 1\n", "holds list"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_config(tmp_path, Settings)
    assert str(tmp_path / "config.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.yaml: no such file"):
        read_config(tmp_path, Settings)


def test_values_without_a_plain_form_are_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Odd:
        value: object

    with pytest.raises(TypeError, match="complex"):
        write_config(tmp_path, Odd(1j))
