"""The file by which Ray Train's controller and the workers agree to change the number of workers."""

import os
from pathlib import Path

from mtgen.training.protocol import Resize


def test_workers_are_asked_report_that_they_are_ready_and_restart(tmp_path: Path) -> None:
    controller, workers = Resize(tmp_path), Resize(tmp_path)
    assert not workers.asked() and not controller.is_ready()
    controller.ask()
    assert workers.asked() and not controller.is_ready()
    workers.ready()
    assert controller.is_ready()
    workers.clear()
    assert not workers.asked() and not controller.is_ready()


def test_a_read_only_folder_is_not_an_error_without_a_request(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("")  # root can write into a read-only folder, but not into a file
    os.chmod(folder, 0o400)
    Resize(folder).clear()
