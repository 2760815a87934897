"""One file as another: sharing its blocks where the disk can, else its inode, else by copying."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file until one of them changes


def share(source: Path, target: Path, *, link: bool = True) -> str:
    """Make `target` a file with the bytes of `source`, and return how: reflink, link or copy.

    Parameters
    ----------
    link
        A hard link will do: who writes to one writes to both, so only for write-protected files.

    Raises
    ------
    FileExistsError
        `target` exists.
    """
    if _reflink(source, target):
        return "reflink"
    if link:
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
        else:
            return "link"
    with source.open("rb") as read, target.open("xb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
    return "copy"


def _reflink(source: Path, target: Path) -> bool:
    with source.open("rb") as read, target.open("xb") as written:
        try:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
        except OSError:
            shared = False
        else:
            shared = True
    if not shared:
        target.unlink()
    return shared
