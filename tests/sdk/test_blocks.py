"""Items sliced out of a stream of blocks: the right ones wherever it is cut, copied only where they straddle blocks."""

import mmap
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forebay
from forebay._blocks import slice_blocks
from forebay.testing import BackendName, run_virtual

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def cut_anywhere(stream: bytes) -> st.SearchStrategy[list[bytes]]:
    """Draw *stream* in blocks, some of them empty."""
    borders = st.lists(st.integers(0, len(stream)), max_size=6).map(sorted)
    return borders.map(lambda cuts: [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])


def with_lengths(items: Sequence[bytes], length_bytes: int) -> bytes:
    return b"".join(len(item).to_bytes(length_bytes, "big") + item for item in items)


# --- The right items ---------------------------------------------------------------------------


@given(st.data())
def test_items_between_separators_are_those_of_split_wherever_the_stream_is_cut(data: st.DataObject) -> None:
    separator = data.draw(st.sampled_from([b"a", b"ab", b"aa", b"aab", b"aba"]))
    stream = bytes(data.draw(st.lists(st.sampled_from(b"ab"), max_size=20)))
    blocks = data.draw(cut_anywhere(stream))

    items = [bytes(view) for view in slice_blocks(blocks, separator=separator)]

    expected = stream.split(separator)
    assert items == (expected if expected[-1] else expected[:-1])


@given(st.data())
def test_items_behind_their_lengths_are_those_that_were_written_wherever_the_stream_is_cut(data: st.DataObject) -> None:
    length_bytes = data.draw(st.integers(1, 8))
    written = data.draw(st.lists(st.binary(max_size=9), max_size=5))
    blocks = data.draw(cut_anywhere(with_lengths(written, length_bytes)))

    items = [bytes(view) for view in slice_blocks(blocks, length_bytes=length_bytes)]

    assert items == written


def test_an_item_may_go_on_over_many_blocks() -> None:
    lines = slice_blocks([b"dr", b"", b"aw", b"down\n", b"spillway"], separator=b"\n")

    assert [bytes(line) for line in lines] == [b"drawdown", b"spillway"]


def test_lines_of_a_file_come_out_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    written = [f"gate {number}".encode() * (number % 40) for number in range(500)]
    path.write_bytes(b"\r\n".join([*written, b""]))

    with path.open("rb") as file:
        lines = [bytes(line) for line in slice_blocks(iter(partial(file.read, 64), b""), separator=b"\r\n")]

    assert lines == written


# --- What is copied and how long it lives ------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "options"),
    [
        ([b"one\ntwo\nth", b"ree\nfour\n"], {"separator": b"\n"}),
        ([b"\3one\3two\5th", b"ree\4four"], {"length_bytes": 1}),
    ],
    ids=["separator", "length"],
)
def test_only_an_item_that_straddles_blocks_is_copied(blocks: list[bytes], options: dict[str, object]) -> None:
    views = list(slice_blocks(blocks, **options))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # one of two kinds

    assert [bytes(view) for view in views] == [b"one", b"two", b"three", b"four"]
    assert [view.obj is blocks[0] for view in views] == [True, True, False, False]
    assert views[3].obj is blocks[1]


@pytest.mark.parametrize("blocks", [[b"one\n"], [b"o", b"ne\n"], [b"one"]], ids=["whole", "straddling", "last"])
def test_an_item_between_separators_cannot_be_written_to(blocks: list[bytes]) -> None:
    (view,) = slice_blocks(blocks, separator=b"\n")

    assert view.readonly


@pytest.mark.parametrize("blocks", [[b"\3one"], [b"\3o", b"ne"]], ids=["whole", "straddling"])
def test_an_item_behind_its_length_cannot_be_written_to(blocks: list[bytes]) -> None:
    (view,) = slice_blocks(blocks, length_bytes=1)

    assert view.readonly


def test_an_item_of_a_block_that_could_be_written_to_cannot() -> None:
    memory = mmap.mmap(-1, 8)
    memory[:] = b"one\ntwo\n"

    views = list(slice_blocks([memory], separator=b"\n"))  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]  # it can be searched as bytes can

    assert [view.readonly for view in views] == [True, True]


class Block(bytes):
    """A block that says when it is gone."""

    living = 0

    def __new__(cls, content: bytes) -> "Block":
        Block.living += 1
        return super().__new__(cls, content)

    def __del__(self) -> None:
        Block.living -= 1


