"""Output files: what they may replace, and that each appears whole or not at all.

`check_output` and `check_replaceable` are the rule about what may be replaced. `whole_file` and
`whole_folder` write beside the final name and rename at the end.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from plumbing.pool import BadInput

# ---------------------------------------------------------------------------- what may be replaced

# The files of a checkpoint, which Policy.save and write_training_state write.
CHECKPOINT_FILE = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|vocab|args)\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|merges\.txt|chat_template\.jinja|optimizer\.pt|metrics\.jsonl"
)


def check_output(path, reads):
    """Raises BadInput unless the file `path` and the settings beside it can be written."""
    check_outputs([path, args_file(path)], reads)
    check_own(args_file(path), path)
    check_writable(path)


def check_outputs(outputs, reads):
    """Raises BadInput if an output would replace something that the same command reads.

    outputs, reads: paths of files and folders, by whatever names. None is skipped in `reads`, and a
    hub's name does no harm. Called before the work begins.
    """
    for output in map(Path, outputs):
        for read in filter(None, reads):
            try:
                clash = _is_in(output, read) or output.is_dir() and _is_in(read, output)
            except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a long name
                raise BadInput(f"cannot read {read}: {error}; check the path") from None
            if clash:
                raise BadInput(
                    f"cannot write {output}: this command reads {read}; choose another --out"
                )


def _is_in(inner, outer):
    """Is `inner` the file or folder `outer`, or inside of it?"""
    inner, outer = Path(inner).resolve(), Path(outer).resolve()
    if not outer.exists():
        return inner == outer
    # samefile: hard links, and file systems on which P.jsonl is p.jsonl
    return any(path.exists() and path.samefile(outer) for path in (inner, *inner.parents))


def refuse_special(path):
    """An output may be new, a regular file or a folder; never a link, a pipe or a device."""
    path = Path(path)
    try:
        is_link = path.is_symlink()
        is_special = path.exists() and not (path.is_file() or path.is_dir())
    except OSError as error:  # a name that is too long
        raise BadInput(f"cannot write {path}: {error.strerror}; choose another --out") from None
    if is_link:
        raise BadInput(f"cannot write {path}: it is a link; name what it points to")
    if is_special:
        raise BadInput(f"cannot write {path}: it is no regular file; choose another --out")


def args_file(path):
    """Where the settings of a stage's output are: pool/00.jsonl -> pool/00.args.json."""
    path = Path(path)
    return path.parent / (path.name.removesuffix(".jsonl") + ".args.json")


def check_own(path, output):
    """Raises BadInput if `path`, a file that belongs to `output`, exists and is somebody else's.

    It is ours if the output's .args.json exists and its "out" is the output. Of evaluate.py's
    NAME-r1 ... NAME-none, "out" is NAME.
    """
    settings = args_file(output)
    refuse_special(path)
    if not Path(path).exists():
        return
    try:
        out = Path(json.loads(settings.read_text(encoding="utf-8"))["out"]).name
        is_ours = re.fullmatch(re.escape(out) + r"(-r\d+|-none)?", Path(output).name)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        is_ours = False
    if not is_ours:
        raise BadInput(
            f"cannot write {path}: it exists, and no stage wrote it; choose another --out"
        )


def check_replaceable(path):
    """Raises BadInput unless the folder `path` is free, empty or a checkpoint of this project.

    A checkpoint has n_quantiles in its config.json and holds only files that stages write.
    """
    refuse_special(path)
    try:
        path = Path(path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise BadInput(f"cannot write {path}: {error}; choose another --out") from None
    replaced = _beside(path, "replaced")
    if _is_checkpoint(replaced):  # whole_folder was killed between its renames
        if path.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, path)
    full_folder = path.is_dir() and any(path.iterdir())
    if path.is_file() or full_folder and not _is_checkpoint(path):
        raise BadInput(f"{path} exists and is no checkpoint of this project; choose another --out")
    shutil.rmtree(_make_unfinished(path))  # it can be written


def _is_checkpoint(path):
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        names = [file.name for file in path.iterdir()]
    except (OSError, ValueError):
        return False
    has_K = isinstance(config, dict) and "n_quantiles" in config
    return has_K and all(map(CHECKPOINT_FILE.fullmatch, names))


# ------------------------------------------------------------------------------ whole or not at all


def _beside(path, state):
    """The hidden name beside `path` of what is "unfinished" or being "replaced"."""
    return path.parent / f".{path.name}.{state}"


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
            write_json(args_file(path), vars(args))
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
    unfinished = _beside(path, "unfinished")
    refuse_special(path)
    refuse_special(unfinished)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return unfinished, unfinished.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise _cannot_write(path, error) from None


def _make_unfinished(path):
    """The empty folder beside `path` that is filled first."""
    unfinished = _beside(path, "unfinished")
    refuse_special(unfinished)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise _cannot_write(path, error) from None
    return unfinished


def _cannot_write(path, error):
    in_a_file = isinstance(error, (FileExistsError, NotADirectoryError))
    reason = "its folder is a file" if in_a_file else error.strerror
    return BadInput(f"cannot write {path}: {reason}; choose another --out")


@contextlib.contextmanager
def whole_folder(path):
    """Like whole_file, for a folder: yields a temporary Path to fill, which replaces `path`."""
    check_replaceable(path)
    path = Path(path).resolve()
    unfinished, replaced = _make_unfinished(path), _beside(path, "replaced")

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


@contextlib.contextmanager
def _clean_up_on_error(path, clean_up):
    """Runs clean_up() if the block fails. An OSError, such as a full disk, becomes BadInput."""
    try:
        yield
    except BaseException as error:  # Ctrl-C, too
        clean_up()
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            place = error.filename or f"cannot write {path}"
            raise BadInput(f"{place}: {reason(error)}; nothing was changed") from None
        raise


def first_line(error):
    """The first line of what an error says; of an error that says nothing, its kind."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def reason(error):
    """What an OSError says, and the remedy if it is a full disk."""
    text = error.strerror or str(error)
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    is_full |= text.endswith(("(os error 28)", "(os error 27)"))  # as safetensors says it
    return f"{text}; make room and start again" if is_full else text


def _fsync(path):
    """Flushes a file, or the entries of a folder, to the disk."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path):
    """A checksum of a file's content, or of the files in a folder with their names."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def checksums(paths):
    """One checksum for several files and folders. Of a name that is neither, the name counts."""
    each = [checksum(path) if Path(path).exists() else str(path) for path in paths]
    return hashlib.sha256(json.dumps(each).encode()).hexdigest()


# ------------------------------------------------------------------------------------------- JSON


def write_json(path, value):
    """Writes `value` as indented JSON."""
    text = json.dumps(value, indent=2, default=str, allow_nan=False)
    with whole_file(path) as file:
        file.write(text + "\n")


def read_json(path, what):
    """The JSON object in a file. what: the kind of file expected, for the error message."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}; name {what}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path} is not {what}")
    return value
