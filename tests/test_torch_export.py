"""Models that leave eager mode, exported, in ONNX, traced or quantized, beside the values of torch's layers."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.export import Dim

import normwright.torch as nw
from beside_torch import UNIT, agree, normal, raised_by, same_bits, twins
from every_kernel import run_python
from torch_networks import BOUND, F64, MADE, Torchs, network, networks, ours_alone, outcome, same

F32 = torch.float32
# torch warns of its own code, within run_decompositions, for any model
TORCHS_OWN = pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
WITHIN = 1000 * UNIT[F32]  # float32 roundings, which a few layers may enlarge; times the largest value


def near(what, got, want, bound=WITHIN):
    agree(what, got, want, bound * max(1, want.detach().abs().max().item()))


def last(layer):
    """A layer of ours with its channels on the last axis, its numbers from `layer`."""
    ours = type(layer)(layer.num_features, channel_dim=-1, dtype=layer.weight.dtype)
    ours.load_state_dict(layer.state_dict())
    return ours


def torchs(model):
    """The same model in evaluation, a norm of torch's at the end."""
    if isinstance(model, nn.Sequential):
        return nn.Sequential(*model[:-1], Torchs(model[-1])).eval()
    return Torchs(model).eval()


X = normal(6, 5, 4, 3)
ALONE = {  # name: an evaluating layer of ours, its input
    "default": lambda: (twins(X)[0].eval(), X),
    "not affine": lambda: (twins(X, affine=False)[0].eval(), X),
    "without bias": lambda: (twins(X, bias=False)[0].eval(), X),
    "frozen, in training": lambda: (nw.freeze(twins(X)[0]).train(), X),
    "channels last": lambda: (last(twins(X)[0]).eval(), X.movedim(1, -1).contiguous()),
    "(N, L, C)": lambda: (last(twins(X[..., 0])[0]).eval(), X[..., 0].transpose(1, 2).contiguous()),
}

# --- torch.export --------------------------------------------------------


def operations(graph_module):
    """The operations in a graph by name; moving axes about is no arithmetic."""
    targets = [node.target for node in graph_module.graph.nodes if node.op == "call_function"]
    names = [t.name() if isinstance(t, torch._ops.OpOverload) else t.__name__ for t in targets]
    return [name for name in names if name.split(".")[0] not in MOVES]


MOVES = {
    f"aten::{name}" for name in ("movedim", "permute", "transpose", "reshape", "view", "flatten", "sym_size")
}


@pytest.mark.parametrize("name", ALONE)
def test_an_exported_layer_is_torchs_one_operation_for_any_batch(name):
    layer, x = ALONE[name]()
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: Dim("batch")},))
    assert operations(program.graph_module) == ["aten::batch_norm"]
    for size in (1, 2, 6, 9):
        batch = normal(size, *x.shape[1:], seed=size)
        near("y", program.module()(batch), torchs(layer)(batch))


@MADE
@TORCHS_OWN
def test_an_exported_network_holds_torchs_operations_alone(made):
    ours, theirs = (model.float() for model in networks(made))
    x, batch = normal(4, 3, 6, 6), normal(2, 3, 6, 6)
    programs = [torch.export.export(m.eval(), (x,), dynamic_shapes=({0: Dim("n")},)) for m in (ours, theirs)]
    names = [operations(program.graph_module) for program in programs]
    assert names[0] == names[1]
    assert names[0].count("aten::batch_norm") == 2
    core = [operations(program.run_decompositions().graph_module) for program in programs]
    assert core[0] == core[1]
    got, want = (program.module()(batch) for program in programs)
    same_bits("y", got, want)
    near("y", got, theirs(batch))


LOADED = """
import sys, torch
program = torch.export.load({path!r})
assert "normwright" not in sys.modules
torch.save(program.module()(torch.load({path!r} + ".x")), {path!r} + ".y")
"""


def test_an_exported_model_needs_this_library_no_more(tmp_path):
    layer, x = ALONE["default"]()
    path = str(tmp_path / "model.pt2")
    torch.export.save(torch.export.export(layer, (x,)), path)
    torch.save(x, path + ".x")
    run_python(LOADED.format(path=path))
    near("y", torch.load(path + ".y"), torchs(layer)(x))


# --- ONNX ----------------------------------------------------------------------

