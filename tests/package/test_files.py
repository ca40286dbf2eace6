from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bitswitch_deploy.package.files import hash_file, is_plain_file


def test_hash_and_size_of_a_file_longer_than_one_piece(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192 + b"end"
    (tmp_path / "file").write_bytes(data)
    assert hash_file(tmp_path / "file") == (hashlib.sha256(data).hexdigest(), len(data))


def test_only_regular_files_count(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "file_link").symlink_to("folder/file")
    (tmp_path / "broken").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    assert is_plain_file(tmp_path, "folder/file")
    for path in ("folder", "link/file", "file_link", "broken", "pipe", "nothing", "folder/file/x"):
        assert not is_plain_file(tmp_path, path), path
