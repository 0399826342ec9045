"""The ledger: what the daemon received, what is under way, every result, and what of it still has to be delivered.

One SQLite file (WAL) in the state directory, and the spool beside it: the content of every image that may be needed
again. A run goes ``received`` -> ``running`` -> ``done`` or ``refused``, and is delivered once every sink has it. A run
that was under way when the process died is taken again. Content is done once: a second image with the same SHA-256, or
the same SOP Instance UID, belongs to the first one's run.

The ledger is private to its user, and keeps no more of a patient than it must: an image's content is held only until
its run is finished and delivered, a finished file is recognised by a digest of its path, size and times, a DICOM
instance by a digest of its UID, and a result carries the file's name only where the user asked for names.
"""

from __future__ import annotations

from edge.ledger.database import LEDGER, VERSION, Database
from edge.ledger.outbox import Outbox, Waiting
from edge.ledger.retention import Retention
from edge.ledger.runs import Ledger, Run, file_key
from edge.ledger.spool import Spool
from edge.ledger.view import LedgerView, check_version, read_ledger

__all__ = [
    "LEDGER",
    "VERSION",
    "Database",
    "Ledger",
    "LedgerView",
    "Outbox",
    "Retention",
    "Run",
    "Spool",
    "Waiting",
    "check_version",
    "file_key",
    "read_ledger",
]
