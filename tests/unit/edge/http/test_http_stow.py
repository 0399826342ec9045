"""STOW-RS as dicomweb-client and others speak it, and every part that is not taken."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import httpx
import pydicom
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid

from edge.errors import InputRefusedError
from edge.service import BusyError, StorageFullError
from edge.sources.http.stow import INSTANCES
from tests.unit.edge.dicom_writer import write_dicom
from tests.unit.edge.http.conftest import Serve
from tests.unit.edge.http.service import FakeService
