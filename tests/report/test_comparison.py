from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bilevel.errors import InputError
from bilevel.report import Comparison, compare, comparison_text, write_comparison
from bilevel.report.intervals import interval
from bilevel.report.table import Column
from bilevel.runs.config_file import write_config
from bilevel.runs.run_folder import read_summary, write_summary
from tests.report.html_page import Page
from tests.report.invented_run import Settings, Weighting, invent_rows, invent_run

COLUMN = Column("test_loss", "test loss", "lower", 2)


def invent(root: Path, name: str, seed: int, rate: float = 0.3, steps: int = 20) -> Path:
    folder = root / f"{name}-s{seed}"
    folder.mkdir()
    invent_run(folder, invent_rows(10), methods=("bds", "uniform"), steps=steps, seed=seed)
    write_config(folder, Settings(seed=seed, run_dir=folder, steps=steps, weighting=Weighting(rate)))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Three seeds of one setting, two of another, one of a third."""
    root = tmp_path_factory.mktemp("runs")
    return {
        "a": [invent(root, "a", seed) for seed in (0, 1, 2)],
        "b": [invent(root, "b", seed, 0.5) for seed in (0, 1)],
        "c": [invent(root, "c", 7, 0.7)],
    }


@pytest.fixture(scope="module")
def compared(folders: dict[str, list[Path]]) -> Comparison:
    return compare([folders["a"][0], folders["b"][0], *folders["a"][1:], folders["c"][0], folders["b"][1]])


def test_intervals_are_those_of_students_distribution() -> None:
    values = [0.3, 0.7, 0.4, 0.9]
    found = interval([*values, None, float("nan")])
    assert found is not None
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.texts(COLUMN) == ("0.57", f"± {high - np.mean(values):.2f}")


def test_of_two_runs_the_range_is_shown_and_of_one_nothing() -> None:
    two, one = interval([2.0, 1.0]), interval([None, 3.0])
    assert two is not None
    assert one is not None
    assert two.texts(COLUMN) == ("1.50", "[1.00, 2.00]")
    assert one.texts(COLUMN) == ("3.00", "")
    assert interval([None]) is None


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    found = [interval(list(row)) for row in draws]
    covered = np.mean([one is not None and one.low <= 0 <= one.high for one in found])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_runs_that_differ_by_seed_alone_belong_together(compared: Comparison) -> None:
    seeds = [[run.summary["seed"] for run in group.runs] for group in compared.groups]
    assert seeds == [[0, 1, 2], [0, 1], [7]]
    assert [compared.name(group) for group in compared.groups] == [
        "A: rate 0.3",
        "B: rate 0.5",
        "C: rate 0.7",
    ]
    assert compared.differences == {"weighting.rate": ("0.3", "0.5", "0.7")}
    assert compared.common["weighting.normalise"] == "softmax"
    assert "seed" not in compared.common


def test_numbers_are_means_over_the_seeds(compared: Comparison) -> None:
    line = compared.lines()[0]
    assert (line.group, line.method, line.runs) == ("A: rate 0.3", "BDS", 3)
    losses = 0.3124 * (1 + 0.02 * np.arange(3))
    radius = stats.t.ppf(0.975, 2) * stats.sem(losses)
    assert line.cells[0] == (f"{losses.mean():.4f}", f"± {radius:.4f}")
    assert compared.lines()[-1].cells[2] == ("-", "")


def test_curves_are_means_with_bands_where_there_are_several_seeds(compared: Comparison) -> None:
    curve = compared.groups[0].curve("bds", "lower_loss", "A", 0)
    runs = [run.metrics["bds"] for run in compared.groups[0].runs]
    values = np.array([[line["lower_loss"] for line in lines] for lines in runs])
    assert curve is not None
    assert curve.low is not None
    np.testing.assert_allclose(curve.x, [0, 5, 10, 15])
    np.testing.assert_allclose(curve.y, values.mean(0))
    np.testing.assert_allclose(curve.y - curve.low, stats.t.ppf(0.975, 2) * stats.sem(values))
    single = compared.groups[2].curve("bds", "lower_loss", "C", 2)
    assert single is not None
    assert single.low is None
    assert compared.groups[0].curve("bds", "residual", "A", 0) is None


def test_curves_of_runs_that_measured_at_other_steps_use_those_in_common(tmp_path: Path) -> None:
    first, second = (invent(tmp_path, "r", seed) for seed in (0, 1))
    lines = (second / "metrics.jsonl").read_text().splitlines(keepends=True)
    (second / "metrics.jsonl").write_text("".join(lines[1:]))
    curve = compare([first, second]).groups[0].curve("bds", "upper_loss", "A", 0)
    assert curve is not None
    np.testing.assert_allclose(curve.x, [5, 10, 15])


def test_runs_of_the_same_settings_and_seed_are_no_independent_draws(tmp_path: Path) -> None:
    again = [invent(tmp_path, name, 3) for name in ("first", "second")]
    comparison = compare(again)
    assert [len(group.runs) for group in comparison.groups] == [1, 1]
    assert [comparison.name(group) for group in comparison.groups] == ["A", "B"]
    assert comparison.differences == {}


def test_settings_that_another_version_did_not_know_are_as_if_unset(tmp_path: Path) -> None:
    older, newer = (invent(tmp_path, name, seed) for seed, name in enumerate(("older", "newer")))
    lines = (older / "config.yaml").read_text().splitlines(keepends=True)
    (older / "config.yaml").write_text("".join(line for line in lines if not line.startswith("notes")))
    assert len(lines) > len((older / "config.yaml").read_text().splitlines())
    assert len(compare([older, newer]).groups) == 1


def test_the_table_says_what_its_numbers_are(compared: Comparison) -> None:
    text = comparison_text(compared)
    assert text.splitlines()[0].split("  ")[0] == "runs"
    assert "A: rate 0.3  BDS          3" in text
    assert "95% t-interval" in text
    assert "weighting.rate  0.3  0.5  0.7" in text


def test_the_page_stands_alone(compared: Comparison, tmp_path: Path) -> None:
    write_comparison(compared, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "Comparison of 6 runs" in page.text
    assert "weighting.rate 0.3 0.5 0.7" in page.text
    assert "Bands are the intervals of the table." in page.text
    assert page.pictures == 4
    assert page.source.count("FillBetween") > 0
    assert not page.tags.keys() & {"script", "link", "img"}
    assert all(reference.startswith("#") for reference in page.references)
    assert len(page.names) == len(set(page.names))


def test_one_setting_shows_all_its_methods(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    write_comparison(compare(folders["a"]), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "1 setting · 3 runs" in page.text
    assert "Differences" not in page.text
    assert page.text.count("uniform SFT") > 1


def test_what_cannot_be_compared_is_named(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    run = folders["a"][0]
    with pytest.raises(InputError, match="two runs or more"):
        compare([run])
    with pytest.raises(InputError, match="are the same run; name it once"):
        compare([run, run.parent / "." / run.name])
    (tmp_path / "latest").symlink_to(run)
    with pytest.raises(InputError, match=r"latest and .* are the same run"):
        compare([run, tmp_path / "latest"])
    with pytest.raises(InputError, match="nowhere: no such folder"):
        compare([run, tmp_path / "nowhere"])
    with pytest.raises(InputError, match="no run folder"):
        compare([run, tmp_path])
    unfinished = invent(tmp_path, "u", 0)
    (unfinished / "summary.json").unlink()
    with pytest.raises(InputError, match=r"u-s0: summary.json is missing, the run has not finished"):
        compare([run, unfinished])


def test_names_of_many_groups_go_on_after_z(tmp_path: Path) -> None:
    runs = [invent(tmp_path, f"r{number}", 0, rate=0.1 + number, steps=5) for number in range(28)]
    comparison = compare(runs)
    assert [group.letter for group in comparison.groups][-4:] == ["Y", "Z", "AA", "AB"]
    write_comparison(comparison, tmp_path / "page.html")
    assert "The first 12 of 28." in Page(tmp_path / "page.html").text


def test_texts_of_a_run_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    runs = [invent(tmp_path, name, 0) for name in ("a", "b")]
    write_summary(runs[0], read_summary(runs[0]) | {"experiment": evil})
    write_comparison(compare(runs), tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.tags["script"] == 0
    assert evil in page.text
