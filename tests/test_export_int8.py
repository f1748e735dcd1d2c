"""Training for int8 sees what the exported file computes, and leaves an ordinary model."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from lightning.fabric import Fabric
from PIL import Image
from test_engine_distributed import launch
from test_engine_normalising import case, cut, data
from test_engine_training import digest, run, stop_at
from test_export_formats import scenes
from tests_support import calibrated, on_two_processes, one_line
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import TensorWeakRef

from effbackbones import Model, UserError, build_model, list_heads, load_model
from effbackbones.backbones.convolution import fold_into
from effbackbones.export import export_model, exporting
from effbackbones.export.following import follow
from effbackbones.export.quantisation import points, quantise, quantised_nodes
from effbackbones.export.rounding import Rounding, fake_weights
from effbackbones.export.simulation import SLOWEST, Int8Simulation, learnt_ranges
from effbackbones.inference.predictor import BEST
from effbackbones.registry import HEADS, TASKS
from tasks.engine.optimizers import SGD
from tasks.engine.order import Share
from tasks.engine.state import RunState, begin
from tasks.engine.stepping import LateReader, Stepper, Supervised
from tasks.settings.sections import Config, OptimConfig, RunConfig

QUICK = ("classification", "efficientdet")
NARROW = {"width": 0.25, "depth": 0.3, "drop_path": 0.0}
NO = torch.zeros(())


def narrow(backbone: str = "lite0", task: str = "cls", **more: Any) -> Model:
    torch.manual_seed(0)
    return build_model(task, backbone, num_classes=3, backbone_options=NARROW, **more)


def stepped(model: Model, pieces: Any, share: Share | None = None, fabric: Fabric | None = None) -> RunState:
    """The state after a step in int8."""
    state = RunState(
        model, SGD(model.parameters(), lr=1e-3, fused=True), None, None, share or Share(accumulate=len(pieces))
    )
    state.simulation = Int8Simulation(model)
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    objective = Supervised(TASKS.get(model.head.task), Config())
    stepper = Stepper(fabric, state, objective, LateReader(), lambda: 0, lambda step: 1.0, None, 0)
    stepper.take(pieces)
    log = stepper.figures.flush()
    assert log
    assert not log.nonfinite
    assert all(np.isfinite(value) for value in log.losses.values())
    return state


@pytest.mark.parametrize(
    "head", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in list_heads()]
)
def test_every_head_takes_a_step_in_int8(head: str) -> None:
    built = case(head, {}, 3)
    model = built.model().train()
    names = set(model.state_dict())
    plain, batch = copy.deepcopy(model), data(built)
    reached: set[str] = set()
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda grad, name=name: reached.add(name) if grad.isfinite().all() else None)
    state = stepped(model, cut(batch, 2))
    assert state.simulation
    losses = plain.loss(batch.images, batch.targets, batch.sizes)
    sum(losses.values(), torch.zeros(())).backward()
    assert reached == {name for name, p in plain.named_parameters() if p.grad is not None}
    assert state.simulation.seen.max() == 1
    assert (state.simulation.low <= state.simulation.high).all()
    assert set(model.state_dict()) == names, "an ordinary model"
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(1e-3, 1e3))
def test_rounding_weights_and_folding_a_batch_norm_into_them_may_be_swapped(seed: int, out: int, size: float) -> None:
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(3, out, 3, bias=False), nn.BatchNorm2d(out).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    nn.init.normal_(norm.weight, std=size)
    norm.running_var.uniform_(0.1, 3.0)
    first, later = copy.deepcopy(conv), copy.deepcopy(conv)
    with torch.no_grad():
        first.weight.copy_(fake_weights(first.weight))
        fold_into(first, norm)
        fold_into(later, norm)
        step = later.weight.abs().amax((1, 2, 3), keepdim=True) / 127
        apart = (first.weight - fake_weights(later.weight)).abs() / step
    # But for what lies in the middle between two steps, which the last digit decides.
    assert apart.max() < 1.01
    assert (apart > 0.01).float().mean() < 0.05


def test_maps_are_rounded_to_256_steps_and_gradients_end_where_they_are_cut_off() -> None:
    simulation = Int8Simulation(narrow())
    simulation.low[0], simulation.high[0], simulation.seen[0] = -1.0, 3.0, 5.0
    x = torch.tensor([[-2.0, -1.0, -0.3, 0.0, 1.2345, 3.0, 9.0]], requires_grad=True)
    out = simulation.fake(x, 0, observe=True)
    step = 4 / 255
    zero = round(1 / step)
    expected = [(min(max(round(v / step) + zero, 0), 255) - zero) * step for v in x[0].tolist()]
    assert out[0].tolist() == pytest.approx(expected, abs=1e-6)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad[0, [0, -1]].tolist() == [0.0, 0.0]
    assert x.grad[0, 2:5].tolist() == [1.0, 1.0, 1.0]
    simulation.drop()
    simulation.settle(NO)
    assert simulation.low[0] == -1, "a step that was left in its midst leaves nothing"
    simulation.fake(x, 0, observe=True)
    simulation.settle(torch.ones(()))
    assert simulation.low[0] == -1, "nor does one that is skipped"
    simulation.fake(x * torch.inf, 0, observe=True)
    simulation.settle(NO)
    assert simulation.high[0] == 3, "nor what is not finite"
    simulation.seen[0] = 1e6
    simulation.fake(x, 0, observe=True)
    simulation.settle(NO)
    assert float(simulation.high[0]) == pytest.approx(3 + SLOWEST * 6)


def test_pieces_of_a_batch_observe_what_the_whole_one_does() -> None:
    built = case("classification", {}, 3)
    whole, parts = (stepped(built.model().train(), cut(data(built), count)).simulation for count in (1, 4))
    assert whole
    assert parts
    assert torch.equal(whole.seen, parts.seen)
    # The first layer sees images, the later ones what its rounding left.
    torch.testing.assert_close(parts.low[0], whole.low[0])
    torch.testing.assert_close(parts.high[0], whole.high[0])


def test_batch_norms_with_statistics_keep_them_and_others_learn() -> None:
    model = narrow().train()
    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d)]
    for norm in norms[1:]:
        assert norm.running_mean is not None
        norm.running_mean.fill_(0.1)
    before = [copy.deepcopy(norm.running_mean) for norm in norms]
    with Int8Simulation(model).applied(observe=True):
        model(torch.rand(2, 3, 64, 64))
    moved = [not torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True)]  # type: ignore[arg-type]
    assert moved == [True, *[False] * (len(norms) - 1)]


def test_what_cannot_be_trained_in_int8_is_one_line() -> None:
    with pytest.raises(UserError) as error:
        OptimConfig(quantise="int4")  # type: ignore[arg-type]
    one_line(error, "optim.quantise", "int4", "int8")
    int8 = replace(Config(), optim=OptimConfig(quantise="int8"))
    with pytest.raises(UserError) as error:
        begin(replace(int8, run=RunConfig(compile=True)), narrow())
    one_line(error, "optim.quantise: does not go with run.compile")
    model = narrow()
    model.backbone.checkpointing = True  # type: ignore[assignment]
    with pytest.raises(UserError) as error:
        begin(int8, model)
    one_line(error, "optim.quantise: does not go with model.backbone_options.checkpointing")
    for parameter in (model := narrow()).parameters():
        parameter.requires_grad_(False)
    model.forward = lambda images, sizes=None, normalized=False: images.mean((2, 3))  # type: ignore[method-assign]
    with pytest.raises(UserError) as error:
        begin(int8, model)
    one_line(error, "optim.quantise", "has no layer that an export computes in int8", "set it to null")


def test_ranges_are_part_of_the_state_of_a_run() -> None:
    built = case("classification", {}, 3)
    state = stepped(built.model().train(), [data(built)])
    kept = {name: value.clone() for name, value in state.tensors().items() if name.startswith("quantise.")}
    assert sorted(kept) == ["quantise.high", "quantise.low", "quantise.seen"]
    assert state.simulation
    other = Int8Simulation(state.model)
    other.load_state_dict({name.partition(".")[2]: value for name, value in kept.items()})
    images = torch.rand(2, 3, 64, 64)
    state.model.eval()
    answers = []
    for simulation in (state.simulation, other):
        with simulation.applied():
            answers.append(state.model(images))
    assert torch.equal(*answers)
    assert not torch.equal(answers[0], state.model(images))


def test_a_map_is_rounded_for_all_that_read_it_whatever_had_its_identity_before() -> None:
    """One that a layer takes with zeros around it. Memory of maps that are gone is used again: what a step computed was left to chance."""
    weight, x, other = torch.randn(4, 4, 3, 3), torch.randn(1, 4, 8, 8), torch.randn(2)
    mode = Rounding({id(weight): [0]}, lambda value, point: value.round(), set())
    mode._rounded[id(x)] = (TensorWeakRef(other), None, 6)
    with mode:
        F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, stride=2)
        read = x + 0
    assert torch.equal(read, x.round())


def _ranges_of(rank: int) -> list[float]:
    """After a step on images of this process's own."""
    model = narrow()
    state = RunState(model, SGD(model.parameters(), lr=0.1), None, None, Share(rank, 2))
    state.simulation = Int8Simulation(model)
    with state.rounded(observe=True):
        model.train()((1 + rank) * torch.rand(2, 3, 64, 64) / 2)
    state.simulation.settle(NO)
    own = state.simulation.high[0].item()
    state.agree()
    return [own, *state.simulation.high.tolist()]


