from bilevel.report.table import Column, format_table, result_columns


def test_results_are_aligned_with_directions_and_gaps() -> None:
    results = {
        "bds": {
            "test_loss": 0.51234,
            "test_exact_match": 0.9,
            "fault_auc": 0.9876,
            "effective_sample_size": 812.4,
        },
        "uniform": {"test_loss": 12.0, "test_exact_match": 0.5, "fault_auc": None, "hard_auc": float("nan")},
    }
    assert format_table(results).splitlines() == [
        "method       test loss ↓  exact match ↑  fault AUC ↑  hard AUC ↑  effective rows",
        "-----------  -----------  -------------  -----------  ----------  --------------",
        "BDS               0.5123          0.900        0.988           -             812",
        "uniform SFT      12.0000          0.500            -           -               -",
        "(↓ lower is better, ↑ higher is better)",
    ]


def test_methods_without_a_title_and_columns_without_a_direction_show_plainly() -> None:
    table = format_table({"my_method": {"rows": 3}}, [Column("rows", "rows", digits=0)])
    assert table.splitlines() == ["method     rows", "---------  ----", "my method     3"]


def test_columns_are_those_with_a_number_known_ones_first() -> None:
    results = [
        {"stages": 3, "test_loss": None, "fault_auc": 0.5},
        {"note": "text", "effective_sample_size": 4.0},
    ]
    assert [column.key for column in result_columns(results)] == [
        "fault_auc",
        "effective_sample_size",
        "stages",
    ]
    assert format_table({"bds": {}}) == "method\n------\nBDS"
