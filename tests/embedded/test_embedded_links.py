"""In a directory that others can write to, the embedded server follows no link and writes to no file of theirs."""

import os

import pytest

from orchestrator.embedded.server import EmbeddedServerError, embedded_postgres


@pytest.mark.parametrize("how", ["symlink", "hard link", "fifo", "another's"])
async def test_a_lock_file_that_is_not_ours_is_refused_and_what_it_leads_to_stays(how, tmp_path):
    directory, secret = tmp_path / "data", tmp_path / "secret"
    directory.mkdir(mode=0o700)
    secret.write_text("kept")
    lock = directory / "embedded.lock"
    if how == "symlink":
        lock.symlink_to(secret)
    elif how == "hard link":
        lock.hardlink_to(secret)
    elif how == "fifo":
        os.mkfifo(lock)
    elif os.geteuid() != 0:
        pytest.skip("needs root")
    else:
        lock.write_text("1234")
        os.chown(lock, 65534, 65534)
    with pytest.raises(
        EmbeddedServerError, match=r"embedded\.lock is a link, no plain file, or belongs to another user"
    ):
        async with embedded_postgres(directory, lambda *_, **__: None):
            pass
    assert secret.read_text() == "kept"