@pytest.mark.slow
def test_processes_save_the_ranges_of_the_first(tmp_path: Path) -> None:
    first, second = on_two_processes(_ranges_of, tmp_path)
    assert first[0] != second[0]
    assert first[1:] == second[1:]
    assert first[0] == first[1]


@pytest.mark.slow
def test_a_run_in_int8_continues_bit_for_bit_and_leaves_an_ordinary_model(tmp_path: Path, capsys: Any) -> None:
    int8 = ["--optim.quantise", "int8", "--optim.accumulate", "2", "--model.backbone", "lite0"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, *int8) == 0
    told = capsys.readouterr()
    assert "int8 is simulated in" in told.out + told.err
    assert "scores of the float32 weights" in told.out + told.err
    stop_at(3, stopped, *int8)
    assert run(stopped, *int8) == 0
    assert digest(stopped) == digest(whole)
    assert not [name for name in load_model(whole / BEST).state_dict() if "quantise" in name or "fake" in name]


@pytest.mark.slow
def test_two_processes_train_in_int8(tmp_path: Path) -> None:
    done = launch(tmp_path, "--optim.quantise", "int8")
    assert done.returncode == 0, done.stderr


def made(backbone: str, head: str) -> Model:
    task = HEADS.get(head).task
    torch.manual_seed(0)
    model = build_model(task, backbone, head=head, num_classes=3, backbone_options=NARROW).eval()
    size = (128, 128) if task == "det" else (64, 96)
    model.use_image_spec(replace(model.image_spec, size=size))
    made: Model = calibrated(model, scenes(2))
    return made


