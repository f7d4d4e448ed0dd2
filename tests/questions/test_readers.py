"""Question files: their formats and addresses, and the errors for broken ones."""

import csv
import gzip
import io
import json
import os
import stat
import threading
from collections.abc import Iterator
from datetime import date
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from malt.config.questions import QuestionSource
from malt.errors import QuestionError
from malt.questions.question import read_questions
from malt.questions.readers import MOST_BYTES, Row, read_rows

ROWS: list[dict[str, Any]] = [{"question": "1 + 1?", "answer": "2"}, {"question": "é, “ü”\nor 😀?", "answer": "x, y"}]


def as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def contents() -> dict[str, bytes]:
    """Return the same two rows in every file format."""
    jsonl = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    table = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    return {
        "q.jsonl": jsonl,
        "bom.jsonl": b"\xef\xbb\xbf" + jsonl,
        "crlf.jsonl": jsonl.replace(b"\n", b"\r\n"),
        "q.JSONL": jsonl,
        "q.jsonl.gz": gzip.compress(jsonl),
        "q.json": json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
        "q.csv": as_csv(ROWS).encode(),
        "bom.csv": as_csv(ROWS).encode("utf-8-sig"),
        "q.csv.gz": gzip.compress(as_csv(ROWS).encode()),
        "q.parquet": table.getvalue(),
    }


def rows_of(path: Path) -> list[Row]:
    return list(read_rows(str(path)))


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(QuestionError) as caught:
        read_questions(QuestionSource(source=str(path)))
    return str(caught.value).replace(f"{path.parent}/", "")


@pytest.mark.parametrize("name", contents())
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    assert [row.values for row in rows_of(written(tmp_path / name, contents()[name]))] == ROWS


