"""Captions encoded by a frozen text encoder from a file, which is copied with the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy
from helpers.made_models import made, saved
from torch import Tensor, nn

import mtgen
from mtgen.conditions.caption import Caption
from mtgen.config import Config, validate
from mtgen.errors import ConfigError, DataError
from mtgen.export import export
from mtgen.models.model import Model, build
from mtgen.training.dataset import order_facts


class Local:
    """A small local data set."""

    remote, whole = False, 1

    def __len__(self) -> int:
        return 1


LOCAL: Any = Local()


class Pretrained(nn.Module):
    """Each token's vector plus the mean of all tokens' vectors, so that tokens depend on each other."""

    def __init__(self, width: int = 5, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(300, width)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        x = self.table(tokens) * present.unsqueeze(2)
        return x + x.sum(1, keepdim=True) / present.sum(1)[:, None, None].clamp(min=1)


def file_of(path: Path, network: nn.Module) -> str:
    torch.jit.script(network).save(str(path))
    return str(path)


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    return file_of(tmp_path / "encoder.pt", Pretrained())


def with_encoder(encoder: str) -> Config:
    values = toy.everything().model_dump(mode="json")
    values["conditions"]["caption"]["encoder"] = encoder
    return validate(values)


def test_captions_are_encoded_by_the_file_and_nothing_of_it_is_a_parameter(encoder: str) -> None:
    module = build(with_encoder(encoder), toy.CARD).side
    caption = module.conditions.modality("caption")
    assert isinstance(caption, Caption) and caption.frozen is not None
    assert caption.table.weight.shape == (module.conditions.size, 5)
    assert not [name for name, tensor in module.state_dict().items() if tensor.shape[:1] == (300,)]
    tokens = torch.zeros(2, caption.settings.tokens, dtype=torch.int64)
    tokens[0, :3], tokens[1, :2] = torch.tensor([1, 2, 3]), torch.tensor([3, 2])
    present = tokens != 0
    expected = Pretrained()((tokens - 1).clamp(min=0), present)
    assert torch.equal(caption.frozen((tokens - 1).clamp(min=0), present), expected)
    whole, pooled = caption.sequence_encoder(caption.table(expected), present)
    found = caption.encode(tokens)
    assert found.tokens is not None
    assert torch.equal(found.tokens, whole) and torch.equal(found.pooled, pooled)


def test_steps_train_the_layers_around_it_and_leave_it_unchanged(encoder: str) -> None:
    config = with_encoder(encoder)
    networks, d_step, _ = toy.steps(config)
    caption = networks.side.conditions.modality("caption")
    assert isinstance(caption, Caption) and caption.frozen is not None
    before = {name: tensor.clone() for name, tensor in caption.frozen.network.state_dict().items()}
    d_step(toy.batch(0, 16), (networks.generator,))[0].backward()
    assert caption.table.weight.grad is not None and bool(caption.table.weight.grad.any())
    assert all(torch.equal(tensor, before[name]) for name, tensor in caption.frozen.network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in caption.frozen.network.parameters())


def test_it_is_copied_with_the_model(tmp_path: Path, encoder: str) -> None:
    plain = made(conditions=("caption",))
    values = plain.config.model_dump(mode="json")
    values["conditions"]["caption"]["encoder"] = encoder
    config = validate(values)
    run = saved(Model(build(config, plain.card), config, plain.card), tmp_path / "run")
    export(run, tmp_path / "model")
    before = mtgen.load(run, "cpu").sample(1, caption="cat")
    Path(encoder).unlink()
    assert (
        mtgen.load(tmp_path / "model", "cpu").sample(1, caption="cat").images[0].tobytes() == before.images[0].tobytes()
    )
    with pytest.raises(ConfigError, match="cannot be exported to ONNX"):
        export(tmp_path / "model", tmp_path / "graphs", onnx=True)
    assert not (tmp_path / "graphs").exists()


def test_a_resumed_run_identifies_it_by_its_content(tmp_path: Path, encoder: str) -> None:
    key = "conditions.caption.encoder"
    moved, other = tmp_path / "moved.pt", file_of(tmp_path / "other.pt", Pretrained(seed=4))
    moved.write_bytes(Path(encoder).read_bytes())
    digests = [order_facts(with_encoder(path), LOCAL)[key] for path in (encoder, str(moved), other)]
    assert digests[0] == digests[1] != digests[2]
    assert order_facts(toy.everything(), LOCAL)[key] is None


class OneVector(nn.Module):
    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        return tokens.float().mean(1, keepdim=True)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image)


def test_a_file_that_is_not_a_text_encoder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ConfigError, match=r"conditions.caption.encoder=.*text.pt: not a TorchScript file"):
        build(with_encoder(str(tmp_path / "text.pt")), toy.CARD)
    with pytest.raises(DataError, match=r"absent.pt: the file does not exist \(conditions.caption.encoder\)"):
        build(with_encoder(str(tmp_path / "absent.pt")), toy.CARD)
    with pytest.raises(ConfigError, match=r"conditions.caption.encoder=.*: returns \[2, 1\] .* shape \[2, 4, D\]"):
        build(with_encoder(file_of(tmp_path / "one.pt", OneVector())), toy.CARD)
    with pytest.raises(ConfigError, match=r"conditions.caption.encoder=.*: fails on tokens \[B,T\] int64"):
        build(with_encoder(file_of(tmp_path / "images.pt", Images())), toy.CARD)
