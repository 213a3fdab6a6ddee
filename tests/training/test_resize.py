"""The file by which Ray Train's controller and the workers agree on a change of their number."""

import os
from pathlib import Path

from mtgen.training.protocol import Resize


def test_workers_are_asked_say_that_they_are_ready_and_begin_anew(tmp_path: Path) -> None:
    controller, workers = Resize(tmp_path), Resize(tmp_path)
    assert not workers.asked() and not controller.is_ready()
    controller.ask()
    assert workers.asked() and not controller.is_ready()
    workers.ready()
    assert controller.is_ready()
    workers.clear()
    assert not workers.asked() and not controller.is_ready()


def test_a_folder_that_takes_nothing_is_no_trouble_where_nobody_asked(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("")  # root may write into a read-only folder, but nobody into a file
    os.chmod(folder, 0o400)
    Resize(folder).clear()
