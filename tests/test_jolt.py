"""JOLT specifications: what is wrong with one is told, and what one does is bounded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmonyd.errors import HarmonydError
from harmonyd.jolt import BadSpecification, Chain, TransformFailed, decode, encode


def one(operation: str, spec: Any) -> Chain:
    return Chain([{"operation": operation, "spec": spec}])


@pytest.mark.parametrize(
    ("operation", "spec", "before", "after"),
    [
        ("shift", {"a": {"*": "b.&"}, "c|d": "e[]"}, {"a": {"x": 1}, "c": 2, "d": 3}, {"b": {"x": 1}, "e": [2, 3]}),
        ("shift", {"*": {"n": "out[&1].m"}}, [{"n": 1}, {"n": 2}], {"out": [{"m": 1}, {"m": 2}]}),
        ("default", {"a": 1, "b": {"c": 2}, "l[]": {"0": 9}}, {"a": None, "b": {}}, {"a": 1, "b": {"c": 2}, "l": [9]}),
        ("remove", {"a": "", "b": {"*-x": ""}}, {"a": 1, "b": {"1-x": 1, "y": 2}}, {"b": {"y": 2}}),
        ("cardinality", {"a": "MANY", "b": "ONE"}, {"a": 1, "b": [2, 3]}, {"a": [1], "b": 2}),
        ("modify-overwrite-beta", {"a": "=toUpper", "b?": "x"}, {"a": "ct"}, {"a": "CT"}),
        ("modify-default-beta", {"a": "new", "b": "=concat(@(1,a),'!')"}, {"a": "old"}, {"a": "old", "b": "old!"}),
        ("modify-define-beta", {"a": "new"}, {"a": None}, {"a": None}),
    ],
)
def test_operations_do_what_jolt_says(operation: str, spec: Any, before: Any, after: Any) -> None:
    """Each operation, as JOLT's own documentation has it; the input stays as it was."""
    given = decode(encode(before))
    assert one(operation, spec).apply(given) == after
    assert given == before


def test_operations_follow_each_other() -> None:
    """The result of one is the input of the next; sort orders keys."""
    chain = Chain([{"operation": "shift", "spec": {"b": "z", "a": "y"}}, {"operation": "sort"}])
    assert list(chain.apply({"b": 1, "a": 2})) == ["y", "z"]


@pytest.mark.parametrize(
    ("specification", "said"),
    [
        ([], "not a list of operations"),
        ({"operation": "sort"}, "not a list of operations"),
        (["sort"], "operation 1: not an object"),
        ([{"operation": "sort"}, {"operation": "shif", "spec": {}}], "operation 2 (shif): unknown operation; known: "),
        ([{"operation": "sort", "specs": {}}], 'operation 1 (sort): unknown member "specs"'),
        ([{"operation": "shift", "spec": {"a": {"b": "ok", "c": 5}}}], "operation 1 (shift), at a / c: "),
        ([{"operation": "shift", "spec": {"a": "b[x]"}}], "operation 1 (shift), at a: "),
        ([{"operation": "cardinality", "spec": {"a": "SOME"}}], "operation 1 (cardinality), at a: "),
        ([{"operation": "modify-overwrite-beta", "spec": {"a": "=no"}}], "(modify-overwrite-beta), at a: Unknown"),
        ([{"operation": "remove", "spec": {"a": 5}}], "operation 1 (remove), at a: "),
        ([{"operation": "default", "spec": 5}], "operation 1 (default): "),
    ],
)
def test_what_is_wrong_is_told(specification: Any, said: str) -> None:
    """The complaint has the number and name of the operation, and where in it the mistake is."""
    with pytest.raises(BadSpecification) as caught:
        Chain(specification)
    assert said in caught.value.detail


def test_remarks_are_no_mistakes() -> None:
    """JOLT ignores what it does not know; here a remark has to look like one."""
    Chain([{"operation": "sort", "//": "why", "_note": "", "comment": "", "description": ""}])


@pytest.mark.parametrize("key", ["999999999", "1000001"])
def test_an_index_that_a_client_sent_costs_no_memory(key: str) -> None:
    """An array is not filled up to an index that came with the data."""
    with pytest.raises(TransformFailed, match="mostly empty"):
        one("shift", {"*": "out[&]"}).apply({key: 1})
    many = {"a": {str(number): {"900000": 1} for number in range(5)}}
    with pytest.raises(TransformFailed, match="mostly empty"):
        one("shift", {"a": {"*": {"*": "out.x&1[&]"}}}).apply(many)
    assert len(one("shift", {"*": "out[&]"}).apply({"9999": 1})["out"]) == 10_000


def test_data_that_does_not_fit_is_an_error_of_ours() -> None:
    """What the library raises while it works is told with the operation."""
    deep: Any = {}
    for _ in range(3000):
        deep = {"a": deep}
    with pytest.raises(TransformFailed, match=r"operation 1 .*nested too deeply"):
        one("sort", {}).apply(deep)
    with pytest.raises(TransformFailed, match=r"operation 1 .shift.: Reference goes"):
        one("shift", {"a": "b.&7"}).apply({"a": 1})
    with pytest.raises(TransformFailed, match="cannot be written as JSON"):
        encode({"a": float("inf")})


@pytest.mark.parametrize("text", [b"{", b"[NaN]", b'"\xff"', b"[" * 100_000])
def test_text_that_is_no_json(text: bytes) -> None:
    """Decoding raises one kind of error, whatever is wrong."""
    with pytest.raises(ValueError):
        decode(text)


def test_threads_share_a_chain() -> None:
    """Several threads may apply one chain at once: none sees what another does."""
    chain = Chain(
        [
            {"operation": "shift", "spec": {"list": {"*": {"v": "out[&1]", "*": "rest.&1[]"}}, "id": "id"}},
            {"operation": "modify-overwrite-beta", "spec": {"id": "=concat(@(1,id),'-',^tail)"}},
        ]
    )

    def work(number: int) -> bool:
        data = {"id": str(number), "list": [{"v": number, "x": place} for place in range(50)]}
        return bool(
            chain.apply(data, {"tail": number})
            == {
                "id": f"{number}-{number}",
                "out": [number] * 50,
                "rest": {str(place): [place] for place in range(50)},
            }
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


_KEYS = st.sampled_from(
    ["*", "@", "&1", "a", "#x", "$", "=concat(@(1,a))", "a[&1]", "@(2,b)", "[]", "", "\\\\", "a.b.c", "~q"]
)
_SPECS = st.recursive(
    st.one_of(_KEYS, st.none(), st.booleans(), st.integers()),
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(_KEYS, below, max_size=3)),
    max_leaves=8,
)
_OPERATIONS = ("shift", "default", "remove", "cardinality", "modify-overwrite-beta", "sort", "nope")


@settings(max_examples=150, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(_OPERATIONS), _SPECS, _SPECS)
def test_any_specification_and_any_data(operation: str, spec: Any, data: Any) -> None:
    """A specification is refused when it is read, or applies, or fails as the one kind of error that is told."""
    try:
        one(operation, spec).apply(data)
    except HarmonydError:
        pass
    except ValueError as error:
        assert str(error)
