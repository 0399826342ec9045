"""The settings of the DICOM server; apart from it, so that reading settings loads no DICOM library."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from edge.setting_types import UserPath


def _check_title(title: str) -> str:
    """PS3.5 table 6.2-1: 1 to 16 printable ASCII characters without a backslash; spaces at the ends do not count."""
    if not 1 <= len(title) <= 16 or title != title.strip() or not re.fullmatch(r"[ -\[\]-~]+", title):
        raise ValueError(
            f"the AE title {title!r} is not 1 to 16 printable ASCII characters without backslash and outer spaces"
        )
    return title


Title = Annotated[str, AfterValidator(_check_title)]
"""An application entity's title."""


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{error}; expected an address such as 10.1.2.3 or a network such as 10.1.2.0/24") from None
    return text


class DicomConfig(BaseModel):
    """The DICOM server's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    port: int = Field(11112, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    bind: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for all of the machine's")
    aet: Title = Field("MDCONV_EDGE", description="our AE title")
    require_called_aet: bool = Field(True, description="refuse associations that call another AE title than ours")
    calling_aets: tuple[Title, ...] = Field((), description="AE titles that may send; empty: any")
    addresses: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        (), description="addresses and networks (CIDR) that may connect; empty: any"
    )
    tls_certificate: UserPath | None = Field(None, description="PEM file with our certificate chain; turns TLS on")
    tls_key: UserPath | None = Field(None, description="PEM file with the certificate's private key")
    tls_client_ca: UserPath | None = Field(None, description="PEM file of the CAs whose certificates clients must show")
    max_pdu: int = Field(131_072, ge=4096, le=1 << 20, description="largest PDU that is received, in bytes")
    max_associations: int = Field(10, ge=1, le=100, description="associations at the same time")
    max_megabytes: int = Field(128, ge=1, le=1024, description="largest data set that is received")
    max_megabytes_together: int = Field(512, ge=1, le=8192, description="all data sets that are being received")
    network_timeout: float = Field(60, gt=0, le=3600, description="seconds for one PDU, and between two")
    acse_timeout: float = Field(30, gt=0, le=3600, description="seconds to ask for an association, or to end it")
    dimse_timeout: float = Field(30, gt=0, le=3600, description="seconds between the messages of an operation")

    @model_validator(mode="after")
    def _check_tls(self) -> DicomConfig:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: give both, or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key: give them, or leave it out")
        return self
