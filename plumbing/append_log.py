"""A log that keeps finished work on the disk while a stage is still running."""

import glob
import json
import os
from pathlib import Path

from plumbing.files import reason
from plumbing.pool import BadInput, dump_row


class AppendLog:
    """A JSONL file that keeps finished rows while a stage runs, so that a crash loses none of them.

    The file is `path` followed by the number of the process (RANK under torchrun, otherwise 0).
    Each process appends to its own file. At the start, `rows` holds those of all files, whatever
    the number of processes was last time. A last line that was cut off by the crash is dropped.
    fields: what each row must have.
    """

    def __init__(self, path, fields=()):
        self.own = Path(f"{path}{os.environ.get('RANK', '0')}")
        self.file = None
        self.size = 0
        self.rows = []
        name = Path(path).name
        for part in sorted(self.own.parent.glob(glob.escape(name) + "[0-9]*")):
            if part.name.removeprefix(name).isdecimal():
                self.rows += _read(part, fields)

    def append(self, rows):
        """Writes all of `rows`, or none of them. They are on the disk when this returns."""
        data = b"".join(dump_row(row).encode() + b"\n" for row in rows)
        try:
            if self.file is None:
                self._open()
            while data:
                data = data[self.file.write(data) :]
            os.fsync(self.file.fileno())
            self.size = self.file.tell()
        except BlockingIOError:
            raise BadInput(
                f"another process is writing {self.own}; wait for it, or choose another --out"
            ) from None
        except OSError as error:
            if self.file:
                self.file.truncate(self.size)
                if not self.size:
                    self.own.unlink(missing_ok=True)
            raise BadInput(f"cannot write {self.own}: {reason(error)}") from None

    def _open(self):
        self.own.parent.mkdir(parents=True, exist_ok=True)
        file = self.own.open("a+b", buffering=0)
        try:
            _lock(file)
            file.seek(0)
            self.size = file.read().rfind(b"\n") + 1
            file.truncate(self.size)
        except OSError:
            file.close()
            raise
        self.file = file  # only now may it be written, or removed after an error


def _read(part, fields):
    try:
        lines = part.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise BadInput(f"cannot read {part}: {error.strerror}; remove it") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append({**json.loads(line)})
            _ = [rows[-1][field] for field in fields]
        except (ValueError, TypeError, KeyError):
            raise BadInput(
                f"{part}:{number}: damaged; remove this line, or the whole file"
            ) from None
    return rows


def _lock(file):
    """Raises BlockingIOError while another process holds the lock."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):  # Windows and some network drives have no such lock
        pass
