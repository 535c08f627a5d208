"""Real Sentinels and clusters on loopback, started for a test and stopped with it."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import redis
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis.crc import key_slot

from tests.support.redis_server import RedisServer, find_redis_server, free_port

__all__ = ["Cluster", "SentinelTrio", "in_step", "slot_of"]

SLOTS = 16384
NODE_TIMEOUT = 1.0  # seconds after which nodes consider each other dead
PATIENCE = 60.0  # seconds; on a busy machine nodes can need several elections
DOWN_AFTER = 0.5  # seconds after which a Sentinel considers the master dead


class Cluster:
    """Three masters, and on demand a replica of each.

    Args:
        replicas: the number of replicas of every master.
        options: options of every redis-server.
        client: options of clients (TLS, a user).
        tls: whether nodes use TLS with clients and with each other.
    """

    def __init__(
        self,
        replicas: int = 0,
        *options: str,
        client: Mapping[str, Any] = MappingProxyType({}),
        tls: bool = False,
    ) -> None:
        self._client_options = dict(client)
        self.servers: list[RedisServer] = []
        try:
            common = [
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                str(int(NODE_TIMEOUT * 1e3)),
            ]
            common += ["--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"]
            for _ in range(3 * (1 + replicas)):
                port = cluster_port()
                own = ["--port", "0", "--tls-port", str(port), "--tls-cluster", "yes"] if tls else []
                self.servers.append(RedisServer(*common, *own, *options, port=port, client=client))
            self._join()
        except BaseException:
            self.close()
            raise

    def client(self, **options: Any) -> RedisCluster:
        """A client, as a user would pass it."""
        port = self.servers[0].port
        return RedisCluster(host="127.0.0.1", port=port, **{**self._client_options, **options})

    @property
    def running(self) -> list[RedisServer]:
        return [server for server in self.servers if server.running]

    def owner(self, slot: int) -> RedisServer:
        """The master that has `slot`, as most nodes see it."""
        votes: dict[int, int] = {}
        for server in self.running:
            for first, last, master, *_ in _do(server, "CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    votes[master[1]] = votes.get(master[1], 0) + 1
        port = max(votes, key=lambda voted: votes[voted])
        return next(server for server in self.servers if server.port == port)

    def masters(self) -> list[RedisServer]:
        return [server for server in self.running if _role(server) == "master"]

    # A slot moves, step by step

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        _do(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", _id(source))
        _do(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", _id(target))

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer, most: int = 1000) -> int:
        """Move up to `most` keys; returns how many there were."""
        keys = _do(source, "CLUSTER", "GETKEYSINSLOT", slot, most)
        if keys:
            where = ("127.0.0.1", target.port, "", 0, 5000)
            _do(source, "MIGRATE", *where, *self._auth(), "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, target: RedisServer) -> None:
        """Assign the slot: to the target first, as redis-cli does, then on all other masters."""
        others = [server for server in self.masters() if server is not target]
        for server in (target, *others):
            _do(server, "CLUSTER", "SETSLOT", slot, "NODE", _id(target))

    def move(self, slot: int, target: RedisServer) -> None:
        """Move a slot completely, as redis-cli does."""
        source = self.owner(slot)
        self.begin_move(slot, source, target)
        while self.move_keys(slot, source, target):
            pass
        self.end_move(slot, target)

    def take_all(self, source: RedisServer, target: RedisServer) -> None:
        """Assign all slots of `source` to `target`, without their keys. Its epoch must be greater."""
        rows = _do(target, "CLUSTER", "SLOTS")
        ranges = [range(row[0], row[1] + 1) for row in rows if row[2][1] == source.port]
        slots = [slot for each in ranges for slot in each]
        _do(target, "CLUSTER", "DELSLOTS", *slots)
        _do(target, "CLUSTER", "ADDSLOTS", *slots)
        _until(lambda: self.replaced(slots[0], source), "all nodes know it")

    def forget_slot(self, slot: int) -> None:
        """Remove the slot from all nodes: nobody serves it."""
        for server in self.running:
            _do(server, "CLUSTER", "DELSLOTS", slot)

    def add_slot(self, slot: int, server: RedisServer) -> None:
        """Assign an unserved slot to `server`."""
        _do(server, "CLUSTER", "ADDSLOTS", slot)

    def reshard(self, source: RedisServer, target: RedisServer, slots: int) -> None:
        """Move slots with redis-cli, as an operator does."""
        command = ["redis-cli", "--cluster", "reshard", f"127.0.0.1:{source.port}", "--cluster-yes"]
        command += ["--cluster-from", _id(source), "--cluster-to", _id(target)]
        command += ["--cluster-slots", str(slots)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr}")

    def replaced(self, slot: int, master: RedisServer) -> bool:
        """Whether all running nodes except `master` see another owner of `slot`."""
        views = [_do(other, "CLUSTER", "SLOTS") for other in self.running if other is not master]
        owners = {row[2][1] for view in views for row in view if row[0] <= slot <= row[1]}
        return bool(owners) and master.port not in owners and len(owners) == 1

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until it holds; a minute at most."""
        _until(condition, what)

    def promote(self, replica: RedisServer) -> None:
        """Let a replica replace its live master."""
        _do(replica, "CLUSTER", "FAILOVER")

    def serves(self, server: RedisServer) -> bool:
        """Whether all replying nodes see slots on `server`."""
        views = [_do(other, "CLUSTER", "SLOTS") for other in self.running if other is server]
        return all(any(row[2][1] == server.port for row in view) for view in views)

    def books(self, server: RedisServer, queue_id: str) -> dict[str, Any]:
        """All keys of a queue on a node, even in a slot that is still being imported."""
        read = {"hash": ("HGETALL",), "zset": ("ZRANGE", 0, -1, "WITHSCORES")}
        found = {}
        for key in _do(server, "CLUSTER", "GETKEYSINSLOT", slot_of(queue_id), 1000):
            kind = _do(server, "TYPE", key, asking=True)
            name, *more = read[kind]
            found[key] = _do(server, name, key, *more, asking=True)
        return found

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def _auth(self) -> tuple[str, ...]:
        if "password" not in self._client_options:
            return ()
        return ("AUTH2", self._client_options["username"], self._client_options["password"])

    def _join(self) -> None:
        masters, replicas = self.servers[:3], self.servers[3:]
        for index, server in enumerate(masters):
            share = range(index * SLOTS // 3, (index + 1) * SLOTS // 3)
            _do(server, "CLUSTER", "ADDSLOTS", *share)
            _do(server, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for server in self.servers[1:]:
            _do(server, "CLUSTER", "MEET", "127.0.0.1", masters[0].port)
        _until(lambda: all(self._sees_all(server) for server in self.servers), "all nodes have met")
        for index, server in enumerate(replicas):
            _do(server, "CLUSTER", "REPLICATE", _id(masters[index % 3]))
        _until(lambda: all(_state(server) == "ok" for server in self.servers), "the cluster is ok")
        _until(lambda: all(in_step(server) for server in replicas), "replicas follow their masters")

    def _sees_all(self, server: RedisServer) -> bool:
        # nodes in `handshake` do not have their final names yet
        text = str(_do(server, "CLUSTER", "NODES"))
        return text.count("connected") == len(self.servers) and "handshake" not in text


class SentinelTrio:
    """A master, a replica, and three Sentinels that watch them."""

    def __init__(self, service: str = "callcentre", *, password: str = "") -> None:
        self.service = service
        self.password = password
        self.servers: list[RedisServer] = []
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self.ports: list[int] = []
        client = {"password": password} if password else {}
        options: tuple[str, ...] = ()
        if password:
            options = ("--requirepass", password, "--masterauth", password)
        options += ("--repl-diskless-sync-delay", "0")
        try:
            master = RedisServer(*options, client=client)
            self.servers.append(master)
            follow = ("--replicaof", "127.0.0.1", str(master.port))
            self.servers.append(RedisServer(*follow, *options, client=client))
            _until(lambda: in_step(self.servers[1]), "the replica follows the master")
            for number in range(3):
                self._start_sentinel(number, master.port)
            _until(lambda: all(self._sees_all(port) for port in self.ports), "the Sentinels agree")
        except BaseException:
            self.close()
            raise

    def client(self, *before: tuple[str, int], **options: Any) -> Redis:
        """A client for the master, as a user would pass it."""
        addresses = [*before, *(("127.0.0.1", port) for port in self.ports)]
        if self.password:
            options.setdefault("password", self.password)
        sentinel = Sentinel(addresses, **options)  # type: ignore[no-untyped-call]
        client: Redis = sentinel.master_for(self.service)
        return client

    @property
    def master(self) -> RedisServer:
        """The master named by most Sentinels."""
        named = [self._ask(port)["port"] for port in self.ports]
        port = max(named, key=named.count)
        return next(server for server in self.servers if server.port == int(port))

    @property
    def other(self) -> RedisServer:
        return next(server for server in self.servers if server is not self.master)

    def listeners(self) -> int:
        """The number of connections subscribed to a Sentinel."""
        found = 0
        for port in self.ports:
            with self._client(port) as client:
                found += sum(int(each["sub"]) for each in client.client_list())
        return found

    def fail_over(self) -> None:
        """Let a Sentinel replace the live master."""
        with self._client(self.ports[0]) as client:
            client.execute_command("SENTINEL", "FAILOVER", self.service)

    def close(self) -> None:
        for process in self._sentinels:
            process.kill()
            process.wait()
        for server in self.servers:
            server.close()

    def _start_sentinel(self, number: int, master: int) -> None:
        port = free_port()
        file = Path(self.servers[0].folder) / f"sentinel-{number}.conf"
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"sentinel monitor {self.service} 127.0.0.1 {master} 2",
            f"sentinel down-after-milliseconds {self.service} {int(DOWN_AFTER * 1e3)}",
            f"sentinel failover-timeout {self.service} 5000",
        ]
        if self.password:
            lines.append(f"sentinel auth-pass {self.service} {self.password}")
        file.write_text("\n".join(lines) + "\n")
        command = [find_redis_server(), str(file), "--sentinel"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        self._sentinels.append(process)
        self.ports.append(port)

    def _sees_all(self, port: int) -> bool:
        try:
            seen = self._ask(port)
        except redis.RedisError:
            return False
        return int(seen["num-slaves"]) == 1 and int(seen["num-other-sentinels"]) == 2

    def _ask(self, port: int) -> dict[str, str]:
        with self._client(port) as client:
            flat = client.execute_command("SENTINEL", "MASTER", self.service)
        return flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))

    def _client(self, port: int) -> Any:
        return redis.Redis(port=port, decode_responses=True, socket_timeout=5)


