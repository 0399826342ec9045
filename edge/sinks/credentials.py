"""What a sink shows to the other side, and by what it knows it: secrets and certificates, from files only."""

from __future__ import annotations

import ssl
from pathlib import Path

from pydantic import SecretStr

from edge.errors import UsageError, describe_os_error


def client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """TLS for a client: checks the server by `ca` (default: the system's); shows `certificate` if there is one.

    Raises `UsageError` if the files cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise UsageError(f"the TLS files do not fit ({error.reason or 'unreadable'}): expected PEM files") from None
    except OSError as error:
        raise UsageError(f"the TLS files: {describe_os_error(error)}") from None
    return context


def read_secret(path: Path) -> SecretStr:
    """The first line of a secret's file. Raises `UsageError` if there is none."""
    try:
        text = path.read_text(encoding="utf-8").strip().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        why = describe_os_error(error) if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"the secret in {path} cannot be read: {why}") from None
    if not text:
        raise UsageError(f"{path} is empty, expected a secret in its first line")
    return SecretStr(text)
