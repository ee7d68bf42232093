"""Real message servers for tests: on loopback, on ports of their own, in a folder of their own."""

from __future__ import annotations

import os
import random
import shutil
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from tests.engines.processes import Guard, Process, ProcessError, wait_until

HOST = "127.0.0.1"
# Where Debian has servers, which is not on everybody's path.
ALSO = ("/usr/sbin", "/usr/local/sbin")


class NotInstalledError(Exception):
    """A server's program is not on this machine."""

    def __init__(self, program: str, package: str) -> None:
        super().__init__(
            f"{program} is neither on PATH nor in {' or '.join(ALSO)}: "
            f"install Debian's package {package}"
        )


def find_program(name: str, package: str) -> Path:
    """Find a program on the path, or where Debian has servers.

    Raises:
        NotInstalledError: It is in neither.
    """
    found = shutil.which(name, path=os.pathsep.join((*os.get_exec_path(), *ALSO)))
    if found is None:
        raise NotInstalledError(name, package)
    return Path(found)


def free_port() -> int:
    """Find a free port that is never handed out to the clients' end of a connection.

    A client that tries to reach a stopped server could get the server's own port otherwise, be
    connected to itself, and keep the server from its port when it comes back.
    """
    handed_out = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()
    ports = [*range(10_000, int(handed_out[0])), *range(int(handed_out[1]) + 1, 65_536)]
    # Not from the tests' own random numbers: those begin alike in every process.
    choose = random.SystemRandom()
    while True:
        port = choose.choice(ports)
        with socket.socket() as tried:
            try:
                tried.bind((HOST, port))
            except OSError:
                continue
            return port


def answers(port: int, question: bytes, beginning: bytes) -> bool:
    """Ask a server, and tell whether its answer begins as it should."""
    try:
        with socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(question)
            return connection.recv(len(beginning), socket.MSG_WAITALL) == beginning
    except OSError:
        return False


class Server(ABC):
    """A server that can be stopped and started again, on the same port and with its messages.

    Args:
        folder: Where it keeps all that it writes.
        guard: Who ends it if this process does not get to it.

    Attributes:
        url: Where clients find it, also while it is stopped.
        programs: What has to be installed, and Debian's package of each.
        boot_seconds: The longest time that its start takes.
        stop_seconds: The longest time that its stop takes.
    """

    url: str
    programs: ClassVar[Mapping[str, str]]
    boot_seconds: ClassVar[float]
    stop_seconds: ClassVar[float] = 30

    def __init__(self, folder: Path, guard: Guard) -> None:
        self._program, *self._other_programs = self.find_programs()
        folder.mkdir(parents=True)
        self.folder = folder
        self.guard = guard
        self.port = free_port()
        self._process: Process | None = None

    @classmethod
    def find_programs(cls) -> list[Path]:
        """Find what it runs.

        Raises:
            NotInstalledError: Something of it is not on this machine.
        """
        return [find_program(name, package) for name, package in cls.programs.items()]

    @property
    def pid(self) -> int | None:
        """Its process; ``None`` while it is stopped."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            ProcessError: It ended at once, or does not answer.
        """
        assert self._process is None, f"{self.url} runs already"
        process = self._process = self._run()
        process.wait_ready(
            lambda: process.listens(self.port) and self._answers(), self.boot_seconds
        )

    def stop(self) -> None:
        """Stop it in good order; what is durable is kept.

        Raises:
            ProcessError: It does not stop.
        """
        if self._process is not None:
            self._process.terminate(self.stop_seconds)
            self.kill()

    def kill(self) -> None:
        """Kill it, as a crash of its machine does; `start` works even so."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def close(self) -> None:
        """Leave nothing of it running."""
        self.kill()

    @abstractmethod
    def _run(self) -> Process:
        """Start its process."""

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether clients can use it."""


class Redis(Server):
    """A Redis that has every write in a file before it answers, so that nothing is lost."""

    programs: ClassVar = {"redis-server": "redis-server"}
    boot_seconds = 30

    def __init__(self, folder: Path, guard: Guard) -> None:
        super().__init__(folder, guard)
        self.url = f"redis://{HOST}:{self.port}/0"

    def _run(self) -> Process:
        options = {
            "appendfsync": "no",  # the file is to outlive the process, not the machine
            "appendonly": "yes",
            "bind": HOST,
            "daemonize": "no",
            "dir": str(self.folder),
            "port": str(self.port),
            "save": "",
        }
        return Process(
            self._program,
            *(part for name, value in options.items() for part in (f"--{name}", value)),
            cwd=self.folder,
            env={"LC_ALL": "C", "PATH": os.defpath},
            log=self.folder / "log.txt",
            watched_by=self.guard,
        )

    def _answers(self) -> bool:
        # While it reads its file it answers `-LOADING`.
        return answers(self.port, b"PING\r\n", b"+PONG")


