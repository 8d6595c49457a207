import json
import re
from pathlib import Path

import numpy as np
import pytest

from bilevel.data.rows import Row
from bilevel.errors import InputError
from bilevel.report import write_report
from bilevel.report.__main__ import main
from bilevel.report.sections import Chart, Section, Table, write_section
from bilevel.runs.metrics import MetricsWriter
from bilevel.runs.results import write_row_results
from bilevel.runs.run_folder import read_summary, write_summary
from bilevel.runs.run_record import write_finished
from bilevel.runs.warnings_file import add_warning, read_warnings
from tests.report.html_page import Page
from tests.report.invented_run import as_pool, invent_rows, invent_run, invent_weights


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return invent_rows(400)


@pytest.fixture(scope="module")
def page(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run with everything, drawn once."""
    folder = tmp_path_factory.mktemp("run")
    invent_run(folder, rows, steps=1000)
    return Page(write_report(folder))


def test_page_needs_nothing_but_itself(page: Page) -> None:
    assert page.pictures == 6
    assert not page.tags.keys() & {"script", "link", "iframe", "img", "object"}
    assert all(reference.startswith("#") for reference in page.references)
    assert "url(http" not in page.source
    assert "@import" not in page.source


def test_pictures_use_the_colours_of_the_page_and_do_not_mix_names(page: Page) -> None:
    pictures = "".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", pictures) == []
    assert len(page.names) == len(set(page.names))
    inner = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]+)\)", pictures))
    assert inner <= set(page.names)


def test_page_tells_the_result_and_every_number_of_the_table(page: Page) -> None:
    assert "bds_alpaca · tiny · seed 0" in page.text
    assert "1,000 steps · 3.6 min · 400 rows · 48,224 parameters" in page.text
    assert "BDS reaches an exact match of 0.812; uniform SFT reaches 0.621" in page.text
    assert "88% of what the faults cost is recovered" in page.text
    assert "in 98.4% of all pairs" in page.text
    for number in ("0.3124", "0.984", "0.841", "1184", "1.9241"):
        assert number in page.text
    assert page.source.count('class="best"') == 2
    assert "<dt>weighting.<wbr>rate</dt>" in page.source
    assert "<dt>packages.<wbr>jax</dt>" in page.source
    assert "This run has not finished" not in page.text


def test_page_tells_what_went_in_what_was_left_out_and_how_long_it_took(page: Page) -> None:
    assert "pool 400 data/rows.jsonl validation 32 trusted.jsonl" in page.text
    assert "pool: 3 of 9 rows were cut" in page.text
    assert "2 × empty response write an output or remove the row corpus:9 instruction Say it." in page.text
    assert "corpus:12" in page.text
    assert "BDS: train 3.2 min 98.0% 12.2 s" in page.text
    assert "2 short parts 0.3 s" in page.text
    assert "other 3.5 s 1.8% 0.5 s all 3.2 min 12.8 s" in page.text


def test_heaviest_and_lightest_rows_come_with_their_texts_and_losses(page: Page, rows: list[Row]) -> None:
    weights = invent_weights(rows)
    heaviest, lightest = rows[int(np.argmax(weights))], rows[int(np.argmin(weights))]
    before, after = page.text.split("Lightest")
    assert heaviest.id in before
    assert heaviest.output in before
    assert f"{weights.max() / weights.mean():.3g}×" in before
    assert re.search(r"loss [45]\.\d{3} → (0\.\d{3}|–)", before)
    assert lightest.id in after
    assert lightest.input in after


def test_the_same_folder_gives_the_same_page(page: Page) -> None:
    assert write_report(page.path.parent).read_text(encoding="utf-8") == page.source


def test_texts_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=http://a.b>&amp;$x$"
    rows = [Row(f"{evil}{i}", evil, evil, evil, {"fault": evil if i else ""}) for i in range(4)]
    invent_run(tmp_path, rows, steps=10)
    (tmp_path / "rejected.jsonl").write_text(json.dumps({"id": evil, "reason": evil, "remedy": evil}) + "\n")
    (tmp_path / "config.yaml").write_text(json.dumps({evil: evil}))
    write_summary(tmp_path, read_summary(tmp_path) | {"preset": evil})
    chart = Chart(evil, {evil: [(0, 1), (1, 2)], "b": [(0, 1)]}, evil, evil, evil)
    table = Table(evil, (evil,), [(evil,)], evil)
    write_section(tmp_path, evil, Section(evil, evil, [chart], [table]))
    page = Page(write_report(tmp_path))
    assert page.tags["script"] == page.tags["img"] == 0
    assert page.text.count(evil) > 15


def test_texts_of_any_script_and_length(tmp_path: Path) -> None:
    texts = ["שלום עולם", "مرحبا $100$", "日本語の長い文", "word " * 1000, "a\u2028b\x07", "🙂" * 50]
    rows = [Row(f"r:{i}", "do", "", text, {"fault": texts[i] if i else ""}) for i, text in enumerate(texts)]
    invent_run(tmp_path, rows, steps=10)
    page = Page(write_report(tmp_path))
    assert "שלום עולם" in page.text
    assert "日本語の長い文 (1)" in page.text
    assert page.text.count("word") < 300
    assert "word \u2066… (5,000 characters)\u2069" in page.text
    assert 'dir="auto"' in page.source


def test_one_method_without_labels_gaps_or_texts(tmp_path: Path) -> None:
    rows = invent_rows(50, labelled=False)
    invent_run(tmp_path, rows, methods=("uniform",), steps=10)
    (tmp_path / "extremes.jsonl").unlink()
    page = Page(write_report(tmp_path))
    assert "all rows (50)" in page.text
    assert "By label" not in page.text
    assert "recovered" not in page.text
    assert 'class="best"' not in page.source
    assert "Heaviest" not in page.text


def test_equal_weights_have_no_heaviest_row(tmp_path: Path) -> None:
    rows = invent_rows(10)
    invent_run(tmp_path, rows, steps=10)
    for weights in (np.ones(10), np.zeros(10)):
        write_row_results(tmp_path, as_pool(rows), {"weight": weights}, np.arange(5))
        page = Page(write_report(tmp_path))
        assert "All rows weigh the same." in page.text
        assert "Heaviest" not in page.text


def test_a_single_row(tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(1), steps=10)
    page = Page(write_report(tmp_path))
    assert "All rows weigh the same." in page.text


def test_many_rows_make_no_large_page(tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(20_000), methods=("bds",), steps=10)
    path = write_report(tmp_path)
    assert path.stat().st_size < 400_000
    assert "A sample of about 600 rows." in Page(path).text


def test_summary_alone_gives_a_page(tmp_path: Path) -> None:
    summary = {"experiment": "e", "preset": "p", "seed": 1, "seconds": 2.0, "steps": 3}
    write_summary(tmp_path, summary | {"methods": {"bds": {"test_loss": None}}})
    page = Page(write_report(tmp_path))
    assert "3 steps · 2.0 s" in page.text
    assert "None: every row was used." in page.text
    assert "No results yet." in page.text
    assert page.pictures == 0


def test_runs_without_held_out_rows_have_no_columns_for_them(tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(20), steps=10)
    summary = read_summary(tmp_path)
    for line in summary["methods"].values():
        line |= {"test_loss": None, "test_exact_match": None}
    write_summary(tmp_path, summary)
    page = Page(write_report(tmp_path))
    assert "test loss" not in page.text
    assert "There were no held-out rows to test on." in page.text
    assert "effective rows" in page.text


def test_skipped_steps_lost_numbers_and_collapsed_weights_are_said(tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(100), methods=("bds",), steps=10)
    with MetricsWriter(tmp_path, events=False) as metrics:
        metrics.write("bds", 10, {"lower_loss": float("nan"), "skipped_steps": 3})
    summary = read_summary(tmp_path)
    summary["methods"]["bds"]["effective_sample_size"] = 1.5
    write_summary(tmp_path, summary)
    text = Page(write_report(tmp_path)).text
    assert "BDS: 3 steps were not applied" in text
    assert "BDS: lower_loss was not finite in 1 of 3 measurements." in text
    assert "The weights amount to 1.5 of 100 rows" in text


def test_what_a_run_warned_of_is_said_once(tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(10), methods=("bds",), steps=10)
    for line in ("weights\ncollapse", "logits record visits", "weights collapse"):
        add_warning(tmp_path, line)
    assert read_warnings(tmp_path) == ["weights collapse", "logits record visits"]
    assert Page(write_report(tmp_path)).text.count("weights collapse") == 1


def test_a_run_that_goes_on_or_was_killed_is_shown_as_far_as_it_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invent_run(tmp_path, invent_rows(20), steps=100)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:30]) + lines[30][:20])
    extremes = (tmp_path / "extremes.jsonl").read_text()
    (tmp_path / "extremes.jsonl").write_text(extremes[:-30])
    for name in ("summary.json", "weights.parquet", "timings.json"):
        (tmp_path / name).unlink()
    write_finished(tmp_path, "bds", {"results": {"test_loss": 0.7654}, "metrics": 0})
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path}/report.html\n"
    page = Page(tmp_path / "report.html")
    assert "bds_alpaca · seed 0" in page.text
    assert "This run has not finished. uniform SFT has reached step 45; " in page.text
    assert "direct mixing, validation only, clean only (oracle) have not begun." in page.text
    assert "BDS 0.7654" in page.text
    assert page.pictures == 4


def test_folders_without_a_run_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        write_report(tmp_path / "nowhere")
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}: no run folder (summary.json, ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["summary.json", "environment.json", "rejected.jsonl", "run.json"])
def test_broken_files_are_named(name: str, tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(5), steps=10)
    (tmp_path / name).write_text("{\n")
    with pytest.raises(InputError, match=name):
        write_report(tmp_path)


def test_many_rejected_rows_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(10), steps=10)
    lines = [{"id": f"r:{i}", "reason": "too long" if i % 3 else "empty\u2028response"} for i in range(60)]
    (tmp_path / "rejected.jsonl").write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    page = Page(write_report(tmp_path))
    assert "40 × too long" in page.text
    assert "The first 50 of 60 rows" in page.text
    assert "r:49" in page.text
    assert "r:50" not in page.text


def test_sections_of_methods_are_drawn_without_knowing_them(tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(10), steps=10)
    by_stage = {"clean": [(1, 0.5), (2, 0.75)], "off topic": [(1, 0.5), (2, None)]}
    charts = [
        Chart("Preference", by_stage, "stage", "score", "What is preferred."),
        Chart("Counts", by_stage, "stage", kind="bars"),
        Chart("Nothing", {"a": [(0, None)]}),
    ]
    table = Table("Stages", ("stage", "rows", "share"), [("first", 12345, 0.123456), ("second", None, 1.0)])
    write_section(tmp_path, "dwm", Section("What it prefers", "By stage.", charts, [table]))
    page = Page(write_report(tmp_path))
    assert page.pictures == 8
    assert "What it prefers DWM: By stage." in page.text
    assert "From left to right: clean, off topic." in page.text
    assert "first 12,345 0.1235 second – 1" in page.text
    assert "Nothing" not in page.text
