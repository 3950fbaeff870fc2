"""Where a drawer is."""

from pathlib import Path


def folder_of(url: str) -> Path:
    """Return the folder that *url* names, made if it is not there."""
    path = url.removeprefix("drawer:///")
    if not path or path == url:
        raise ValueError(f"a drawer's URL is drawer:///folder, not {url!r}")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
