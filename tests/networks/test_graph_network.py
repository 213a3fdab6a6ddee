"""Networks as a graph and tensors in one file, and programs of torch.export without what could run code."""

import copy
import io
import json
import zipfile
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.backbones import Pyramid, lite_checkpoint, traced
from torch import Tensor, nn

from mtgen.errors import ConfigError
from mtgen.networks.efficientnet_lite import EfficientNetLite
from mtgen.networks.exported_program import MODEL_FILE, PICKLED_INPUTS_FILE, read_exported_program
from mtgen.networks.graph_network import GRAPH_KEY, GraphNetwork, read_graph, write_graph

PROGRAM = traced(Pyramid())
CONTENT = write_graph(PROGRAM, {"license": "CC0"})


def test_a_written_network_computes_the_same_at_every_size_and_keeps_its_names() -> None:
    network, about = read_graph(CONTENT, "here")
    original = Pyramid().eval()
    assert about == {"license": "CC0"}
    assert dict(network.named_parameters()).keys() == dict(original.named_parameters()).keys()
    for shape in ((1, 3, 32, 32), (3, 3, 64, 32)):
        image = torch.randn(shape)
        assert all(torch.equal(a, b) for a, b in zip(network(image), original(image), strict=True))


def test_it_is_differentiated_copied_and_moved_like_any_module() -> None:
    network, _ = read_graph(CONTENT, "here")
    image = torch.randn(2, 3, 32, 32, requires_grad=True)
    network(image)[1].square().sum().backward()
    assert image.grad is not None and all(p.grad is not None for p in network.parameters())
    found = copy.deepcopy(network).to("meta")(torch.empty(2, 3, 64, 64, device="meta"))
    assert [tuple(x.shape) for x in found] == [(2, 3, 32, 32), (2, 5, 16, 16)]
    with torch.autocast("cpu", torch.bfloat16):
        assert {x.dtype for x in network(image.detach())} == {torch.bfloat16}


class Sizes(nn.Module):
    """Uses the sizes of its input, a constant and a new tensor."""

    def forward(self, image: Tensor) -> Tensor:
        rows = torch.arange(image.shape[2], dtype=image.dtype, device=image.device)
        return image.flatten(2).unflatten(2, (image.shape[2], -1)) + rows[:, None] + torch.tensor([0.5])


def test_arithmetic_on_sizes_constants_and_new_tensors_are_kept() -> None:
    batch, height = torch.export.Dim("batch"), torch.export.Dim("height")
    program = torch.export.export(Sizes(), (torch.zeros(2, 3, 5, 4),), dynamic_shapes=({0: batch, 2: height},))
    image = torch.randn(3, 3, 7, 4)
    # a single tensor is one output
    assert torch.equal(read_graph(write_graph(program, {}), "here")[0](image)[0], Sizes()(image))


@pytest.mark.parametrize("name", ["os.system", "aten.from_file.default", "aten.no_such.default", "eval"])
def test_an_operator_that_is_not_torchs_arithmetic_is_rejected(name: str) -> None:
    graph = {"inputs": ["x"], "nodes": [["y", name, [{"value": "x"}], {}]], "outputs": ["y"]}
    with pytest.raises(ValueError, match=r"is not an operator of torch"):
        GraphNetwork(graph, {}, [])
    text = json.dumps({**graph, "parameters": []})
    with pytest.raises(ConfigError, match=r"key=file: its network cannot be built"):
        read_graph(safetensors.torch.save({"w": torch.zeros(1)}, {GRAPH_KEY: text}), "key=file")


def test_files_of_another_kind_are_clear_errors() -> None:
    with pytest.raises(ConfigError, match=r"key=file: not a safetensors file"):
        read_graph(b"nothing of the kind", "key=file")
    with pytest.raises(ConfigError, match=r"key=file: holds tensors without their network; .* mtgen weights convert"):
        read_graph(safetensors.torch.save({"w": torch.zeros(1)}), "key=file")


def pt2(edit: dict[str, str] | None = None, guards: list[str] | None = None, **more: bytes) -> bytes:
    """The program as a file of torch.export: text of its graph and its guards replaced, files replaced or added."""
    saved, out = io.BytesIO(), io.BytesIO()
    torch.export.save(PROGRAM, saved)
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(out, "w") as changed:
        root = archive.namelist()[0].split("/")[0]
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith(MODEL_FILE):
                for old, new in (edit or {}).items():
                    assert old in data.decode()
                    data = data.decode().replace(old, new).encode()
                if guards is not None:
                    data = json.dumps({**json.loads(data), "guards_code": guards}).encode()
            changed.writestr(name, more.pop(name.removeprefix(f"{root}/"), data))
        for name, data in more.items():
            changed.writestr(f"{root}/{name}", data)
    return out.getvalue()


def test_a_program_of_torch_export_is_read_without_its_pickles_and_code(tmp_path: Any) -> None:
    guards = [f"__import__('pathlib').Path({str(tmp_path / 'ran')!r}).touch()"]
    program = read_exported_program(pt2(guards=guards, **{PICKLED_INPUTS_FILE: b"cos\nsystem\n."}), "key=file")
    network, _ = read_graph(write_graph(program, {}), "here")
    image = torch.randn(1, 3, 32, 64)
    assert all(torch.equal(a, b) for a, b in zip(network(image), Pyramid().eval()(image), strict=True))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("edit", "more", "what"),
    [
        ({"torch.ops.aten.relu.default": "torch.serialization.os.system"}, {}, "a call of torch.serialization.os.syst"),
        ({"Symbol('s": "exec('s"}, {}, "the expression .*exec"),
        ({'"name": "relu"': '"name": "relu; import os"'}, {}, "the name relu; import os"),
        ({}, {"data/aotinductor/model/a.so": b"\x7fELF"}, "the file data/aotinductor/model/a.so"),
        ({}, {"data/weights/model_weights_config.json": b'{"config": {"w": {"path_name": "weight_0", '
              b'"use_pickle": true}}}'}, "w as a pickle"),
        ({}, {"data/constants/model_constants_config.json": b'{"config": {"o": {"path_name": "custom_obj_0", '
              b'"use_pickle": false}}}'}, "the object o"),
    ],
)  # fmt: skip
def test_a_program_that_could_run_code_is_rejected(edit: dict[str, str], more: dict[str, bytes], what: str) -> None:
    with pytest.raises(ConfigError, match=rf"key=file: holds {what}.* could run code, and is not loaded"):
        read_exported_program(pt2(edit, **more), "key=file")


def test_a_damaged_program_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"key=file: not a network of torch.export"):
        read_exported_program(b"PK nothing", "key=file")


def test_efficientnet_lite_has_levels_at_strides_4_to_32_of_a_rectangle() -> None:
    network = EfficientNetLite(lite_checkpoint())
    found = network(torch.randn(2, 3, 64, 96))
    assert [tuple(x.shape) for x in found] == [
        (2, 6, 16, 24), (2, 8, 8, 12), (2, 12, 4, 6), (2, 16, 2, 3)
    ]  # fmt: skip