def slot_of(queue_id: str) -> int:
    slot: int = key_slot(f"{{{queue_id}}}".encode())
    return slot


def _do(server: RedisServer, *words: Any, asking: bool = False) -> Any:
    """Send a command. Returns the raw reply, not parsed by redis-py."""
    pool: Any = server.client.connection_pool
    connection = pool.connection_class(**pool.connection_kwargs)
    try:
        if asking:
            connection.send_command("ASKING")
            connection.read_response()
        connection.send_command(*words)
        return connection.read_response()
    finally:
        connection.disconnect()


def _id(server: RedisServer) -> str:
    return str(_do(server, "CLUSTER", "MYID"))


def _state(server: RedisServer) -> str:
    lines = str(_do(server, "CLUSTER", "INFO")).splitlines()
    return lines[0].partition(":")[2]


def _role(server: RedisServer) -> str:
    replication: Any = server.client.info("replication")
    return str(replication["role"])


def in_step(server: RedisServer) -> bool:
    """Whether a replica is connected to its master."""
    replication: Any = server.client.info("replication")
    return bool(replication.get("master_link_status") == "up")


def cluster_port() -> int:
    """A free port whose cluster bus, 10,000 above, is free as well."""
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            for number in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {PATIENCE:g} s still not: {what}")
        time.sleep(0.02)
