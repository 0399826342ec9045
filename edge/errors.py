"""The exceptions of the whole package, each with the exit status that a command ends with.

An error's text says what came, what was expected and what to do. Only a command's ``main()`` turns one into an exit.
"""

from __future__ import annotations


class EdgeError(Exception):
    """Base of every error that a user can cause or can mend. Its text is one line."""

    exit_status = 3


class InputRefusedError(EdgeError):
    """One input (image, file) cannot be used; the others can. Exit status 1."""

    exit_status = 1


class UsageError(EdgeError):
    """The command was called in a way that cannot work, whatever the machine. Exit status 2."""

    exit_status = 2


class BundleError(EdgeError):
    """A bundle is missing, incomplete, altered, or made for something else. Exit status 3."""


class MachineError(EdgeError):
    """The machine lacks what the work needs: a library, a device, memory, disk, permission. Exit status 3."""


class StorageFullError(MachineError):
    """The disk is full: what was handed over was not taken. What was taken before is not lost."""


class BusyError(EdgeError):
    """The queue is full: what was handed over was not taken, and is to come again after `retry_after` seconds."""

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


def describe_os_error(error: OSError) -> str:
    """One line for an operating-system error: what failed, on which path, and what to do about it."""
    import errno  # here: only error paths need it

    advice = {
        errno.ENOSPC: "free space there or choose another place",
        errno.EDQUOT: "raise the quota or choose another place",
        errno.EACCES: "grant permission or choose another place",
        errno.EPERM: "grant permission or choose another place",
        errno.EROFS: "the file system is read-only: choose another place",
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "check the path",
        errno.EISDIR: "name a file, not a folder",
    }.get(error.errno or 0, "check the path and the disk")
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or type(error).__name__}{where}: {advice}"
