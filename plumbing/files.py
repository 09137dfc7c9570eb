"""Output files: each appears whole or not at all, and long work can go on after a crash.

`whole_file` and `whole_folder` write beside the final name and rename at the end. `AppendLog` keeps
finished work on the disk while a stage is still running.
"""

import contextlib
import glob
import json
import os
import shutil
from pathlib import Path

from plumbing.pool import BadInput, dump_row


@contextlib.contextmanager
def whole_file(path, args=None):
    """Opens a text file that appears under its name only if the block ends without an error.

    args: the stage's settings, written to NAME.args.json before NAME appears.
    """
    path = Path(path)
    unfinished, file = _open_unfinished(path)
    with _clean_up_on_error(path, lambda: unfinished.unlink(missing_ok=True)):
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if args is not None:
            write_args(path, args)
        os.replace(unfinished, path)
        _fsync(path.parent)


def check_writable(path):
    """Raises BadInput if the file `path` cannot be written. Called before the hours of work."""
    unfinished, file = _open_unfinished(Path(path))
    file.close()
    unfinished.unlink(missing_ok=True)


def _open_unfinished(path):
    if path.is_dir():
        raise BadInput(f"cannot write {path}: it is a folder; name a file in it with --out")
    unfinished = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return unfinished, unfinished.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; choose another --out") from None


@contextlib.contextmanager
def whole_folder(path):
    """Like whole_file, for a folder: yields a temporary Path to fill, which replaces `path`."""
    check_replaceable(path)
    path = Path(path).resolve()
    unfinished = path.with_name(path.name + ".tmp")
    replaced = path.with_name(path.name + ".replaced")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; choose another --out") from None

    def clean_up():
        shutil.rmtree(unfinished, ignore_errors=True)
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)

    with _clean_up_on_error(path, clean_up):
        yield unfinished
        for file in unfinished.iterdir():
            _fsync(file)
        _fsync(unfinished)
        if path.exists():
            os.replace(path, replaced)  # if killed here, check_replaceable puts it back next time
        os.replace(unfinished, path)
        _fsync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def check_replaceable(path):
    """Raises BadInput unless `path` is free, an empty folder or a checkpoint.

    A mistyped --out must not delete anything else that a person has.
    """
    path = Path(path).resolve()
    replaced = path.with_name(path.name + ".replaced")
    if (replaced / "config.json").exists():  # whole_folder was killed between its renames
        if path.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, path)
    full_folder = path.is_dir() and any(path.iterdir())
    if path.is_file() or full_folder and not (path / "config.json").exists():
        raise BadInput(f"{path} exists and is no checkpoint; choose another --out")


@contextlib.contextmanager
def _clean_up_on_error(path, clean_up):
    """Runs clean_up() if the block fails. A full disk and other OSErrors become BadInput."""
    try:
        yield
    except BaseException as error:  # Ctrl-C, too
        clean_up()
        if isinstance(error, OSError):
            raise BadInput(
                f"cannot write {path}: {error.strerror or error}; nothing was changed, "
                "make room and start again"
            ) from None
        raise


def _fsync(path):
    """Flushes a file, or the entries of a folder, to the disk."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class AppendLog:
    """A JSONL file that keeps finished rows while a stage runs, so that a crash loses none of them.

    The file is `path` followed by the number of the process (RANK under torchrun, otherwise 0).
    Each process appends to its own file. At the start, `rows` holds those of all files, whatever
    the number of processes was last time. A last line that was cut off by the crash is dropped.
    """

    def __init__(self, path):
        self.own = Path(f"{path}{os.environ.get('RANK', '0')}")
        self.file = None
        self.size = 0
        self.rows = []
        name = glob.escape(Path(path).name)
        for part in sorted(self.own.parent.glob(name + "[0-9]*")):
            for number, line in enumerate(part.read_bytes().split(b"\n")[:-1], 1):
                try:
                    self.rows.append(json.loads(line))
                except ValueError:
                    raise BadInput(
                        f"{part}:{number}: damaged; remove this line, or the whole file"
                    ) from None

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
            raise BadInput(
                f"cannot write {self.own}: {error.strerror}; make room and start again to go on"
            ) from None

    def _open(self):
        self.own.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.own.open("a+b", buffering=0)
        _lock(self.file)
        self.file.seek(0)
        self.size = self.file.read().rfind(b"\n") + 1
        self.file.truncate(self.size)


def _lock(file):
    """Raises BlockingIOError while another process holds the lock."""
    with contextlib.suppress(ImportError):  # Windows has no fcntl, and no lock here
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_json(path, value):
    """Writes `value` as indented JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str, allow_nan=False)
    with whole_file(path) as file:
        file.write(text + "\n")


def write_args(path, args):
    """Writes a stage's settings beside its output: pool/00.jsonl -> pool/00.args.json."""
    path = Path(path)
    write_json(path.with_name(path.name.removesuffix(".jsonl") + ".args.json"), vars(args))


def read_json(path, what):
    """The JSON object in a file. what: the kind of file expected, for the error message."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}; name {what}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} is not {what}")
    return value
