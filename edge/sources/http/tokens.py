"""Bearer tokens: made here, stored by their hash only.

A token is 256 random bits, so a plain SHA-256 is as safe as a slow password hash: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import stat
from pathlib import Path

from edge.errors import UsageError, describe_os_error

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(rf"({_NAME.pattern}):([0-9a-f]{{64}})")


def new_token(name: str) -> tuple[str, str]:
    """A new token for the client `name`, and the line that goes into the file of tokens. Raises `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            "the token's name has other characters than expected (letters, digits, . _ -, 64 at most): choose another"
        )
    token = secrets.token_urlsafe(32)
    return token, f"{name}:{_hash(token)}"


class Tokens:
    """The tokens that are good."""

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = hashes

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """Read a file of ``name:sha256`` lines; empty ones and ``#`` comments are skipped. Raises `UsageError`."""
        try:
            mode = path.stat().st_mode
            lines = path.read_text(encoding="ascii").splitlines()
        except OSError as error:
            raise UsageError(f"tokens: {describe_os_error(error)}") from None
        except ValueError:
            raise UsageError(f"tokens: {path} is no text, expected name:sha256 lines: check the path") from None
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(f"tokens: others may write {path}, and so let themselves in: chmod go-w {path}")
        hashes: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if not match:
                raise UsageError(
                    f"tokens: line {number} of {path} is not name:sha256 (64 hexadecimal digits): make it anew with "
                    "`edge-infer token NAME`"
                )
            if match[1] in hashes:
                raise UsageError(f"tokens: line {number} of {path} has the name {match[1]} again: choose another")
            hashes[match[1]] = match[2]
        if not hashes:
            raise UsageError(f"tokens: {path} has no token, so nobody could come in: `edge-infer token NAME` makes one")
        return cls(hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    def client(self, token: str) -> str | None:
        """Whose token it is; None if it is not a good one. The time it takes tells nothing about the good ones."""
        presented = _hash(token)
        found = [name for name, known in self._hashes.items() if hmac.compare_digest(presented, known)]
        return found[0] if found else None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
