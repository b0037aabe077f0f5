import json

import pytest

from profiles.errors import DataError
from trainer.data.files import Row, Unreadable, read_rows, scan_rows


def test_a_json_line_is_a_row_and_blank_lines_are_none(data_file):
    path = data_file('{"text": "a"}\n\n{"text": "b"}\n')
    assert read_rows(path) == [Row("line 1", {"text": "a"}), Row("line 3", {"text": "b"})]


def test_a_byte_order_mark_is_no_part_of_the_data(data_file):
    assert read_rows(data_file('\ufeff{"text": "a"}\n')) == [Row("line 1", {"text": "a"})]


def test_a_json_list_and_a_csv_table_are_rows(data_file):
    assert read_rows(data_file(json.dumps([{"text": "a"}]), "d.json")) == [Row("row 1", {"text": "a"})]
    assert read_rows(data_file('text,n\n"a\nb",1\nc,2\n', "d.csv")) == [
        Row("line 3", {"text": "a\nb", "n": "1"}),
        Row("line 4", {"text": "c", "n": "2"}),
    ]


def test_a_parquet_file_is_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    messages = [{"role": "user", "content": "a"}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), tmp_path / "d.parquet")
    assert read_rows(tmp_path / "d.parquet") == [Row("row 1", {"messages": messages})]


@pytest.mark.slow
def test_a_saved_data_set_is_rows(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=datasets.Dataset.from_list([{"text": "b"}])).save_to_disk(tmp_path / "dict")
    datasets.DatasetDict(test=datasets.Dataset.from_list([{"text": "b"}])).save_to_disk(tmp_path / "no_train")
    assert read_rows(tmp_path / "one") == [Row("row 1", {"text": "a"})]
    assert read_rows(tmp_path / "dict") == [Row("row 1", {"text": "b"})]
    with pytest.raises(DataError, match="has the splits test, but none called train"):
        read_rows(tmp_path / "no_train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="was not written by datasets' save_to_disk"):
        read_rows(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("d.jsonl", '{"text": "a"}\n{"text": \n', r"d.jsonl, line 2: not JSON: Expecting value at character 9"),
        ("d.jsonl", '{"text": "a"}\n["a"]\n', r"line 2: a list, but a row must be an object"),
        ("d.jsonl", "\n\n", r"d.jsonl has no rows"),
        ("d.json", "", r"d.json has no rows"),
        ("d.json", '{"text": "a"}', r"holds an object, but must hold a list"),
        ("d.json", '[{"text": "a"},\n 3]', r"row 2: a number, but a row must be an object"),
        ("d.json", '[{"text": "a"},\n{]', r"line 2: not JSON"),
        ("d.csv", "text,n\na,1\nb\n", r"line 3: not as many fields as the header's 2"),
        ("d.csv", "text,n\na,1\nb,2,3\n", r"line 3: not as many fields"),
        ("d.csv", 'text\n"a" b\n', r"line 2: "),
        ("d.csv", "text\n", r"has no rows"),
        ("d.jsonl", b'{"text": "\xff"}\n', r"line 1: not UTF-8 text: invalid start byte at byte 11"),
        ("d.json", b'[{"text": "\xff"}]', r"is not UTF-8 text"),
        ("d.csv", b"text\na\n\xff\n", r"line 3: not UTF-8 text"),
        ("d.jsonl", "[" * 100_000, r"line 1: JSON that is nested too deep"),
        ("d.json", "[" * 100_000, r"JSON that is nested too deep"),
        ("d.parquet", "no parquet", r"is not a Parquet file"),
        ("d.txt", "a", r"not a data file that fitune reads"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(data_file, name, text, sentence):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=sentence):
        read_rows(data_file(text, name))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match=r"there is no data file .*none.jsonl"):
        read_rows(tmp_path / "none.jsonl")


BROKEN_CSV = 'text,n\na,1\n"b" x,2\nc,3,4\nd,5\n'


@pytest.mark.parametrize(
    ("name", "text", "places"),
    [
        ("d.jsonl", b'{"a": 1}\n{"a"\n{"a": "\xff"}\n3\n{"a": 2}\n', ["line 2", "line 3", "line 4"]),
        ("d.json", '[{"a": 1}, 3, {"a": 2}, "b"]', ["row 2", "row 4"]),
        ("d.csv", BROKEN_CSV, ["line 3", "line 4"]),
    ],
)
def test_a_scan_goes_on_after_what_it_cannot_read(data_file, name, text, places):
    found = list(scan_rows(data_file(text, name)))
    assert [row.place for row in found if isinstance(row, Unreadable)] == places
    assert len([row for row in found if isinstance(row, Row)]) == 2


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.parquet"])
def test_a_scan_says_how_far_it_is(data_file, tmp_path, name):
    if name.endswith("parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"a": ["1", "2"]}), tmp_path / name)
    else:
        data_file(
            {"d.jsonl": '{"a": 1}\n{"a": 2}\n', "d.json": '[{"a": 1}, {"a": 2}]', "d.csv": "a\n1\n2\n"}[name], name
        )
    shares = [row.share for row in scan_rows(tmp_path / name)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