@pytest.mark.parametrize(
    ("content", "options"), [(b"a\nb\nc\n", {"separator": b"\n"}), (b"\1a\1b\1c", {"length_bytes": 1})]
)
def test_a_block_is_gone_before_the_next_is_read_if_nobody_has_a_view_of_it(
    content: bytes, options: dict[str, object]
) -> None:
    living: list[int] = []

    def blocks() -> Iterator[bytes]:
        for _ in range(3):
            living.append(Block.living)
            yield Block(content)

    for view in slice_blocks(blocks(), **options):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # one of two kinds
        del view

    assert living == [0, 0, 0]


def test_a_block_lives_as_long_as_one_view_of_it() -> None:
    views = slice_blocks(iter([Block(b"a\nb\n"), Block(b"c\n")]), separator=b"\n")
    first = next(views)

    rest = [bytes(view) for view in views]

    assert rest == [b"b", b"c"]
    assert first.obj == b"a\nb\n"
    del views
    assert Block.living == 1
    del first
    assert Block.living == 0


@backends
def test_stages_of_a_pipeline_hand_views_on_without_a_copy(backend: BackendName) -> None:
    blocks = [b"01:one\n02:two\n", b"03:three\n04:four\n"]
    arrived: list[memoryview] = []

    async def strip(batch: list[memoryview]) -> list[memoryview]:
        return [view[3:] for view in batch]

    async def store(batch: list[memoryview]) -> None:
        arrived.extend(batch)

    async def main() -> None:
        items = forebay.pipeline(slice_blocks(blocks, separator=b"\n"))
        await items.map_batches(strip, max_size=3).map_batches(store, max_size=2).run()

    run_virtual(main, backend=backend)

    assert [bytes(view) for view in arrived] == [b"one", b"two", b"three", b"four"]
    assert [blocks.index(view.obj) for view in arrived] == [0, 0, 1, 1]  # type: ignore[arg-type]  # a bytes object


# --- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blocks",
    [[b"12345\n"], [b"123", b"45\n"], [b"123", b"45"], [b"12345"], [b"123", b"45", b"\n"]],
    ids=["whole", "straddling", "straddling, last", "last", "over three"],
)
def test_an_item_longer_than_the_bound_is_refused_and_one_of_just_that_length_is_not(blocks: list[bytes]) -> None:
    fitting = [bytes(view) for view in slice_blocks(blocks, separator=b"\n", max_bytes=5)]

    assert fitting == [b"12345"]
    with pytest.raises(ValueError, match=r"^an item is longer than max_bytes=4; raise it, or look"):
        list(slice_blocks(blocks, separator=b"\n", max_bytes=4))


@pytest.mark.parametrize("blocks", [[b"123\r", b"\n"], [b"12", b"3\r", b"\n"]])
def test_a_separator_that_has_begun_does_not_count_as_part_of_the_item(blocks: list[bytes]) -> None:
    items = [bytes(view) for view in slice_blocks(blocks, separator=b"\r\n", max_bytes=3)]

    assert items == [b"123"]


@pytest.mark.parametrize(
    "blocks", [[b"\0\5" + bytes(5)], [b"\0\5", bytes(5)], [b"\0", b"\5" + bytes(5)]], ids=["whole", "apart", "cut"]
)
def test_a_length_above_the_bound_is_refused_and_one_of_just_the_bound_is_not(blocks: list[bytes]) -> None:
    fitting = list(slice_blocks(blocks, length_bytes=2, max_bytes=5))

    assert fitting == [bytes(5)]
    with pytest.raises(ValueError, match="an item is longer than max_bytes=4"):
        list(slice_blocks(blocks, length_bytes=2, max_bytes=4))


@pytest.mark.parametrize(("stream", "left"), [(b"\0\3one\0", 1), (b"\0\3one\0\3tw", 4)])
def test_a_stream_that_ends_inside_an_item_is_told_after_the_items_before_it(stream: bytes, left: int) -> None:
    views = slice_blocks([stream], length_bytes=2)

    assert bytes(next(views)) == b"one"
    with pytest.raises(ValueError, match=rf"^the stream ends {left} bytes into an item, its length of length_bytes=2"):
        next(views)


@pytest.mark.parametrize("options", [{}, {"separator": b"\n", "length_bytes": 4}], ids=["none", "both"])
def test_one_way_to_cut_has_to_be_given(options: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="needs separator or length_bytes, and not both"):
        slice_blocks([], **options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": b""}, "separator must be at least 1 byte, not b''"),
        ({"length_bytes": 0}, "length_bytes must be 1 to 8, not 0"),
        ({"length_bytes": 9}, "length_bytes must be 1 to 8, not 9"),
        ({"separator": b"\n", "max_bytes": 0}, "max_bytes must be at least 1, not 0"),
    ],
)
def test_an_argument_out_of_bounds_is_refused_at_the_call(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slice_blocks([], **options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose
