"""The network interface on which a worker's process group listens."""

from pathlib import Path

import psutil
import pytest

from mtgen.config.run_sections import LaunchConfig
from mtgen.errors import TrainingError
from mtgen.launchers.process_group import LostWorkerReporter, interface_of, listen
from mtgen.launchers.ray_node import own_address


def test_the_interface_is_the_one_with_the_address() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for one in addresses:
            found = interface_of(one.address.partition("%")[0])
            assert found is not None and one.address in [other.address for other in psutil.net_if_addrs()[found]], name
    assert interface_of(own_address()) is not None and interface_of("127.0.0.1") == "lo"


def test_an_address_of_another_system_has_no_interface() -> None:
    assert interface_of("203.0.113.7") is None


def test_the_store_takes_a_free_port_of_the_range() -> None:
    with listen("127.0.0.1", range(1)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TrainingError, match=rf"launch.ports={port}-{port}: no port is free on 127\.0\.0\.1"):
            listen("127.0.0.1", range(port, port + 1))
        with listen("127.0.0.1", range(port, port + 50)) as other:
            assert port < other.getsockname()[1] < port + 50


def test_a_range_of_ports_is_checked() -> None:
    assert (LaunchConfig().port_range, LaunchConfig(ports="2000-2009").port_range) == (range(1), range(2000, 2010))
    for wrong in ("2009-2000", "80-90", "60000-70000", "2000"):
        with pytest.raises(ValueError, match="ports"):
            LaunchConfig(ports=wrong)


def test_of_many_lost_workers_a_few_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LostWorkerReporter(tmp_path).after_exception(None, {rank: RuntimeError("reset") for rank in range(1024)})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "worker 0 was lost: reset" and len(lines) == 6
    assert lines[-1] == "and 1,019 more workers, which a lost one takes down"
