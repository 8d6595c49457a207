import dataclasses
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from bilevel.errors import InputError
from bilevel.runs.config_file import read_config, read_raw_config, write_config
from bilevel.storage.plain import FLAG_ONLY


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


@dataclass(frozen=True)
class Running:
    folder: Path | None = field(default=None, metadata=FLAG_ONLY)
    often: int = 1


@dataclass(frozen=True)
class Inner:
    learning_rate: float = 1e-4
    steps: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


@dataclass(frozen=True)
class Experiment:
    preset: Literal["tiny", "large"] = "tiny"
    training: Inner = field(default_factory=Inner)
    run: Running = field(default_factory=Running)


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "mine.yaml").write_text(text)
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "preset: tiny\ntraining:\n  learning_rat: 1\n",
            "mine.yaml:3: training.learning_rat is no option of Inner (meant is probably training.learning_rate)",
        ),
        ("trainning: {}\n", "mine.yaml:1: trainning is no option of Experiment (meant is probably training)"),
        (
            "training: {zzz: 1}\n",
            "mine.yaml:1: training.zzz is no option of Inner (it has learning_rate, steps)",
        ),
        ("preset: huge\n", "mine.yaml:1: preset cannot be 'huge': it is one of tiny, large"),
        ("training: {steps: 0}\n", "mine.yaml:1: training is impossible: steps must be at least 1, not 0"),
        (
            "training:\n  steps: 1\n  learning_rate: 1\n  steps: 2\n",
            "mine.yaml:4: steps stands there a second time; keep one of the two",
        ),
        ("run: {folder: x}\n", "mine.yaml:1: run.folder is a flag of the command line, no option of a file"),
        ("experiment: other\n", "mine.yaml: belongs to the experiment 'other', not to 'mine'"),
    ],
)
def test_a_file_of_ones_own_is_told_what_is_wrong_and_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_config(written(tmp_path, text), Experiment, "mine")
    assert "\n" not in str(caught.value)


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    # YAML takes 1e-5 for text: it wants a point.
    path = written(tmp_path, "training: {learning_rate: 1e-5}\n")
    assert read_config(path, Experiment).training.learning_rate == 1e-5


def test_what_a_file_does_not_name_comes_from_its_preset(tmp_path: Path) -> None:
    presets = {"tiny": Experiment(), "large": Experiment("large", Inner(0.5, 1000))}
    path = written(tmp_path, "preset: large\ntraining: {steps: 7}\n")
    found = read_config(path, Experiment, defaults=lambda raw: presets[raw["preset"]])
    assert found == Experiment("large", Inner(0.5, 7))


def test_the_experiment_is_named_and_flags_are_left_out(tmp_path: Path) -> None:
    config = Experiment(run=Running(tmp_path, 3))
    write_config(tmp_path, config, "mine")
    assert read_raw_config(tmp_path) == {
        "experiment": "mine",
        "preset": "tiny",
        "training": {"learning_rate": 1e-4, "steps": 10},
        "run": {"often": 3},
    }
    assert read_config(tmp_path, Experiment, "mine") == dataclasses.replace(config, run=Running(None, 3))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.yaml: no such file"):
        read_config(tmp_path, Settings)


def test_values_without_a_plain_form_are_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Odd:
        value: object

    with pytest.raises(TypeError, match="complex"):
        write_config(tmp_path, Odd(1j))
