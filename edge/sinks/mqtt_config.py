"""The settings of the MQTT sink."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge.setting_types import UserPath


class MqttConfig(BaseModel):
    """The broker, and where below `prefix` the messages go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(min_length=1, description="the broker")
    port: int | None = Field(None, ge=1, le=65535, description="its port; default 1883, with TLS 8883")
    prefix: str = Field(
        "mdconv-edge",
        pattern=r"^[^#+/\s\x00]+(/[^#+/\s\x00]+)*$",
        max_length=200,
        description="first levels of each topic",
    )
    topic_per_result: bool = Field(False, description="publish to <prefix>/results/<id> instead of <prefix>/results")
    client_id: str = Field("", max_length=64, description="client identifier; empty: a new one each time")
    user: str | None = Field(None, min_length=1, description="user name, with password_file")
    password_file: UserPath | None = Field(None, description="file with the user's password")
    tls: bool = Field(False, description="TLS")
    ca: UserPath | None = Field(None, description="PEM file of the broker's CAs; default: the system's")
    certificate: UserPath | None = Field(
        None, description="PEM file with our certificate, where the broker asks for one"
    )
    key: UserPath | None = Field(None, description="PEM file with the certificate's private key")
    timeout: float = Field(30, gt=0, le=3600, description="seconds to connect, and for an acknowledgement")
    keepalive: int = Field(60, ge=5, le=3600, description="seconds after which the broker notices that we are gone")

    @model_validator(mode="after")
    def _check(self) -> MqttConfig:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("user and password_file belong together: give both, or neither")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both, or neither")
        if not self.tls and (self.ca or self.certificate):
            raise ValueError("ca, certificate and key are for TLS: set tls = true, or leave them out")
        return self
