"""Where nodes meet, whatever their names resolve to."""

import os
import socket

import pytest

from stem_torchrec.launch import node_address
from stem_torchrec.launch.node_address import local_address, with_host

ELSEWHERE = "192.0.2.7:29500"  # an address for documentation: nobody has it


@pytest.fixture(autouse=True)
def interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "x")  # so that it is put back
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


def resolving(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """This node's own name resolves to an address, or to none."""
    resolve = socket.getaddrinfo

    def found(host: str, port: int, **options: int) -> object:
        if host != socket.gethostname():
            return resolve(host, port, **options)
        if name is None:
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port))]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_who_opens_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_host("", ELSEWHERE) == "is_host=0"
    assert with_host("timeout=9", ELSEWHERE) == "timeout=9,is_host=0"
    assert with_host("is_host=1", ELSEWHERE) == "is_host=1"
    for left in ("localhost:29500", "127.0.0.1:29500", "no.such.host.invalid:29500", "x"):
        assert with_host("", left) == ""
    # An address of this node that is not taken for a trial's.
    monkeypatch.setattr(node_address, "_is_loopback", lambda address: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert with_host("", f"127.0.0.1:{port}") == "is_host=0"  # another has opened it
    assert with_host("", f"127.0.0.1:{port}") == "is_host=1"


@pytest.mark.parametrize("name", ["127.0.1.1", None])
def test_a_name_of_no_use(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    resolving(monkeypatch, name)
    monkeypatch.setattr(node_address, "_address_towards", lambda endpoint: "127.0.0.1")
    assert local_address(None, ELSEWHERE) == "127.0.0.1"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_name_that_others_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "192.0.2.8")
    assert local_address(None, ELSEWHERE) is None
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_what_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_address("127.0.0.1", ELSEWHERE) == "127.0.0.1"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert local_address("127.0.0.1", ELSEWHERE) == "127.0.0.1"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


def test_a_silent_peer_is_given_up() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as store,
        socket.create_server(("127.0.0.1", 0)) as another,
        socket.create_connection(another.getsockname()) as other,
    ):
        before = os.listdir("/proc/self/fd")
        node_address.give_up_lost_peers(server.getsockname()[1])
        assert os.listdir("/proc/self/fd") == before  # no descriptor of another kind is left open
        limits = [
            connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            for connection in (store, other)
        ]
        assert limits == [node_address.STORE_LOST_S * 1000, 0]
        store.sendall(b"still open")


def test_the_address_from_which_another_is_reached() -> None:
    assert node_address._address_towards("127.0.0.1:1") is None
    found = node_address._address_towards(ELSEWHERE)  # none without a route
    assert found is None or not found.startswith("127.")
