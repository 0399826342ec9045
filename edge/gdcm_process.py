"""The process that holds GDCM: started by `edge.dicom.gdcm`, one frame at a time until its pipe is closed.

GDCM aborts on some damaged streams and writes to the terminal on others; here that harms nobody. Receives an
`EncodedFrame` pickled, answers with the samples, or None if the frame is refused.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from edge.codecs import EncodedFrame, decode_frame

SECONDS_A_FRAME = 60
"""A frame that takes longer ends the process. A radiograph takes less than a second."""


def main(descriptor: int) -> None:
    """Decode what comes over the pipe `descriptor`, until nobody holds its other end."""
    # A signal to the daemon's whole group must not end this process before the daemon has drained its images.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the thread that started us may have blocked some
    connection = Connection(descriptor)
    while True:
        try:
            frame = EncodedFrame(*connection.recv())
        except EOFError:
            return
        # The alarm's default action ends the process even inside native code, and even if the parent is gone.
        signal.alarm(SECONDS_A_FRAME)
        try:
            samples: bytes | None = decode_frame(frame)
        except Exception:  # whatever pydicom raises for damaged data; its text may quote the file
            samples = None
        signal.alarm(0)
        connection.send(samples)


if __name__ == "__main__":
    main(int(sys.argv[1]))
