import os
import resource
import signal
from pathlib import Path

import pytest

from ranksort.evaluation.result_rows import write_rows
from ranksort.whole_file import replace_file


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.json"
    replace_file(path, b"first")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a full disk
        with pytest.raises(OSError, match="too large") as error:
            write_rows([{"score": 0.5}] * 1000, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(error.value).startswith(f"{path} cannot be written")
    assert path.read_bytes() == b"first"
    assert [*path.parent.iterdir()] == [path]


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    replace_file(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"content"
    read, write = os.pipe()
    replace_file(Path(f"/dev/fd/{write}"), b"content")
    os.close(write)
    with os.fdopen(read, "rb") as file:
        assert file.read() == b"content"
