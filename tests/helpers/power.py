"""What of a folder would be left if the power failed: stands between a run and the system calls that matter."""

import os
import stat
from pathlib import Path


class Disk:
    """Notes, after every rename in a folder, what a power failure would leave of it.

    Of the content of a file that is what the last fsync has seen. Of its names, as a file system pleases, all that there
    are or those at the last fsync of the folder: each rename adds both to `states`, dicts from name to bytes.
    """

    def __init__(self, folder, monkeypatch):
        self.folder = Path(folder).resolve()
        self.states = []
        self._content, self._synced_names, self._held = {}, {}, []
        fsync, replace = os.fsync, os.replace

        def noting_fsync(file):
            handle = file if isinstance(file, int) else file.fileno()
            fsync(handle)
            # held open, so that no new file gets its number
            self._held.append(os.dup(handle))
            if stat.S_ISREG(os.fstat(handle).st_mode):
                self._content[os.fstat(handle).st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()
            elif Path(os.readlink(f"/proc/self/fd/{handle}")) == self.folder:
                self._synced_names = self._names()

        def noting_replace(source, target):
            replace(source, target)
            if Path(target).resolve().parent == self.folder:
                self.states += [self._left(self._names()), self._left(self._synced_names)]

        monkeypatch.setattr(os, "fsync", noting_fsync)
        monkeypatch.setattr(os, "replace", noting_replace)

    def _names(self):
        return {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def _left(self, names):
        return {name: self._content.get(number, b"") for name, number in names.items()}

    def close(self):
        for handle in self._held:
            os.close(handle)


def restore(state, folder):
    """Make a folder of one of the states."""
    folder.mkdir()
    for name, content in state.items():
        (folder / name).write_bytes(content)
