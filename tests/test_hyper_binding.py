"""Where a placeholder may stand, and what a statement's words say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st
from psycopg import ProgrammingError

from trio_hyperpool._binding import lacks_copy_format, parse, read_statement


@pytest.mark.parametrize(
    ("query", "chunks", "keys"),
    [
        (b"select 1", (b"select 1",), None),
        (b"", (b"",), None),
        (b"select %s, %t,%b", (b"select ", b", ", b",", b""), None),
        (b"select %s::int+%s", (b"select ", b"::int+", b""), None),
        (b"select (%s)", (b"select (", b")"), None),
        (b"select -%s", (b"select -", b""), None),
        (b"select a&%s", (b"select a&", b""), None),
        (b"%(a)s, %(b)s, %(a)s", (b"", b", ", b", ", b""), ("a", "b", "a")),
        (b"%(\xc3\xa9 x)s", (b"", b""), ("é x",)),
        (b"select 5 %% 3, '%%', %s", (b"select 5 % 3, '%', ", b""), None),
        (b'select "a%%b" -- 5%%\n, %s', (b'select "a%b" -- 5%\n, ', b""), None),
        (b"select $$%%$$, %s", (b"select $$%$$, ", b""), None),
        (b"select $\xc3\xa9$ '$$' $\xc3\xa9$, %s", None, None),
        (b"select 'it''s', %s", (b"select 'it''s', ", b""), None),
        (rb"select 'a\', %s", (rb"select 'a\', ", b""), None),
        (rb"select E'a\'', %s", (rb"select E'a\'', ", b""), None),
        (rb"select 1E'a\'', %s", (rb"select 1E'a\'', ", b""), None),
        (rb"select ae'\', %s", (rb"select ae'\', ", b""), None),
        (b"select /* /* */ %s", (b"select /* /* */ ", b""), None),
        (b"select /*/ ' */ %s", (b"select /*/ ' */ ", b""), None),
        (b"select -- '\r %s", (b"select -- '\r ", b""), None),
        (b"select 'a' || %s || 'b'", (b"select 'a' || ", b" || 'b'"), None),
    ],
)
def test_placeholders_are_found_where_a_literal_may_stand(
    query: bytes, chunks: tuple[bytes, ...] | None, keys: tuple[str, ...] | None
) -> None:
    template = parse(query)
    if chunks is not None:
        assert template.chunks == chunks
    assert template.keys == keys


@pytest.mark.parametrize(
    "query",
    [
        b"'%s'",
        b"E'\\'%s'",
        b'"%s"',
        b"-- %s",
        b"/* %s */",
        b"$$%s$$",
        b"$a$ $$ %s $a$",
        b"'%(a)s'",
        b"'50%'",
        b"'%%%s'",
        b"x%s",
        b"E%s",
        b"1%s",
        b"1.%s",
        b"t.%s",
        b"\xc3\xa9%s",
        b"%sx",
        b"%s1",
        b"%s.5",
        b"'a'%s",
        b"%s'a'",
        b'"a"%s',
        b"U&%s",
        b"u&%s",
        b"$%s",
        b"%s%s",
        b"%s %s",
        b"%s\n%s",
        b"'a'\n%s",
        b"'a' -- b\n %s",
        b"%s\n'\\'",
        b"E'a'\n'\\', %s --'",
        b"$1, %s",
        b"'never closed, %s",
        b'"never closed, %s',
        b"/* never closed, %s",
        b"$a$never closed$b$, %s",
        b"%d",
        b"%",
        b"5 % 3",
        b"%(a)",
        b"%(a",
        b"%()s",
        b"%(\xff)s",
        b"%s, %(a)s",
    ],
)
def test_placeholders_that_could_let_a_value_out_are_refused(query: bytes) -> None:
    with pytest.raises(ProgrammingError):
        parse(query)


_PIECES = st.sampled_from(
    [
        "%s",
        "%%",
        "'",
        '"',
        "\\",
        "$$",
        "$a$",
        "--",
        "/*",
        "*/",
        "\n",
        " ",
        "E",
        ",",
        "1",
    ]
)


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_what_is_parsed_says_the_same_as_what_was_written(query: str) -> None:
    try:
        template = parse(query.encode())
    except ProgrammingError:
        return
    chunks = [chunk.replace(b"%", b"%%") for chunk in template.chunks]
    assert b"%s".join(chunks) == query.encode()


@pytest.mark.parametrize(
    ("query", "params", "expected"),
    [
        (b"%s, %s", [1, 2], [1, 2]),
        (b"%s, %s", (1, 2), (1, 2)),
        (b"%(a)s, %(b)s, %(a)s", {"a": 1, "b": 2, "c": 3}, [1, 2, 1]),
        (b"select 1", {}, ()),
        (b"select 1", [], []),
    ],
)
def test_parameters_come_in_the_order_of_their_placeholders(
    query: bytes, params: Any, expected: Any
) -> None:
    assert parse(query).arrange(params) == expected


@pytest.mark.parametrize(
    ("query", "params", "error"),
    [
        (b"%s", [1, 2], ProgrammingError),
        (b"%s", [], ProgrammingError),
        (b"%(a)s", {"b": 1}, ProgrammingError),
        (b"%(a)s", [1], TypeError),
        (b"%s", {"a": 1}, TypeError),
        (b"%s", "a", TypeError),
        (b"%s", b"ab", TypeError),
        (b"%s", 1, TypeError),
        (b"%s", {1}, TypeError),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    query: bytes, params: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        parse(query).arrange(params)


@pytest.mark.parametrize(
    ("query", "verb", "changes"),
    [
        (b"", "", False),
        (b"/* open", "", False),
        (b"select 1", "SELECT", False),
        (b"-- x\n /* y */ Set a = 1", "SET", True),
        (b"reset all", "RESET", True),
        (b"prepare a as select 1", "PREPARE", True),
        (b'detach database "a"', "DETACH", True),
        (b"create table t (a int)", "CREATE", False),
        (b"create temp table t (a int)", "CREATE", True),
        (b"CREATE /**/ LOCAL TEMPORARY TABLE t (a int)", "CREATE", True),
        (b"create table temp (a int)", "CREATE", False),
        (b"declare c cursor for select 1", "DECLARE", False),
        (b"declare c cursor with\n hold for select 1", "DECLARE", True),
        (b"select pg_catalog.SET_CONFIG('a', 'b', false)", "SELECT", True),
    ],
)
def test_a_statement_says_by_its_words_whether_it_changes_the_session(
    query: bytes, verb: str, changes: bool
) -> None:
    statement = read_statement(query)
    assert (statement.verb, statement.changes_session) == (verb, changes)


@pytest.mark.parametrize("verb", ["fetch", "MOVE", "/**/execute", "values", "( VALUES"])
def test_what_goes_wrong_by_the_extended_protocol_is_known(verb: str) -> None:
    assert read_statement(f"{verb} (1)".encode()).if_extended
    assert not read_statement(b"select 1").if_extended


@pytest.mark.parametrize(
    ("query", "alias"),
    [
        (b'attach database "a as b" as c', "c"),
        (b'attach database "a" as "c ""d" ;', '"c ""d"'),
        (b"attach database \"a\" AS x WITH (access_mode='readonly')", "x"),
        (b"select 1 as x", None),
    ],
)
def test_the_alias_of_an_attached_database_is_known(
    query: bytes, alias: str | None
) -> None:
    assert read_statement(query).alias == alias


@pytest.mark.parametrize(
    ("query", "lacks"),
    [
        (b"copy t from stdin", True),
        (b"COPY (select 1) TO STDOUT", True),
        (b"copy t from stdin with (format csv)", False),
        (b"copy t from 'file.csv'", False),
        (b"select 'copy stdin'", False),
    ],
)
def test_a_copy_without_a_format_is_told_apart(query: bytes, lacks: bool) -> None:
    assert lacks_copy_format(query) is lacks
