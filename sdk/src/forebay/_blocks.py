"""Cuts a stream of blocks into items that are views of the blocks, so that stages hand on items and copy nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def slice_blocks(
    blocks: Iterable[bytes],
    /,
    *,
    separator: bytes | None = None,
    length_bytes: int | None = None,
    max_bytes: int = 64 * 2**20,
) -> Iterator[memoryview]:
    """Cut a stream of blocks into items, each a read-only view of its block.

    A block is read when the items of the one before have been taken, and it lives as long as any view of it.
    So where few items are kept, or they are shorter than about 1 KB, put `.map(bytes)` right behind the source.
    Only an item that straddles blocks is copied. Views cannot be sent to another process.

    Args:
        blocks: The stream, cut anywhere, such as `iter(partial(file.read, 2**18), b"")`.
        separator: What stands between two items, or behind each; it belongs to none.
        length_bytes: Bytes of the number in front of each item that is its length, most significant byte first.
        max_bytes: Most bytes in an item.

    Raises:
        ValueError: an argument is out of bounds; or, while items are taken, one is longer than *max_bytes*,
            or the stream ends inside one that has its length in front.
    """
    if (separator is None) == (length_bytes is None):
        raise TypeError("slice_blocks() needs separator or length_bytes, and not both; pass separator=b'\\n' for lines")
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
    if separator is not None:
        if not separator:
            raise ValueError("separator must be at least 1 byte, not b''; pass separator=b'\\n' for lines")
        return _between(blocks, separator, max_bytes)
    assert length_bytes is not None
    if not 1 <= length_bytes <= 8:
        raise ValueError(f"length_bytes must be 1 to 8, not {length_bytes}")
    return _behind_lengths(blocks, length_bytes, max_bytes)


def _between(blocks: Iterable[bytes], separator: bytes, max_bytes: int) -> Iterator[memoryview]:
    size = len(separator)
    rest = bytearray()  # the beginning of an item that goes on in the next block
    for block in blocks:
        start = 0
        if rest:
            start = _complete(rest, block, separator)
            if len(rest) > max_bytes + (size - 1 if start < 0 else 0):  # the separator may have begun
                raise _too_long(max_bytes)
            if start < 0:
                continue
            yield memoryview(rest).toreadonly()
            rest = bytearray()  # a new one: the old one is the item's now
        view = memoryview(block).toreadonly()
        while (end := block.find(separator, start)) >= 0:
            if end - start > max_bytes:
                raise _too_long(max_bytes)
            yield view[start:end]
            start = end + size
        rest += view[start:]
        del view, block  # or they would live while the next block is read
    if len(rest) > max_bytes:
        raise _too_long(max_bytes)
    if rest:
        yield memoryview(rest).toreadonly()


def _complete(rest: bytearray, block: bytes, separator: bytes) -> int:
    """Append to *rest* what *block* has of its item; return where the next one starts, or -1 if this one goes on."""
    size = len(separator)
    edge = bytes(rest[max(0, len(rest) - size + 1) :])  # the separator itself may straddle the border
    found = (edge + block[: size - 1]).find(separator)
    if found >= 0:
        del rest[len(rest) - len(edge) + found :]
        return found + size - len(edge)
    end = block.find(separator)
    if end < 0:
        rest += block
        return -1
    rest += memoryview(block)[:end]
    return end + size


def _behind_lengths(blocks: Iterable[bytes], length_bytes: int, max_bytes: int) -> Iterator[memoryview]:
    rest = bytearray()  # the beginning of an item that goes on in the next block, its length in front
    for block in blocks:
        view = memoryview(block).toreadonly()
        size = len(block)
        start = 0
        if rest:
            start = max(0, length_bytes - len(rest))
            rest += view[:start]
            if len(rest) < length_bytes:
                continue
            length = int.from_bytes(rest[:length_bytes], "big")
            if length > max_bytes:
                raise _too_long(max_bytes)
            stop = start + length_bytes + length - len(rest)
            rest += view[start:stop]
            if stop > size:
                continue
            start = stop
            yield memoryview(rest)[length_bytes:].toreadonly()
            rest = bytearray()  # a new one: the old one is the item's now
        while (begin := start + length_bytes) <= size:
            end = begin + int.from_bytes(block[start:begin], "big")
            if end - begin > max_bytes:
                raise _too_long(max_bytes)
            if end > size:
                break
            yield view[begin:end]
            start = end
        rest += view[start:]
        del view, block  # or they would live while the next block is read
    if rest:
        raise ValueError(
            f"the stream ends {len(rest)} bytes into an item, its length of length_bytes={length_bytes} included; "
            f"either it was cut off, or its lengths are not written like that"
        )


def _too_long(max_bytes: int) -> ValueError:
    return ValueError(
        f"an item is longer than max_bytes={max_bytes}; raise it, or look whether the stream is written as it is cut"
    )
