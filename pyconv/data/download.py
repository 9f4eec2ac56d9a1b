"""Downloads: to a temporary name, checked, then renamed, so a file under its own name is always whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from pyconv.errors import DataError

_CHUNK = 1 << 20
_TIMEOUT_S = 30


def fetch(url: str, path: Path, sha256: str, say: Callable[[str], None]) -> None:
    """Download ``url`` to ``path``.

    Args:
        url: What to fetch.
        path: Where the file shall be; its folder is made.
        sha256: What the file must hash to, in hexadecimal.
        say: Called with one line.

    Raises:
        DataError: if it cannot be fetched or written, or hashes to something else; ``path`` is then
            untouched.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    say(f"downloading {url}")
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response, temporary.open("wb") as file:
            while chunk := response.read(_CHUNK):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise DataError(f"{url}: wrong checksum: sha256 {digest.hexdigest()}, not {sha256}")
        temporary.replace(path)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DataError(f"{url}: cannot be downloaded ({getattr(error, 'reason', error)})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)
