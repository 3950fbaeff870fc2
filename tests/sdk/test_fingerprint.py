import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay._fingerprint import fingerprint, mask, message_of, own_frames
from forebay._retry import Retry

GOLDEN = [
    ("invalid literal for int() with base 10: 'abc'", "invalid literal for int() with base <n>: <str>"),
    ("bad name 'O'Brien' in row 17", "bad name <str> in row <n>"),
    ("""bad name "O'Brien" in row 17""", "bad name <str> in row <n>"),
    (r"""value 'it\'s "x"' is odd""", "value <str> is odd"),
    ("can't open b'\\xff' for O'Brien", "can't open <str> for O'Brien"),
    ("unknown `color` and “größe”", "unknown <str> and <str>"),
    ("cut off in 'the middle of", "cut off in <str>"),
    ("timed out after 9.5ms", "timed out after <n>"),
    ("timed out after 10s", "timed out after <n>"),
    ("order-17 and order_18 at x=-3, 1e-05 of 1,234.5", "order-<n> and order_<n> at x=<n> of <n>"),
    ("needs 1 byte of 1.5 MB", "needs <n> of <n>"),
    ("unhandled (1 sub-exception)", "unhandled (<n> sub-exceptions)"),
    ("no answer from 10.65.0.78:56", "no answer from <ip>"),
    ("[1, 2, 3] is too long", "[<n>] is too long"),
    ("<Order object at 0x7f3c12> is closed", "<Order object at <n>> is closed"),
    ("no document 507f1f77bcf86cd799439011", "no document <n>"),
    ("no document deadbeef", "no document <n>"),
    ("no token q7ZkB3xY", "no token <n>"),
    ("no job 123E4567-e89b-12d3-a456-426614174000", "no job <uuid>"),
    ("rejected at 2026-11-24T05:40:57.123Z", "rejected at <time>"),
    ("rejected at 2026-11-24 05:40:57+00:00", "rejected at <time>"),
    ("rejected on 2026/11/24", "rejected on <time>"),
    ("rejected Mon, 24 Nov 2026 10:00:00 GMT", "rejected <time>"),
    ("rejected November 24, 2026", "rejected <time>"),
    ("late by 00:03:59", "late by <time>"),
    ("cannot connect to 10.0.0.1:5432", "cannot connect to <ip>"),
    ("cannot connect to fe80::1ff:fe23:4567:890a", "cannot connect to <ip>"),
    ("GET https://shop.example/items?page=2 failed", "GET <url> failed"),
    ("no account for ann.lee+x@example.co.uk", "no account for <email>"),
    ("/srv/in/Ann Lee.csv", "<path> Lee.csv"),
    ("cannot read /srv/in/orders.csv", "cannot read <path>"),
    ("cannot read ~/in/orders.csv", "cannot read <path>"),
    ("cannot read C:\\in\\orders.csv", "cannot read <path>"),
    ("cannot read in/orders.csv, read/write", "cannot read <path>, read/write"),
    ("  two\n\tlines  ", "two lines"),
    ("nothing to hide", "nothing to hide"),
    ("", ""),
]


@pytest.mark.parametrize(("message", "masked"), GOLDEN)
def test_varying_parts_are_replaced_by_what_they_are(message: str, masked: str) -> None:
    assert mask(message) == masked


def test_only_the_start_of_a_huge_message_counts() -> None:
    assert mask("row 'x" + "y" * 10**7 + "'") == "row <str>"
    assert mask("word " * 10**6) == mask("word " * 10**5)


HOSTILE = """' " ` “ \\' "\\ a é - 0 f : / a. 1. 1: 12: a/ ~/ a.a/ a@ a' 'a'b <n>, e-1 1e- 1- _1 -a http:"""


@pytest.mark.parametrize("unit", [*HOSTILE.split(), " ", "Jan 1 "])
def test_no_message_takes_the_masks_long(unit: str) -> None:
    text = (unit * 4096)[:4096]

    start = time.process_time()
    mask(text)

    # The worst takes 5 ms; a mask that backtracks takes seconds or years.
    assert time.process_time() - start < 1


around = st.text("gx '\"`.,/@-(", max_size=30)


@given(around, around, st.integers(0), st.integers(0))
def test_a_number_makes_no_difference_whatever_stands_around_it(before: str, after: str, one: int, other: int) -> None:
    assert mask(f"{before} {one} {after}") == mask(f"{before} {other} {after}")


# --- One fingerprint for a kind -----------------------------------------------------------------


class PriceError(ValueError):
    pass


def parse(text: str) -> int:
    return int(text)


