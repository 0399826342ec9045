from __future__ import annotations

import errno
import os

import pytest

from edge.errors import BundleError, EdgeError, InputRefusedError, MachineError, UsageError, describe_os_error


@pytest.mark.parametrize(
    ("kind", "status"), [(InputRefusedError, 1), (UsageError, 2), (BundleError, 3), (MachineError, 3), (EdgeError, 3)]
)
def test_exit_statuses_are_the_documented_ones(kind: type[EdgeError], status: int) -> None:
    assert kind("text").exit_status == status


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EACCES, "grant permission"),
        (errno.EROFS, "read-only"),
        (errno.ENOENT, "check the path"),
        (errno.EISDIR, "name a file"),
        (errno.EIO, "check the path and the disk"),
    ],
)
def test_an_os_error_says_what_failed_where_and_what_to_do(number: int, advice: str) -> None:
    text = describe_os_error(OSError(number, os.strerror(number), "/some/place"))
    assert os.strerror(number) in text
    assert "/some/place" in text
    assert advice in text
    assert "\n" not in text


def test_an_os_error_without_number_is_named_by_its_kind() -> None:
    assert "TimeoutError" in describe_os_error(TimeoutError())
