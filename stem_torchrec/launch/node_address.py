"""Where the nodes of a job reach each other, if their own names do not tell.

Torch and gloo ask what a node's own name resolves to. That is often 127.0.1.1, and sometimes
nothing: then no node opens the meeting point, or ranks wait for each other at the wrong address.
"""

import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM
from typing import Any

STORE_LOST_S = 60
"""A store that does not answer for so long is lost; torch's own limit of a request."""

_PROBE_S = 10
_SIOCGIFADDR = 0x8915


def with_host(settings: str, endpoint: str) -> str:
    """Rendezvous settings (``key=value,...``) with ``is_host``: whether this node opens the port.

    Left to torch where the endpoint is this machine under its own address 127...: several launchers
    of a trial find out between them which comes first.
    """
    addresses = [] if "is_host" in settings else _addresses(endpoint)
    if not addresses or any(_is_loopback(address[0]) for address in addresses):
        return settings
    here = any(_is_free_here(address) for address in addresses)
    return ",".join(filter(None, [settings, f"is_host={int(here)}"]))


def local_address(given: str | None, endpoint: str) -> str | None:
    """At which address the other nodes reach this one: ``given``, or torch's own choice (None), or
    the one from which the endpoint is reached where this node's name resolves to none of use.

    Gloo is told the interface that has it, unless ``GLOO_SOCKET_IFNAME`` is set.
    """
    address = given
    if address is None and not _own_name_is_of_use():
        address = _address_towards(endpoint)
    if address is not None and "GLOO_SOCKET_IFNAME" not in os.environ:
        interface = _interface_of(address)
        if interface is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
    return address


def give_up_lost_peers(port: int) -> None:
    """Connections of this process to that port fail where the other side stays silent.

    Torch's store waits without a limit for the answer that would end a wait of its own, so a
    launcher whose link is cut would stay for as long as the system tries to send.
    """
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # it was closed meanwhile
            if stat.S_ISSOCK(os.fstat(int(entry)).st_mode):
                with socket.socket(fileno=os.dup(int(entry))) as connection:
                    _give_up_silence(connection, port)


def _give_up_silence(connection: socket.socket, port: int) -> None:
    if connection.family in (AF_INET, AF_INET6) and connection.getpeername()[1] == port:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STORE_LOST_S * 1000)


def _addresses(endpoint: str) -> list[Any]:
    """Socket addresses of ``HOST:PORT``; none where the name does not resolve."""
    host, _, port = endpoint.rpartition(":")
    try:
        return [info[4] for info in socket.getaddrinfo(host, int(port), type=SOCK_STREAM)]
    except (OSError, ValueError):
        return []


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _is_free_here(address: Any) -> bool:
    """Whether it is an address of this node, and nobody has opened its port yet."""
    family = AF_INET6 if ":" in address[0] else AF_INET
    with socket.socket(family, SOCK_STREAM) as probe:
        try:
            probe.bind((address[0], 0))
        except OSError:
            return False
    with socket.socket(family, SOCK_STREAM) as probe:
        return probe.connect_ex(address) != 0


def _own_name_is_of_use() -> bool:
    found = _addresses(f"{socket.gethostname()}:0")
    return bool(found) and not any(_is_loopback(address[0]) for address in found)


def _address_towards(endpoint: str) -> str | None:
    for address in _addresses(endpoint):
        if _is_loopback(address[0]):
            return None
        family = AF_INET6 if ":" in address[0] else AF_INET
        with suppress(OSError), socket.socket(family, SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    return None


def _interface_of(address: str) -> str | None:
    with socket.socket(AF_INET, SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                request = struct.pack("256s", name.encode()[:15])
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]
                if socket.inet_ntoa(found) == address:
                    return name
    return None
