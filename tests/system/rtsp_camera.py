"""A network camera: RTSP on 127.0.0.1, a ball that moves, for `user` with the password given.

    python3 rtsp_camera.py PORT PASSWORD

To be run by the system's Python, which has GStreamer's bindings.
"""

from __future__ import annotations

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,format=I420,width=96,height=80,framerate=15/1 "
    "! jpegenc ! rtpjpegpay name=pay0 )"
)


def main(port: str, password: str) -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=port)
    camera = GstRtspServer.RTSPMediaFactory(launch=PIPELINE, shared=True)
    role = GstRtspServer.RTSPToken()
    role.set_string("media.factory.role", "user")
    door = GstRtspServer.RTSPAuth()
    door.add_basic(GstRtspServer.RTSPAuth.make_basic("user", password), role)
    server.set_auth(door)
    permissions = GstRtspServer.RTSPPermissions()
    for permission in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role("user", permission, True)
    camera.set_permissions(permissions)
    server.get_mount_points().add_factory("/stream", camera)
    server.attach(None)
    print("serving", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