def price(value: float) -> float:
    if value > 1:
        raise PriceError(f"price {value} is above the limit of {value / 2:.2f}")
    raise PriceError(f"price {value} has no currency")


def decode(data: bytes) -> str:
    return data.decode("utf-8")


def recurse(depth: int, error: Exception) -> None:
    if depth:
        recurse(depth - 1, error)
    raise error


def fail(error: BaseException) -> None:
    raise error


def name(rng: random.Random) -> str:
    first = rng.choice(["Ann", "Zoë", "O'Brien", 'the "Boss"', "x", "李"])
    return f"{first} {rng.choice(['Lee', 'de la Cruz', '3rd', ''])}"


def identifier(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


KINDS: dict[str, Callable[[random.Random], object]] = {
    "not a number": lambda rng: parse(name(rng)),
    "price too high": lambda rng: price(rng.uniform(2, 10**6)),
    "price without currency": lambda rng: price(rng.uniform(-5, 1)),
    "not UTF-8": lambda rng: decode(b"x" * rng.randrange(200) + bytes([rng.randrange(0xF8, 0x100)])),
    "not JSON": lambda rng: json.loads("{" + " " * rng.randrange(50) + "x"),
    "missing key": lambda rng: dict[str, int]()[name(rng)],
    "unknown customer": lambda rng: fail(LookupError(f"customer {identifier(rng)} is unknown")),
    "customer is blocked": lambda rng: fail(LookupError(f"customer {identifier(rng)} is blocked")),
    "no connection": lambda rng: fail(
        ConnectionError(f"no answer from 10.{rng.randrange(256)}.0.{rng.randrange(256)}:{rng.randrange(1, 65536)}")
    ),
    "time-out": lambda rng: fail(TimeoutError(f"no answer within {rng.choice(['9.5ms', '10s', '1,000 ms', '3 s'])}")),
    "no file": lambda rng: fail(FileNotFoundError(2, "No such file", f"/srv/{rng.randrange(99)}/{name(rng)}.csv")),
    "closed object": lambda rng: fail(RuntimeError(f"<Order object at 0x{rng.getrandbits(44):x}> is closed")),
    "mail": lambda rng: fail(RuntimeError(f"mail to u{rng.randrange(99)}.b@mail{rng.randrange(9)}.example bounced")),
    "web": lambda rng: fail(
        RuntimeError(f"GET https://shop.example/{rng.randrange(10**9)}?q={name(rng)[:1]} gave 503")
    ),
    "too old": lambda rng: fail(
        ValueError(
            f"event of 20{rng.randrange(10, 30)}-0{rng.randrange(1, 10)}-11T10:{rng.randrange(10, 60)}:00Z is too old"
        )
    ),
    "duplicate ids": lambda rng: fail(
        ValueError(f"duplicate ids: {[rng.randrange(999) for _ in range(rng.randrange(2, 9))]}")
    ),
    "token": lambda rng: fail(PermissionError(f"token {rng.getrandbits(64):016x} has expired")),
    "deep": lambda rng: recurse(rng.randrange(20), OSError("too deep")),
    "group": lambda rng: fail(
        ExceptionGroup("unhandled errors", [KeyError(identifier(rng)) for _ in range(rng.randrange(1, 5))])
    ),
    "other group": lambda rng: fail(
        ExceptionGroup("unhandled errors", [ExceptionGroup("inner", [OSError(f"disk {rng.randrange(99)}")])])
    ),
}


def raised(kind: Callable[[random.Random], object], rng: random.Random) -> BaseException:
    try:
        kind(rng)
    except Exception as error:
        return error
    raise AssertionError("the kind must raise")


def raised_from(function: Callable[[Exception], None], error: Exception) -> BaseException:
    return raised(lambda _: function(error), random.Random())


def prints(seed: int, rounds: int) -> dict[str, set[str]]:
    rng = random.Random(seed)
    return {what: {fingerprint(raised(kind, rng)) for _ in range(rounds)} for what, kind in KINDS.items()}


def test_each_kind_of_failure_has_exactly_one_fingerprint_whatever_its_values() -> None:
    found = prints(seed=1, rounds=300)

    assert {what: len(names) for what, names in found.items()} == dict.fromkeys(KINDS, 1)
    assert len(set[str]().union(*found.values())) == len(KINDS) == 20


def test_a_fingerprint_has_its_version_and_sixteen_hex_digits() -> None:
    text = fingerprint(ValueError("x"))

    assert text.startswith("fp1:")
    assert len(text) == 20
    assert int(text[4:], 16) > 0


def test_the_algorithm_has_not_changed_without_a_new_version() -> None:
    # Stored letters are grouped by these. If this fails, VERSION must change with it.
    assert fingerprint(ValueError("row 17: 'x'")) == "fp1:0d7c83a959df6621"


@pytest.mark.parametrize("hash_seed", ["0", "42"])
def test_another_process_finds_the_same(hash_seed: str) -> None:
    # `__main__` here and there would be two modules, so both import this file by the same name.
    code = (
        "import importlib.util, json, sys; "
        f"spec = importlib.util.spec_from_file_location({__name__!r}, {str(Path(__file__))!r}); "
        "module = importlib.util.module_from_spec(spec); sys.modules[spec.name] = module; "
        "spec.loader.exec_module(module); "
        "print(json.dumps({k: sorted(v) for k, v in module.prints(7, 3).items()}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}

    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert json.loads(output.stdout) == {what: sorted(names) for what, names in prints(seed=7, rounds=3).items()}


def test_the_type_the_frames_and_the_message_each_make_a_difference() -> None:
    def here(error: Exception) -> None:
        raise error

    errors = [raised_from(fail, error) for error in (ValueError("a"), TypeError("a"), ValueError("b"))]
    errors.append(raised_from(here, ValueError("a")))

    assert len({fingerprint(error) for error in errors}) == 4


# --- Frames -------------------------------------------------------------------------------------


def test_only_the_program_s_own_functions_are_listed_outermost_first() -> None:
    def outer() -> None:
        json.loads("{", object_hook=None)

    error = raised(lambda _: outer(), random.Random())

    frames = own_frames(error.__traceback__)

    here = test_only_the_program_s_own_functions_are_listed_outermost_first.__qualname__
    assert frames == (
        f"{__name__}:raised",
        f"{__name__}:{here}.<locals>.<lambda>",
        f"{__name__}:{here}.<locals>.outer",
    )


def test_frames_of_forebay_and_of_installed_packages_are_left_out() -> None:
    with pytest.raises(ValueError, match="max_attempts") as info:
        Retry(max_attempts=0)

    frames = own_frames(info.value.__traceback__)

    assert frames == (f"{__name__}:test_frames_of_forebay_and_of_installed_packages_are_left_out",)


def test_each_function_of_a_recursion_comes_once() -> None:
    error = raised(lambda _: recurse(500, ValueError()), random.Random())

    assert own_frames(error.__traceback__)[-1] == f"{__name__}:recurse"
    assert len(own_frames(error.__traceback__)) == 3


def test_an_exception_that_was_never_raised_has_no_frames() -> None:
    assert own_frames(None) == ()


def frames_printed_by(arguments: list[str], folder: Path) -> list[str]:
    output = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=folder)
    return output.stdout.split()


def test_a_program_that_is_run_is_named_like_the_module_it_is(tmp_path: Path) -> None:
    program = (
        "from forebay._fingerprint import own_frames\n"
        "def f():\n    try: int('x')\n    except ValueError as error: print(*own_frames(error.__traceback__))\n"
        "f()\n"
    )
    (tmp_path / "job.py").write_text(program)

    assert frames_printed_by(["-m", "job"], tmp_path) == ["job:f"]
    assert frames_printed_by(["-c", "import job"], tmp_path) == ["job:f"]
    assert frames_printed_by(["job.py"], tmp_path) == ["__main__:f"]
    assert frames_printed_by(["-c", program], tmp_path) == ["__main__:f"]


def test_code_without_a_file_is_not_the_program_s_own() -> None:
    space: dict[str, object] = {"__name__": "generated"}
    exec(compile("def f():\n    raise ValueError('x')", "<generated>", "exec"), space)
    function = space["f"]
    assert callable(function)

    error = raised(lambda _: function(), random.Random())

    assert not any(frame.startswith("generated") for frame in own_frames(error.__traceback__))


# --- Messages -----------------------------------------------------------------------------------


def test_a_message_is_cut_and_never_missing() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    assert len(message_of(ValueError("x" * 10**6))) == 16 * 1024
    assert message_of(Mute()).endswith("Mute: its text cannot be made (RuntimeError)>")
    assert fingerprint(Mute()).startswith("fp1:")


def test_a_group_of_very_many_is_told_by_its_first_leaves() -> None:
    def group(extra: int) -> BaseException:
        return ExceptionGroup("many", [ValueError(chr(97 + index)) for index in range(16 + extra)])

    assert fingerprint(group(1)) == fingerprint(group(9))


def test_surrogates_in_a_message_do_no_harm() -> None:
    assert fingerprint(ValueError("\ud800")) != fingerprint(ValueError("\ud801"))