class RabbitMQ(Server):
    """A RabbitMQ broker with nothing but itself: no plugins, and a port mapper of its own."""

    programs: ClassVar = {"rabbitmq-server": "rabbitmq-server", "epmd": "erlang-base"}
    boot_seconds = 120

    def __init__(self, folder: Path, guard: Guard) -> None:
        super().__init__(folder, guard)
        self.url = f"amqp://guest:guest@{HOST}:{self.port}//"
        self._mapper: Process | None = None
        self._mapper_port = free_port()
        self._environment = self._configure()

    @classmethod
    def find_programs(cls) -> list[Path]:
        """Find the port mapper, and the script that Debian's wrapper runs as another user.

        Raises:
            NotInstalledError: One of them is not on this machine.
        """
        found, mapper = super().find_programs()
        # Elsewhere than in Debian there is no wrapper, and what was found is the script.
        scripts = sorted(Path("/usr/lib/rabbitmq/lib").glob("*/sbin/rabbitmq-server"))
        return [scripts[-1] if scripts else found.resolve(), mapper]

    def _configure(self) -> dict[str, str]:
        """Write the broker's configuration; return the environment that points at it."""
        config, plugins = self.folder / "rabbitmq.conf", self.folder / "enabled_plugins"
        config.write_text(
            "disk_free_limit.absolute = 10MB\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n"
            "vm_memory_high_watermark.absolute = 512MB\n",
            "utf-8",
        )
        plugins.write_text("[].\n", "utf-8")
        return {
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_MAX_PORTS": "4096",
            "HOME": str(self.folder),  # for the cookie
            "LC_ALL": "C.UTF-8",
            "PATH": os.pathsep.join((*os.get_exec_path(), *ALSO)),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-rabbitmq-env.conf"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_MAX_NUMBER_OF_ATOMS": "1000000",
            "RABBITMQ_MAX_NUMBER_OF_PROCESSES": "65536",
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_NODENAME": "tests@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            # One scheduler of each kind: it shares the machine with all that is tested with it.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+S 1:1 +SDcpu 1:1 +SDio 2 -kernel inet_dist_use_interface {127,0,0,1}"
            ),
            # It is to be the broker, not a script that waits for it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def start(self) -> None:
        """Start the port mapper and the broker, and wait until it answers.

        Raises:
            ProcessError: One of them ended at once, or does not answer.
        """
        if self._mapper is None:
            # Else the broker starts one, which outlives it.
            self._mapper = Process(
                *self._other_programs,
                *("-address", HOST, "-port", str(self._mapper_port)),
                cwd=self.folder,
                env=self._environment,
                log=self.folder / "epmd.txt",
                watched_by=self.guard,
            )
            # 110: all names, of which there are none; the answer begins with its port.
            names = self._mapper_port.to_bytes(4)
            self._mapper.wait_ready(
                lambda: answers(self._mapper_port, b"\x00\x01\x6e", names), self.boot_seconds
            )
        super().start()

    def close(self) -> None:
        """Leave neither the broker nor its port mapper running."""
        super().close()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper = None

    def _run(self) -> Process:
        # A name stays with the mapper until it notices that the broker is gone.
        if not wait_until(self._name_is_free, self.stop_seconds):
            raise ProcessError(f"{self.url}: its port mapper has the name of the broker before")
        return Process(
            self._program,
            cwd=self.folder,
            env=self._environment,
            log=self.folder / "log.txt",
            watched_by=self.guard,
        )

    def _name_is_free(self) -> bool:
        with socket.create_connection((HOST, self._mapper_port), timeout=5) as connection:
            connection.sendall(b"\x00\x01\x6e")
            with connection.makefile("rb") as answer:
                return len(answer.read()) == 4

    def _answers(self) -> bool:
        # A method's frame, `Connection.Start`.
        return answers(self.port, b"AMQP\x00\x00\x09\x01", b"\x01")


SERVERS: dict[str, type[Server]] = {"rabbitmq": RabbitMQ, "redis": Redis}
