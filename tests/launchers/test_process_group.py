"""The network interface on which a worker's process group listens."""

import psutil

from mtgen.launchers.process_group import interface_of
from mtgen.launchers.ray_node import own_address


def test_the_interface_is_the_one_with_the_address() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            found = interface_of(one.address.partition("%")[0])
            assert found is not None and one.address in [other.address for other in psutil.net_if_addrs()[found]], name
    assert interface_of(own_address()) is not None and interface_of("127.0.0.1") == "lo"


def test_an_address_of_another_system_has_no_interface() -> None:
    assert interface_of("203.0.113.7") is None
