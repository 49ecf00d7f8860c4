"""A local folder that behaves as hdfs does for Arrow: a file to be replaced is deleted, then the new one renamed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyarrow import fs

from shardmean.model.storage import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class LikeHdfs(fs.SubTreeFileSystem):
    """`between` is called with the path between deletion and renaming."""

    between: Callable[[str], None] = staticmethod(lambda _path: None)

    def move(self, src: str, dest: str) -> None:
        if self.get_file_info(dest).is_file:
            self.delete_file(dest)
        self.between(dest)
        super().move(src, dest)


def pretend_hdfs(patch: pytest.MonkeyPatch) -> LikeHdfs:
    """Let all local paths be of such a store."""
    system = LikeHdfs("/", fs.LocalFileSystem())
    patch.setattr(fs, "HadoopFileSystem", LikeHdfs)
    patch.setattr(filesystem, "locate", lambda uri: (system, uri))
    return system
