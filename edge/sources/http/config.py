"""Settings of the HTTP server, section ``[http]`` of the configuration."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, IPvAnyNetwork, model_validator

from edge.setting_types import UserPath

HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?$")]


class HttpConfig(BaseModel):
    """Where the server listens, whom it serves, and how much it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: IPvAnyAddress = Field(ipaddress.IPv4Address("127.0.0.1"), description="IP address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 takes a free one")
    certificate: UserPath | None = Field(None, description="PEM file with the certificate and its chain; turns TLS on")
    key: UserPath | None = Field(None, description="PEM file with the certificate's private key")
    tokens: UserPath | None = Field(None, description="file of `name:sha256` lines, one for each client's bearer token")
    allow_anonymous: bool = Field(False, description="serve without tokens on an address that others can reach")
    allow: tuple[IPvAnyNetwork, ...] = Field((), description="networks that clients may be in; empty: any")
    hosts: tuple[HostName, ...] = Field((), description="names by which clients may call this server; none: see docs")
    max_request_mb: int = Field(1024, ge=1, le=65536, description="largest request, in MB: a STOW-RS study, all files")
    max_memory_mb: int = Field(
        256, ge=1, le=65536, description="memory for all bodies at one time, in MB: the largest file too"
    )
    connections: int = Field(100, ge=1, le=10000, description="connections at one time")
    requests_per_second: float = Field(100.0, gt=0, le=100000, description="requests of one address, in the long run")
    burst: int = Field(200, ge=1, le=100000, description="requests of one address at one time")
    head_seconds: float = Field(10.0, gt=0, le=600, description="time for a request's head to arrive")
    body_seconds: float = Field(
        30.0, gt=0, le=3600, description="time for a request's body, besides 1 s for each 64 KB"
    )
    idle_seconds: int = Field(15, ge=1, le=600, description="time that a connection may be kept without a request")
    infer_seconds: float = Field(30.0, gt=0, le=600, description="time for an inference request's answer")

    @model_validator(mode="after")
    def _check(self) -> HttpConfig:
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise ValueError(f"{given} is set and {missing} is not, expected both or none: set {missing}")
        if self.tokens is None and not self.address.is_loopback and not self.allow_anonymous:
            raise ValueError(
                f"address is {self.address}, which others can reach, and tokens is not set: set tokens (`edge-infer "
                "token NAME` makes one), or allow_anonymous = true if anybody there may send and read"
            )
        return self
