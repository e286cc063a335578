"""Days of a split that is stored by day: which files are chosen, and what is refused."""

from datetime import date

import pytest

from stem_torchrec.config.days import Days, parse_days
from stem_torchrec.config.reading import validate
from stem_torchrec.data.days import select_days
from stem_torchrec.errors import UserError


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2022-04-08:2022-04-21", date(2022, 4, 8), date(2022, 4, 21)),
        ("20220408:20220408", date(2022, 4, 8), date(2022, 4, 8)),
        ("2022-04-08", date(2022, 4, 8), date(2022, 4, 8)),
        ("20220408", date(2022, 4, 8), date(2022, 4, 8)),
    ],
)
def test_days_are_inclusive(text, first, last):
    assert parse_days(text) == Days(first, last)


@pytest.mark.parametrize(
    "text", ["", "today", "2022-04", "2022-04-31", ":2022-04-08", "2022-04-08:", "2022-0408",
             "2022-04-08:2022-04-09:2022-04-10", "date=2022-04-08", "2022-04-081"]
)  # fmt: skip
def test_what_is_no_day(text):
    with pytest.raises(ValueError, match="expected a day"):
        parse_days(text)


def test_an_end_before_the_beginning():
    with pytest.raises(ValueError, match="last day lies before"):
        parse_days("2022-04-09:2022-04-08")


def test_files_by_name_and_by_folder(tmp_path):
    files = [
        tmp_path / name
        for name in (
            "20220407.parquet",
            "20220408.parquet",
            "2022-04-09-part-1.parquet",
            "2022-04-10_0.parquet",
            "date=2022-04-08/hour=03/part-0.parquet",
            "dt=20220410/20220408.parquet",
        )
    ]
    chosen = select_days(files, tmp_path, parse_days("2022-04-08:2022-04-09"))
    assert chosen == [files[1], files[2], files[4]]


def test_a_file_without_a_day(tmp_path):
    files = [tmp_path / "20220408.parquet", tmp_path / "part-0.parquet"]
    with pytest.raises(UserError, match=r"data\.days: .*part-0\.parquet has no day in its name"):
        select_days(files, tmp_path, parse_days("2022-04-08"))


def test_days_that_are_not_there(tmp_path):
    files = [tmp_path / f"202204{day:02}.parquet" for day in range(1, 13)]
    with pytest.raises(UserError, match=r"no day of 2022-05-01:2022-05-02; it has 2022-04-01, 2"):
        select_days(files[:2], tmp_path, parse_days("2022-05-01:2022-05-02"))
    with pytest.raises(UserError, match=r"2022-04-05, \.\.\., 2022-04-08"):
        select_days(files, tmp_path, parse_days("2022-05-01"))


@pytest.mark.parametrize("value", ["2022-04-08", date(2022, 4, 8), 20220408])
def test_the_key_takes_what_yaml_makes_of_a_day(value):
    config = validate({"run": {"dir": "r"}, "data": {"path": "d", "days": value}})
    assert config.data.days_of("train") == parse_days("2022-04-08")
    assert config.data.days_of("test") is None


def test_a_wrong_key_value_names_the_key():
    with pytest.raises(UserError, match=r"data\.days: .*expected a day.*found 'soon'"):
        validate({"run": {"dir": "r"}, "data": {"path": "d", "days": "soon"}})
