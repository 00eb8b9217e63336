"""Files that systems and programs leave in any folder that somebody looks at."""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["is_litter"]

_LITTER = (
    # macOS: the Finder's view, data beside files on other file systems, indexes, what was thrown away
    *(".ds_store", "._*", ".localized", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd", ".apdisk"),
    # Windows: thumbnails, the look of a folder, what was thrown away
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    # Linux: files that were removed while open on a network or FUSE, desktops, what fsck found
    *(".nfs*", ".fuse_hidden*", ".directory", ".trash-*", "lost+found"),
    # programs: locks and copies of editors and offices, notebooks, network storage, folders kept in git
    *(".~lock.*#", "~$*", "*~", ".#*", ".*.sw[a-z]", "*.swp", ".ipynb_checkpoints", "@eadir", ".gitkeep", ".keep"),
)


def is_litter(name: str) -> bool:
    """Return whether `name` is well known as one that nobody put into a folder on purpose."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in _LITTER)