EXPORTERS = {  # name: options, whether it folds a norm into the layer before
    "new": ({"dynamo": True}, True),
    "new, not optimized": ({"dynamo": True, "optimize": False}, False),
    "old": ({"dynamo": False}, True),
    "old, not folded": (
        {"dynamo": False, "do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE},
        False,
    ),
}


def in_onnx(model, x, path, options):
    """The operations of the exported file, and a function that onnxruntime computes from it."""
    model.eval()
    if options["dynamo"]:
        options = {**options, "dynamic_shapes": ({0: Dim("batch")},), "verbose": False}
    else:
        options = {**options, "input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(model, (x,), path, **options)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    found = [node.op_type for node in onnx.load(path).graph.node]
    return found, lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def linear(norm, *shape):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(shape[-1], 5), norm), normal(*shape)


MODELS = {  # name: a model of one norm, its input, whether its norm is folded: None where it depends on versions
    **{name: (make, False) for name, make in ALONE.items() if "training" not in name},
    "convolution": (lambda: (nw.convert(network(dtype=F32))[:2], normal(4, 3, 6, 6)), True),
    "linear": (lambda: linear(nw.convert(twins(X[:, :, 0, 0])[1]), 6, 4), None),
    "linear on (N, L, C)": (lambda: linear(last(twins(X[..., 0])[0]), 6, 3, 4), None),
}


@TORCHS_OWN
# the old exporter tells of its own end, and of that of the tracer within
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_what_the_model_does(name, exporter, tmp_path):
    (make, folds), (options, folding) = MODELS[name], EXPORTERS[exporter]
    model, x = make()
    found, computed = in_onnx(model, x, str(tmp_path / "model.onnx"), options)
    if folds is not None or not folding:
        assert found.count("BatchNormalization") == (0 if folds and folding else 1)
    for size in (1, 6):
        batch = normal(size, *x.shape[1:], seed=size)
        near("y", computed(batch), torchs(model)(batch))


# --- torch.fx, quantization ----------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_norms_are_leaves_of_a_symbolic_trace(training):
    traced = torch.fx.symbolic_trace(nw.convert(network()).train(training))
    leaves = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert leaves == ["0", "1", "2.0", "2.1", "2.2"]
    ours_alone(traced)
    same(outcome(traced), outcome(network().train(training)))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # that module is written in TorchScript
def test_fx_fuses_a_reverted_model_and_leaves_ours_as_it_is():
    from torch.fx.experimental import optimization

    model, x = nw.convert(network()).eval(), normal(4, 3, 6, 6, dtype=F64)
    want = network().eval()(x)
    left = optimization.fuse(model)  # asks for torch's very class
    ours_alone(left)
    near("y", left(x), want, BOUND)
    fused = optimization.fuse(nw.revert(model))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    near("y", fused(x), want, BOUND)


class Quantized(nn.Module):
    """A network between the gates of eager quantization."""

    def __init__(self, inner):
        super().__init__()
        self.quant, self.inner, self.dequant = quantization.QuantStub(), inner, quantization.DeQuantStub()
        self.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)

    def forward(self, x):
        return self.dequant(self.inner(self.quant(x)))


PAIRS = [["0", "1"], ["2.1", "2.2"]]


@pytest.mark.skipif(torch.backends.quantized.engine == "none", reason="this torch has no quantized kernels")
# torch tells that this is moving to torchao, and warns of an option of its own default
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning")
def test_eager_quantization_takes_a_reverted_model_as_torchs():
    x, results = normal(4, 3, 6, 6), []
    ours = nw.convert(network(dtype=F32)).eval()
    error = raised_by(lambda: quantization.fuse_modules(ours, PAIRS))  # it asks for torch's very classes
    assert isinstance(error, AssertionError)
    assert "did not find fuser method" in str(error)
    assert "normwright.torch.modules.BatchNorm2d" in str(error)
    for model in (nw.revert(ours), network(dtype=F32).eval()):
        fused = quantization.fuse_modules(model, PAIRS)
        assert isinstance(fused[1], nn.Identity)
        prepared = quantization.prepare(Quantized(fused))
        prepared(x)
        results.append(quantization.convert(prepared)(x))
    same_bits("y", *results)
    # 7 bits (reduce_range) of values within 4, rounded in two layers after an input of 7 bits
    near("y", results[0], network(dtype=F32).eval()(x), 4 * 2.0**-7)
