"""Third-party networks as data: a graph of torch's operators and its tensors, in one safetensors file.

Such a file cannot hold code, loads at once, and behaves like any other module: it can be trained, copied, compiled and
exported. `mtgen weights convert` writes it.
"""

import json
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mtgen.errors import ConfigError, last_line

GRAPH_KEY = "mtgen.graph"
"""Entry of the file's metadata with the graph, as JSON."""
GRAPH_VERSION = 1
"""Version of the graph's form."""
ATEN_OPERATOR = re.compile(r"aten\.(\w+)\.(\w+)")
"""The name of an operator of torch and of its overload."""
NOT_PURE = ("from_file", "set_data", "record_stream")
"""Operators of torch that do something else than compute."""
SIZE_OPERATORS: dict[str, Any] = {
    **{name: getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg")},
    "sym_max": max,
    "sym_min": min,
    "sym_int": int,
    "sym_float": float,
}
"""Operators on sizes, by name."""


class GraphNetwork(nn.Module):
    """A network that computes the nodes of a graph one after another.

    Args:
        graph: `{"inputs": [name], "nodes": [[name, operator, arguments, keyword arguments]], "outputs": [name]}`.
            An argument `{"value": name}` is an earlier node's value or a tensor of the file.
        tensors: parameters and buffers by name.
        parameters: names of the tensors that can be trained.

    Raises:
        ValueError: the graph has an operator that is not torch's.
    """

    def __init__(self, graph: Mapping[str, Any], tensors: Mapping[str, Tensor], parameters: Sequence[str]) -> None:
        super().__init__()
        self.inputs: list[str] = graph["inputs"]
        self.outputs: list[str] = graph["outputs"]
        self.nodes = [(name, _operator(op), args, kwargs) for name, op, args, kwargs in graph["nodes"]]
        last_uses = {name: number for number, node in enumerate(self.nodes) for name in _names(node[2:])}
        self.finished: dict[int, list[str]] = {}
        for name, number in last_uses.items():
            if name not in self.outputs:
                self.finished.setdefault(number, []).append(name)
        # in the same order on every worker, which the order of tensors in a file read into memory is not
        for name in [*parameters, *sorted(tensors.keys() - set(parameters))]:
            self._register(name, tensors[name], name in parameters)
        self.eval()

    def _register(self, name: str, tensor: Tensor, trainable: bool) -> None:
        """Register a tensor under its dotted name, in nested modules."""
        *parents, last = name.split(".")
        module: nn.Module = self
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        if trainable:
            module.register_parameter(last, nn.Parameter(tensor))
        else:
            module.register_buffer(last, tensor)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """The inputs in order -> the outputs in order."""
        values: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        values |= dict(self.named_parameters()) | dict(self.named_buffers())
        for number, (name, op, args, kwargs) in enumerate(self.nodes):
            device = inputs[0].device
            values[name] = op(*_resolve(args, values, device), **_resolve(kwargs, values, device))
            for done in self.finished.get(number, ()):
                del values[done]
        return [values[name] for name in self.outputs]


def _operator(name: str) -> Any:
    if name in SIZE_OPERATORS:
        return SIZE_OPERATORS[name]
    found = ATEN_OPERATOR.fullmatch(name)
    if found is None or found[1] in NOT_PURE or not hasattr(torch.ops.aten, found[1]):
        raise ValueError(f"{name[:100]} is not an operator of torch {torch.__version__}")
    return getattr(getattr(torch.ops.aten, found[1]), found[2])


def _names(value: Any) -> list[str]:
    """Names of the values that arguments refer to."""
    if isinstance(value, dict) and set(value) == {"value"}:
        return [value["value"]]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [name for one in inner for name in _names(one)]


def _resolve(value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    """Arguments with the values that they refer to."""
    if isinstance(value, list):
        return [_resolve(inner, values, device) for inner in value]
    if isinstance(value, dict):
        if set(value) == {"value"}:
            return values[value["value"]]
        if set(value) == {"torch"}:
            return getattr(torch, value["torch"])
        if set(value) == {"device"}:
            return device
        return {key: _resolve(inner, values, device) for key, inner in value.items()}
    return value


def _describe(value: Any) -> Any:
    """An argument of a traced graph in the file's form."""
    if isinstance(value, torch.fx.Node):
        return {"value": value.name}
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": 0}
    if isinstance(value, list | tuple):
        return [_describe(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _describe(inner) for key, inner in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"an argument of type {type(value).__name__}")


def write_graph(program: Any, about: Mapping[str, str]) -> bytes:
    """Write a program that `torch.export.export` returned.

    Args:
        program: an `ExportedProgram` of one or more inputs, whose outputs are tensors.
        about: texts that go with it, by name.

    Raises:
        ValueError: it has something else than torch's operators and tensors.
    """
    signature = program.graph_signature
    tensor_of = signature.inputs_to_parameters | signature.inputs_to_buffers
    tensor_of |= signature.inputs_to_lifted_tensor_constants
    names = {node.name: tensor_of.get(node.name, node.name) for node in program.graph.nodes}
    inputs, nodes, outputs = [], [], []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            inputs += [] if node.name in tensor_of else [node.name]
        elif node.op == "call_function":
            nodes.append([node.name, _operator_name(node.target), _describe(node.args), _describe(node.kwargs)])
        elif node.op == "output":
            outputs = [one.name for one in node.args[0]]
        else:
            raise ValueError(f"a node {node.op}")
    graph = {"inputs": inputs, "nodes": _renamed(nodes, names), "outputs": outputs}
    found = {**program.state_dict, **{name: t for name, t in program.constants.items() if isinstance(t, Tensor)}}
    used = set(tensor_of.values())
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in found.items() if name in used}
    parameters = [name for name in signature.inputs_to_parameters.values() if name in used]
    GraphNetwork(graph, tensors, parameters)  # which checks the operators
    text = json.dumps({"version": GRAPH_VERSION, **graph, "parameters": parameters})
    return safetensors.torch.save(tensors, {**about, GRAPH_KEY: text})


def _operator_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return target.__name__


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Nodes whose references to tensors of the file have the tensors' own names."""
    if isinstance(value, list):
        return [_renamed(inner, names) for inner in value]
    if isinstance(value, dict) and set(value) == {"value"}:
        return {"value": names[value["value"]]}
    return {key: _renamed(inner, names) for key, inner in value.items()} if isinstance(value, dict) else value


def read_graph(content: bytes, named: str) -> tuple[GraphNetwork, dict[str, str]]:
    """Load a network on the CPU from the content of a file that `write_graph` wrote.

    Args:
        named: how the user named the file, as `key=path`; for messages.

    Returns:
        The network, and the texts that go with it.

    Raises:
        ConfigError: it is not such a file.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        tensors = safetensors.torch.load(content)
    except (ValueError, UnicodeDecodeError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{named}: not a safetensors file ({last_line(error)[:200]}); give a whole one") from None
    if GRAPH_KEY not in about:
        raise ConfigError(
            f"{named}: holds tensors without their network; write both into one file with mtgen weights convert"
        )
    try:
        graph = json.loads(about.pop(GRAPH_KEY))
        return GraphNetwork(graph, tensors, graph["parameters"]), about
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{named}: its network cannot be built ({last_line(error)[:200]}); convert it again with this version"
        ) from None
