"""In a directory that others can write to, the embedded server follows no link and writes to no file of theirs."""

import asyncio
import os

import pytest

from orchestrator.embedded.errors import EmbeddedServerError
from orchestrator.embedded.server import embedded_postgres


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


@pytest.fixture(scope="module")
def initialized(tmp_path_factory):
    """A data directory after its first run."""
    directory = tmp_path_factory.mktemp("embedded") / "data"

    async def first_run():
        async with embedded_postgres(directory, lambda *_, **__: None, durable=False) as server:
            return server.data_dir

    return asyncio.run(first_run())


@pytest.mark.parametrize("file", ["port", "pgpass"])
async def test_a_link_in_place_of_a_file_of_the_cluster_is_not_followed(file, initialized, tmp_path):
    """Whoever owns the data directory can put anything there while the server is down."""
    secret, kept = tmp_path / "secret", (initialized / file).read_text()
    secret.write_text("kept")
    (initialized / file).unlink()
    (initialized / file).symlink_to(secret)
    try:
        with pytest.raises(EmbeddedServerError, match=rf"^{initialized / file} is a link, no plain file"):
            async with embedded_postgres(initialized.parent, lambda *_, **__: None, durable=False):
                pass
    finally:
        (initialized / file).unlink()
        (initialized / file).write_text(kept)
    assert secret.read_text() == "kept"


async def test_a_link_in_place_of_the_cluster_is_not_followed(initialized, tmp_path):
    away = tmp_path / "away"
    initialized.rename(away)
    initialized.symlink_to(away)
    before = {path: path.lstat().st_mtime_ns for path in away.iterdir()}
    try:
        with pytest.raises(EmbeddedServerError, match=rf"^{initialized} is a link"):
            async with embedded_postgres(initialized.parent, lambda *_, **__: None, durable=False):
                pass
        assert {path: path.lstat().st_mtime_ns for path in away.iterdir()} == before
    finally:
        initialized.unlink()
        away.rename(initialized)


async def test_a_link_that_initdbs_user_puts_in_place_of_its_configuration_is_not_followed(tmp_path):
    """The race after initdb: the configuration is its user's by then. A replaced initdb leaves a link there."""
    secret, bin_dir = tmp_path / "secret", tmp_path / "bin"
    secret.write_text("kept")
    secret.chmod(0o666)
    bin_dir.mkdir()
    for name, does in (("postgres", "echo 'postgres (PostgreSQL) 18.0'"), ("initdb", _INITDB.format(secret=secret))):
        (bin_dir / name).write_text(f"#!/bin/sh\n{does}\n")
        (bin_dir / name).chmod(0o755)
    for parent in tmp_path, *tmp_path.parents[:-2]:  # the unprivileged user has to reach it
        parent.chmod(parent.stat().st_mode | 0o011)
    with pytest.raises(EmbeddedServerError, match=r"postgresql\.conf is a link"):
        async with embedded_postgres(tmp_path / "data", lambda *_, **__: None, bin_dir=bin_dir):
            pass
    assert secret.read_text() == "kept"


_INITDB = """for word; do case $word in --pgdata=*) ln -s {secret} "${{word#--pgdata=}}/postgresql.conf";; esac; done"""