@given(
    rows=st.lists(
        st.fixed_dictionaries({"a": st.text(st.characters(codec="utf-8", exclude_characters="\0"))}), min_size=1
    )
)
def test_any_text_in_jsonl_comes_back(rows: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = written(tmp_path_factory.mktemp("any") / "q.jsonl", text)
    assert [row.values for row in rows_of(path)] == rows


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    said = refusal(written(tmp_path / "q.xlsx", "x"))
    assert said.endswith(
        "q.xlsx: cannot tell its format; it must end in .jsonl, .json, .csv (each also with .gz) or .parquet"
    )


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    assert f"q.jsonl: no such file (looked in {Path.cwd()})" in refusal(tmp_path / "q.jsonl")


def test_a_folder_means_the_question_files_in_it_by_name(tmp_path: Path) -> None:
    written(tmp_path / "b.jsonl", '{"question": "2"}\n')
    written(tmp_path / "a.csv", "question\n1\n")
    written(tmp_path / "notes.md", "not a question file")
    assert [row.values["question"] for row in rows_of(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize("as_address", [False, True])
def test_a_star_means_all_files_that_match(tmp_path: Path, as_address: bool) -> None:
    for name in ("day-2", "day-1", "other"):
        written(tmp_path / f"{name}.jsonl", f'{{"question": "{name}"}}\n')
    source = f"{'file://' if as_address else ''}{tmp_path}/day-*.jsonl"
    assert [row.values["question"] for row in read_rows(source)] == ["day-1", "day-2"]


def test_nothing_that_matches_is_refused(tmp_path: Path) -> None:
    assert "no question file there" in refusal(tmp_path)
    with pytest.raises(QuestionError, match="no question file there"):
        read_rows(str(tmp_path / "*.jsonl"))
    with pytest.raises(QuestionError, match="no question file there"):
        read_rows(f"file://{tmp_path}/*.jsonl")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", ""),
        ("q.jsonl", "\n \n"),
        ("q.json", ""),
        ("q.json", "[]"),
        ("q.csv", ""),
        ("q.csv", "question,answer\n"),
    ],
)
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    assert refusal(written(tmp_path / name, content)).startswith(f"{name}: no questions in it")


def test_lines_are_counted_from_one_blank_ones_too(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", '\n{"a": 1}\n\n{"a": 2}')
    assert [row.place for row in rows_of(path)] == [f"{path}:2", f"{path}:4"]


def test_a_csv_row_stands_where_it_begins_though_fields_hold_newlines(tmp_path: Path) -> None:
    path = written(tmp_path / "q.csv", 'a,b\n"one\ntwo",1\n\n"x\ny\nz",2\nlast,3\n')
    assert [row.place for row in rows_of(path)] == [f"{path}:2", f"{path}:5", f"{path}:8"]


def test_rows_of_json_and_parquet_are_counted_from_one(tmp_path: Path) -> None:
    for name in ("q.json", "q.parquet"):
        path = written(tmp_path / name, contents()[name])
        assert [row.place for row in rows_of(path)] == [f"{path}, row 1", f"{path}, row 2"]


def foreign_parquet(**columns: pyarrow.Array) -> bytes:
    """Return a Parquet file of one row with additional columns."""
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table({"question": ["1 + 1?"], "answer": ["2"], **columns}), sink)
    return sink.getvalue()


GOOD = '{"question": "1 + 1?", "answer": "2"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", GOOD + '{"question": \n', "q.jsonl:2: not JSON (Expecting value"),
        ("q.jsonl", GOOD + "[" * 100_000, "q.jsonl:2: not JSON"),
        ("q.jsonl", GOOD + "[1, 2]\n", "q.jsonl:2: [1, 2] is not an object with columns"),
        ("q.jsonl", GOOD + "null\n", "q.jsonl:2: null is not an object"),
        (
            "q.jsonl",
            GOOD.encode() + b'{"question": "caf\xe9"}\n',
            "q.jsonl:2: not UTF-8 (byte 0xe9); save the file as UTF-8",
        ),
        ("q.jsonl", GOOD.encode("utf-16"), "q.jsonl:1: not UTF-8 (it looks like UTF-16)"),
        ("q.jsonl", GOOD + '{"question": "\\ud83d"}\n', "q.jsonl:2: text holds a lone surrogate (\\ud83d)"),
        ("q.jsonl", GOOD + '{"question": "a", "x": ["\\u0000"]}\n', "q.jsonl:2: text holds a NUL character"),
        (
            "q.json",
            GOOD + GOOD,
            "q.json:2: not JSON (Extra data, column 1); one object a line belongs in a .jsonl file",
        ),
        ("q.json", '[\n{"question": }]', "q.json:2: not JSON (Expecting value, column 14)"),
        ("q.json", "{}", "q.json: no column 'question' or 'problem'; it has: none. Name"),
        ("q.json", '{"data": []}', "q.json: no column 'question' or 'problem'; it has: data"),
        ("q.json", "3", "q.json: holds 3; a .json file must be a list of objects, or one object"),
        ("q.json", '[{"question": "?", "answer": "a"}, 3]', "q.json, row 2: 3 is not an object"),
        ("q.json", "[" * 100_000, "q.json: not JSON that can be read"),
        ("q.csv", "question,answer\n1,2\na,b,c\n", "q.csv:3: 3 fields under 2 columns (question, answer)"),
        ("q.csv", "question,answer\n1,2\na\n", "q.csv:3: 1 fields under 2 columns"),
        ("q.csv", 'question,answer\n1,2\n"a,b\nc,d\n', "q.csv:3: broken CSV (unexpected end of data)"),
        ("q.csv", "question,question\n1,2\n", "q.csv:1: two columns have the same name"),
        ("q.csv", "question;answer\n1;2\n", "q.csv:2: no column 'question' or 'problem'; it has: question;answer"),
        ("q.csv", b"question,answer\n\xff,1\n", "q.csv:2: not UTF-8 (byte 0xff)"),
        ("q.csv", "question,answer\n1,\n", "q.csv:2: empty reference answer in column 'answer'"),
        ("q.jsonl.gz", b"plain", "q.jsonl.gz: not a whole gzip file"),
        ("q.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0)[:-9], "q.jsonl.gz: not a whole gzip file"),
        ("q.parquet", b"plain", "q.parquet: not a Parquet file that can be read"),
        ("q.parquet", b"", "q.parquet: not a Parquet file that can be read"),
        (
            "q.parquet",
            foreign_parquet(day=pyarrow.array([2**62], pyarrow.timestamp("us"))),
            "q.parquet: not a Parquet file that can be read",
        ),
        (
            "q.parquet",
            foreign_parquet(day=pyarrow.array([1], pyarrow.timestamp("us", "No/Where"))),
            "q.parquet: not a Parquet file",
        ),
        ("q.jsonl", GOOD + '{"x\\ud83d": 1}\n', "q.jsonl:2: text holds a lone surrogate (\\ud83d)"),
        ("q.jsonl", GOOD + '{"x": {"a\\u0000": 1}}\n', "q.jsonl:2: text holds a NUL character"),
        ("q.jsonl", '{"x": ' + "[" * 300 + "]" * 300 + "}", "q.jsonl:1: a column holds lists or objects more than 100"),
        (
            "q.csv",
            ",".join(f"c{number}" for number in range(100_000)) + "\n" + "1," * 99_999 + "1\n",
            "c19 and 99,980 more. Name the right one as 'question', beside 'source'",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    assert message in refusal(written(tmp_path / name, content))


def test_parquet_values_become_json(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "question": ["a?", "b?"],
            "answer": pyarrow.array([72.0, None], pyarrow.float64()).fill_null(1.5),
            "id": pyarrow.array([1, 2], pyarrow.int64()),
            "day": [date(2024, 2, 29), None],
            "image": [b"\x89PNG", b""],
            "price": pyarrow.array(["1.50", None], pyarrow.string()).cast(pyarrow.decimal128(5, 2)),
            "scores": [[1.0, float("nan")], []],
        }
    )
    parquet.write_table(table, tmp_path / "q.parquet")
    first, second = read_questions(QuestionSource(source=str(tmp_path / "q.parquet")))
    assert (first.question_id, first.ground_truth) == ("1", "72")
    assert first.metadata == {"day": "2024-02-29", "price": "1.50", "scores": [1.0, None]}
    assert (second.ground_truth, second.metadata) == ("1.5", {"scores": []})


def test_csv_text_is_kept_as_written(tmp_path: Path) -> None:
    path = written(tmp_path / "q.csv", "id,question,answer\n007,?,72.0\n")
    (question,) = read_questions(QuestionSource(source=str(path)))
    assert (question.question_id, question.ground_truth) == ("007", "72.0")


def test_choices_in_csv_are_written_as_json(tmp_path: Path) -> None:
    path = written(tmp_path / "q.csv", as_csv([{"question": "?", "choices": '["x", "y"]', "answer": "B"}]))
    (question,) = read_questions(QuestionSource(source=str(path)))
    assert (question.choices, question.ground_truth) == (("x", "y"), "B")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve `tmp_path` over HTTP on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/private"):
                self.send_error(403)
            else:
                super().do_GET()

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv.gz", "q.parquet"])
def test_a_file_is_read_over_http(tmp_path: Path, server: str, name: str) -> None:
    written(tmp_path / name, contents()[name])
    assert [row.values for row in read_rows(f"{server}/{name}?download=true")] == ROWS


def test_a_file_that_is_not_at_its_address_is_refused(server: str) -> None:
    with pytest.raises(
        QuestionError, match=r"questions.source = http://.*/q.jsonl: not found there; check the address"
    ):
        read_questions(QuestionSource(source=f"{server}/q.jsonl"))


def test_an_error_shows_neither_password_nor_query_of_an_address(server: str) -> None:
    address = server.replace("//", "//me:hush@")
    with pytest.raises(QuestionError, match=r"/private\.jsonl: cannot be fetched: .*403") as caught:
        read_questions(QuestionSource(source=f"{address}/private.jsonl?signature=hush%2Fhush"))
    assert "hush" not in str(caught.value)


def test_an_address_that_does_not_answer_is_refused() -> None:
    with pytest.raises(QuestionError, match=r"http://127\.0\.0\.1:1/q\.jsonl: cannot be fetched: ClientConnectorError"):
        read_questions(QuestionSource(source="http://127.0.0.1:1/q.jsonl"))


def test_other_addresses_go_through_fsspec(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", contents()["q.jsonl"])
    assert [row.values for row in read_rows(path.as_uri())] == ROWS


def test_an_unknown_kind_of_address_is_refused() -> None:
    for address in (
        "gopher://host/q.jsonl",
        "ssh://host/q.jsonl",
        "memory://q.jsonl",
        "zip://q.jsonl::http://h/q.jsonl",
    ):
        with pytest.raises(QuestionError, match=r"addresses begin with file, http, https, s3, .*; not with "):
            read_questions(QuestionSource(source=address))


def test_a_missing_package_is_named() -> None:
    with pytest.raises(QuestionError, match=r"a package is missing: .*gcsfs"):
        read_questions(QuestionSource(source="gs://bucket/q.jsonl"))


def test_a_csv_field_may_be_as_long_as_a_text_is(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    path = written(tmp_path / "q.csv", f"question,answer\n{long},1\n")
    assert [row.values["question"] for row in rows_of(path)] == [long]


def test_a_link_is_refused_also_in_a_folder_and_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "elsewhere.jsonl", contents()["q.jsonl"])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "q.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    (tmp_path / "way").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for source in (
        tmp_path / "data",
        tmp_path / "data" / "q.jsonl",
        tmp_path / "data" / "*.jsonl",
        "way/elsewhere.jsonl",
    ):
        with pytest.raises(QuestionError, match="is a link; name the file that it leads to"):
            list(read_rows(str(source)))
    assert len(list(read_rows("elsewhere.jsonl"))) == len(ROWS)


def test_a_special_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "q.jsonl")
    with pytest.raises(QuestionError, match="it is no regular file"):
        rows_of(tmp_path / "q.jsonl")
    if os.geteuid() == 0:
        os.mknod(tmp_path / "zero.csv", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        with pytest.raises(QuestionError, match="it is no regular file"):
            rows_of(tmp_path / "zero.csv")


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "q.jsonl").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(QuestionError, match="it is larger than 1,024 MiB"):
        rows_of(tmp_path / "q.jsonl")


def test_a_gzip_bomb_is_refused(tmp_path: Path, server: str) -> None:
    bomb = gzip.compress(b"0" * (80 * 2**20), mtime=0)
    assert len(bomb) < 2**17
    written(tmp_path / "q.csv.gz", bomb)
    for source in (str(tmp_path / "q.csv.gz"), f"{server}/q.csv.gz"):
        with pytest.raises(QuestionError, match="it unpacks to more than 64 MiB"):
            list(read_rows(source))


def test_a_parquet_file_of_few_bytes_and_much_text_is_refused(tmp_path: Path) -> None:
    text = pyarrow.array(["x" * 2_000_000]).dictionary_encode()
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1024, pyarrow.int32()), text.dictionary)
    parquet.write_table(pyarrow.table({"question": column}), tmp_path / "q.parquet")
    assert (tmp_path / "q.parquet").stat().st_size < 2**20
    with pytest.raises(QuestionError, match="it unpacks to more than 1,024 MiB"):
        rows_of(tmp_path / "q.parquet")