def named(graph: Any) -> Any:
    """The graph with a name for each node, as it has in :func:`effbackbones.export.quantisation.quantise`."""
    for number, node in enumerate(graph.node):
        node.name = node.name or f"node_{number}"
    return graph


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        pytest.param(backbone, head, marks=[pytest.mark.slow] * ((backbone, head) != ("lite0", "classification")))
        for head in list_heads()
        for backbone in ("lite0", "b0")
    ],
)
def test_each_layer_of_the_file_gives_what_the_simulation_gives(
    head: str, backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked layer by layer, from what the file itself has in front of each: a difference in one place is not blown up by those behind."""
    onnx, runtimes = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model, images = made(backbone, head), scenes(2)
    size = model.image_spec.size
    shown = [np.asarray(Image.fromarray(one).resize(size[::-1])) for one in images]
    fitted = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).contiguous()
    simulation = Int8Simulation(model)
    for _ in range(2):
        with torch.no_grad(), simulation.applied(observe=True):
            model(fitted)
        simulation.settle(NO)
    model.provenance["quantise"], whole = simulation.learnt(), []

    def seen_before(path: Path, **more: Any) -> None:
        whole.append(onnx.load(str(path)).graph)
        quantise(path, **more)

    monkeypatch.setattr(exporting, "quantise", seen_before)
    options: Any = {"images": None, "postprocessing": "none", "dynamic_size": False, "calibration": shown[:1]}
    export_model(model, tmp_path / "small.onnx", precision="int8", **options)
    graph = named(whole[0])
    layers, called, shapes = quantised_nodes(graph), follow(model), {one.name: one.dims for one in graph.initializer}
    weights = dict(model.named_parameters())
    assert layers.gives_float == called.gives_float
    chosen = [weights[name].shape for name, int8 in zip(called.weights, called.int8, strict=True) if int8]
    nodes = [node for node in graph.node if node.name in layers.weighted]
    turned = [node.op_type == "MatMul" for node in nodes]
    assert [list(shapes[node.input[1]])[:: -1 if turn else 1] for node, turn in zip(nodes, turned, strict=True)] == [
        list(shape) for shape in chosen
    ], "the same layers in the same order"

    file = onnx.load(str(tmp_path / "small.onnx"))
    there = {name for node in file.graph.node for name in node.output}
    values = [[f"{name}_DequantizeLinear_Output" for name in place] for place in points(graph, layers)]
    wanted = [next((name for name in reversed(place) if name in there), None) for place in values]
    asked = sorted({name for name in wanted if name} - {one.name for one in file.graph.output})
    file.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in asked)
    session = runtimes.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"images": fitted.numpy(), "valid": np.array([size] * 2)}
    given = session.run(asked, {port.name: feed[port.name] for port in session.get_inputs()})
    known = {name: torch.from_numpy(value) for name, value in zip(asked, given, strict=True)}

    fake, seen = simulation.fake, set()

    def forced(x: Tensor, point: int, observe: bool) -> Tensor:
        out, theirs = fake(x, point, observe), known[wanted[point] or ""]
        if out.ndim == 4:  # the file may have SAME padding within the layer
            high, wide = (side - other for side, other in zip(out.shape[2:], theirs.shape[2:], strict=True))
            theirs = nn.functional.pad(theirs, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        step = (simulation.high[point].clamp(min=0) - simulation.low[point].clamp(max=0)) / 255
        apart = (out - theirs).abs() / torch.where(step > 0, step, 1.0)
        seen.add(point)
        assert apart.max() < 1.01, f"point {point} of {called.weights}"
        few = max(2.0, 0.01 * apart.numel())
        assert (apart > 0.01).sum() <= few or point == 0, "images may lie in the middle between two steps"
        return theirs.clone()

    simulation.fake = forced  # type: ignore[method-assign]
    with torch.no_grad(), simulation.applied():
        model(fitted)
    assert len(seen) > 0.6 * sum(called.int8)


def test_ranges_that_were_learnt_hold_for_their_weights_alone() -> None:
    model = narrow()
    assert learnt_ranges(model) is None
    simulation = Int8Simulation(model)
    with simulation.applied(observe=True):
        model.eval()(torch.rand(1, 3, 64, 64))
    simulation.settle(NO)
    model.provenance["quantise"] = simulation.learnt()
    ranges = learnt_ranges(model)
    assert ranges
    assert len(ranges) == 2 * simulation.count
    assert ranges[0] == (min(0.0, simulation.low[0].item()), max(0.0, simulation.high[0].item()))
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert learnt_ranges(model) is None, "trained on since, or cut"
