"""The settings of the PACS sink; apart from it, so that reading settings loads no DICOM library."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.setting_types import UserPath
from edge.sources.dicom_config import Title


class PacsConfig(BaseModel):
    """Where DICOM results go, and what they are: by C-STORE with `host`, by STOW-RS with `url`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str | None = Field(None, min_length=1, description="the PACS, for C-STORE")
    port: int = Field(104, ge=1, le=65535, description="the PACS's DICOM port")
    aet: Title = Field("PACS", description="the PACS's AE title")
    calling_aet: Title = Field("MDCONV_EDGE", description="our AE title")
    tls: bool = Field(False, description="TLS for C-STORE; https:// in `url` for STOW-RS")
    url: str | None = Field(
        None, pattern=r"^https?://[^@\s]+$", description="root of the DICOMweb service, for STOW-RS"
    )
    token_file: UserPath | None = Field(None, description="file with the bearer token for `url`")
    user: str | None = Field(None, min_length=1, description="user name for `url`, with password_file")
    password_file: UserPath | None = Field(None, description="file with the user's password")
    ca: UserPath | None = Field(
        None, description="PEM file of the PACS's CAs; default: the system's, for url certifi's"
    )
    certificate: UserPath | None = Field(None, description="PEM file with our certificate, where the PACS asks for one")
    key: UserPath | None = Field(None, description="PEM file with the certificate's private key")
    timeout: float = Field(30, gt=0, le=3600, description="seconds to connect, and for each answer")
    report: bool = Field(True, description="send the Structured Report")
    capture: bool = Field(True, description="send the map over the image, as Secondary Capture")

    @model_validator(mode="after")
    def _check(self) -> PacsConfig:
        if (self.host is None) == (self.url is None):
            raise ValueError("give one of host (C-STORE) and url (STOW-RS), not both")
        if not (self.report or self.capture):
            raise ValueError("report and capture are both off, so there is nothing to send: leave the section out")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both, or neither")
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file belong together: give both, or neither")
        if self.token_file is not None and self.user is not None:
            raise ValueError("token_file and user exclude each other: give one of them")
        if self.url is None and (self.token_file is not None or self.user is not None):
            raise ValueError("token_file, user and password_file are for url only: leave them out")
        return self