def test_a_parquet_file_of_few_bytes_and_many_different_texts_is_refused_before_they_are_read(tmp_path: Path) -> None:
    texts = pyarrow.array([f"{number}{'x' * 100_000}" for number in range(700)])
    parquet.write_table(pyarrow.table({"question": texts}), tmp_path / "q.parquet", compression="zstd")
    assert (tmp_path / "q.parquet").stat().st_size < 2**17
    with pytest.raises(QuestionError, match="it unpacks to more than 64 MiB; split it, or compress it less"):
        rows_of(tmp_path / "q.parquet")


@pytest.mark.parametrize("nested", [False, True])
def test_a_long_text_in_many_cells_is_refused_before_it_is_written_out(tmp_path: Path, nested: bool) -> None:
    often = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 64, pyarrow.int32()), ["x" * 17_000_000])
    column = pyarrow.ListArray.from_arrays([0, 64], often) if nested else often
    parquet.write_table(pyarrow.table({"question": column}), tmp_path / "q.parquet", compression="zstd")
    assert (tmp_path / "q.parquet").stat().st_size < 2**14
    usual, own = pyarrow.default_memory_pool(), pyarrow.system_memory_pool()
    pyarrow.set_memory_pool(own)
    try:
        with pytest.raises(QuestionError, match="it unpacks to more than 1,024 MiB"):
            rows_of(tmp_path / "q.parquet")
    finally:
        pyarrow.set_memory_pool(usual)
    assert own.max_memory() < 2**29


