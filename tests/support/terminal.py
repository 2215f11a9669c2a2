"""The command line in this process, on a terminal of a given width."""

import fcntl
import os
import pty
import struct
import termios
import threading
from contextlib import redirect_stderr, redirect_stdout

from command_line import Done
from conformer_vision.cli import main

_END = b"\0"


def run_on_terminal(columns: int, *arguments: object) -> Done:
    """The command, and all that the terminal shows as its output; no width is given in the environment."""
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = bytearray()

    def read() -> None:
        while not shown.endswith(_END):  # another process may keep the terminal open
            shown.extend(os.read(reading, 65536))

    reader = threading.Thread(target=read)
    reader.start()
    with open(writing, "w", encoding="utf-8", buffering=1) as terminal:
        with redirect_stdout(terminal), redirect_stderr(terminal):
            try:
                status = main([str(argument) for argument in arguments])
            except SystemExit as ended:
                status = int(ended.code or 0)
        terminal.write(_END.decode())
        terminal.flush()
        reader.join()
    os.close(reading)
    return Done(status, shown.removesuffix(_END).decode().replace("\r\n", "\n"), "")