def test_columns_of_all_kinds_are_read_as_they_were_written(tmp_path: Path) -> None:
    strings = pyarrow.map_(pyarrow.string(), pyarrow.string())
    columns = {
        "text": ["a", "a", None],
        "lists": [["a", "b"], [], None],
        "nested": [[["a"]], [[]], None],
        "object": [{"x": "y", "z": 1}] * 3,
        "pairs": pyarrow.array([[("k", "v")], [], None], strings),
        "two": pyarrow.array([[1, 2], [3, 4], [5, 6]], pyarrow.list_(pyarrow.int32(), 2)),
        "large": pyarrow.array(["1", "2", "3"], pyarrow.large_string()),
        "known": pyarrow.array(["u", "v", "u"]).dictionary_encode(),
    }
    table = pyarrow.table(columns)
    parquet.write_table(table, tmp_path / "q.parquet")
    expected = [{**row, "pairs": row["pairs"] and [list(pair) for pair in row["pairs"]]} for row in table.to_pylist()]
    assert [row.values for row in rows_of(tmp_path / "q.parquet")] == expected


@pytest.mark.parametrize(
    "name", ["http://[::1/q.jsonl", "a\0b.jsonl", f"{'a' * 5000}.jsonl", f"s3://{'a' * 5000}/[.csv"]
)
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(QuestionError, match=r"^questions\.source = ") as refused:
        read_questions(QuestionSource(source=name))
    assert len(str(refused.value)) < 12_000


def test_numbers_of_32_bits_are_read_as_they_are_written(tmp_path: Path) -> None:
    numbers = pyarrow.array([0.1, 72.0, None, float("nan")], pyarrow.float32())
    parquet.write_table(pyarrow.table({"answer": numbers}), tmp_path / "q.parquet")
    assert [row.values["answer"] for row in rows_of(tmp_path / "q.parquet")] == [0.1, 72.0, None, None]


def test_the_empty_columns_and_rows_that_spreadsheets_write_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "q.csv", "question,answer,,\na?,1,,\nb?,,,\n,,,\n")
    assert [row.values for row in rows_of(path)] == [
        {"question": "a?", "answer": "1"},
        {"question": "b?", "answer": None},
    ]


def test_one_object_a_file_is_read_from_a_folder(tmp_path: Path) -> None:
    for number in (1, 2):
        written(tmp_path / f"{number}.json", json.dumps({"problem": f"{number}?", "solution": "\\boxed{1}"}))
    assert [row.values["problem"] for row in rows_of(tmp_path)] == ["1?", "2?"]
