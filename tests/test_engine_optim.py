"""Optimisers, skipped steps, schedules, moving averages."""

import math
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from tasks.engine.ema import BufferGuard, Ema
from tasks.engine.muon import Muon, is_matrix, orthogonal
from tasks.engine.optim import build_optimizer, clip_grad_norm, found_inf, lr_factor
from tasks.engine.optimizers import SGD, AdamW, RMSpropTF
from tasks.settings.sections import OptimConfig

NAMES = ("sgd", "adamw", "rmsprop_tf", "muon")
BAD = torch.ones(())
GOOD = torch.zeros(())


def parameters(seed: int = 0) -> list[nn.Parameter]:
    """Parameters of some shapes: the third in channels-last layout, the fourth never with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in ((4, 3), (7,), (6, 5, 3, 3), (2,))]
    tensors[2] = tensors[2].contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(tensor) for tensor in tensors]


def set_gradients(params: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    """Random gradients, all of them contiguous."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in params[:3]:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def built(name: Any, params: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    groups = [
        {"params": params[:2], "lr": 0.1, "weight_decay": 0.02, "lr_scale": 1.0, "name": "a"},
        {"params": params[2:], "lr": 0.05, "weight_decay": 0.0, "lr_scale": 0.5, "name": "b"},
    ]
    optimizer = build_optimizer(OptimConfig(name=name, **options), groups)
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    return optimizer


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def snapshot(params: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> list[tuple[Any, ...]]:
    """All bits of parameters and optimiser state."""
    state = optimizer.state_dict()["state"]
    return [(bits(p),) for p in params] + [
        (i, name, bits(value)) for i, values in state.items() for name, value in values.items()
    ]


# Skipped steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_gradient_changes_nothing(name: str, value: float) -> None:
    params = parameters()
    optimizer = built(name, params)
    for step in range(3):
        set_gradients(params, step)
        optimizer.found_inf = found_inf(params, torch.tensor(1.0))  # type: ignore[attr-defined]
        optimizer.step()
    before = snapshot(params, optimizer)
    set_gradients(params, 9)
    assert params[1].grad is not None
    params[1].grad[3] = value
    flag = found_inf(params, torch.tensor(1.0))
    assert flag.item() == 1
    optimizer.found_inf = flag  # type: ignore[attr-defined]
    optimizer.step()
    assert snapshot(params, optimizer) == before
    set_gradients(params, 10)
    optimizer.found_inf = found_inf(params, torch.tensor(1.0))  # type: ignore[attr-defined]
    optimizer.step()
    assert snapshot(params, optimizer) != before


@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_step_is_as_if_it_had_not_been(name: str) -> None:
    # Also the very first one: fused SGD would go on with momentum buffers that nobody has filled.
    runs = []
    for skipped in ((), (0, 1, 4)):
        params = parameters()
        optimizer = built(name, params)
        done = 0
        for step in range(7 if skipped else 4):
            bad = step in skipped
            set_gradients(params, 100 + step if bad else done, float("nan") if bad else 1.0)
            optimizer.found_inf = found_inf(params, torch.tensor(0.0))  # type: ignore[attr-defined]
            optimizer.step()
            done += not bad
        runs.append(snapshot(params, optimizer))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_flag_0_and_no_flag_are_the_same(name: str) -> None:
    runs = []
    for flag in (None, GOOD):
        params = parameters()
        optimizer = built(name, params)
        for step in range(5):
            set_gradients(params, step)
            if flag is not None:
                optimizer.found_inf = flag  # type: ignore[attr-defined]
            optimizer.step()
        runs.append(snapshot(params, optimizer))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_thaw_later(name: str) -> None:
    params = parameters()
    optimizer = built(name, params)
    params[0].requires_grad_(False)
    for step in range(4):
        set_gradients(params, step)
        if step < 2:
            params[0].grad = None
        elif step == 2:
            params[0].requires_grad_(True)
        optimizer.found_inf = GOOD  # type: ignore[attr-defined]
        optimizer.step()
        assert torch.equal(params[0], parameters()[0]) == (step < 2)
    assert all(torch.isfinite(p).all() for p in params)


@pytest.mark.parametrize("name", NAMES)
def test_state_restores_bit_for_bit(name: str) -> None:
    params = parameters()
    optimizer = built(name, params)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    copy = built(name, copies)
    state = deepcopy(optimizer.state_dict())
    for values in state["state"].values():  # as they come out of a file
        values.update({key: value.contiguous() for key, value in values.items() if value is not None})
    copy.load_state_dict(state)
    for ours, its in ((params, optimizer), (copies, copy)):
        set_gradients(ours, 7)
        its.step()
    assert snapshot(params, optimizer) == snapshot(copies, copy)


def test_groups_keep_their_own_keys_and_rates() -> None:
    for name in NAMES:
        groups = built(name, parameters()).param_groups
        assert [(g["lr"], g["weight_decay"], g["lr_scale"], g["name"]) for g in groups] == [
            (0.1, 0.02, 1.0, "a"),
            (0.05, 0.0, 0.5, "b"),
        ]
    assert built("adamw", parameters(), betas=(0.6, 0.95), eps=1e-6).defaults["betas"] == (0.6, 0.95)
    assert built("adamw", parameters()).defaults["eps"] == 1e-8
    assert built("rmsprop_tf", parameters()).defaults["eps"] == 1e-3
    assert built("rmsprop_tf", parameters(), eps=0.01, alpha=0.8, momentum=0.5).defaults["alpha"] == 0.8
    assert built("sgd", parameters(), momentum=0.8, nesterov=True).defaults["nesterov"] is True
    muon = built("muon", parameters(), momentum=0.8, nesterov=True, betas=(0.6, 0.95))
    assert isinstance(muon, Muon)
    for group in (muon.defaults, *muon.param_groups, *deepcopy(muon).param_groups):
        assert (group["momentum"], group["nesterov"], group["betas"]) == (0.8, True, (0.6, 0.95))


@pytest.mark.peer
def test_muon_steps_as_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which has AdamW for the same parameters, and would compute in bfloat16."""
    timms_module = pytest.importorskip("timm.optim.muon")
    exact = partial(timms_module.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(timms_module, "zeropower_via_newtonschulz", exact)

    for nesterov in (False, True):
        shapes = (12, 7), (6, 5, 3, 3), (9, 6, 1, 1), (5, 40), (8, 1, 3, 3), (9,)
        generator = torch.Generator().manual_seed(0)
        ours, timms = ([nn.Parameter(torch.empty(shape)) for shape in shapes] for _ in range(2))
        for a, b in zip(ours, timms, strict=True):
            nn.init.normal_(a, generator=generator)
            b.data.copy_(a.data)
        options = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.99)}
        mine = Muon([{"params": ours}], **options, momentum=0.8, nesterov=nesterov, fused=True)
        peer = timms_module.Muon(timms, **options, momentum=0.8, nesterov=nesterov, ns_coefficients="original")
        before = [p.detach().clone() for p in ours]
        for _ in range(4):
            for a, b in zip(ours, timms, strict=True):
                a.grad = torch.randn(a.shape, generator=generator)
                b.grad = a.grad.clone()
            mine.step()
            peer.step()
        for i, (a, b, old) in enumerate(zip(ours, timms, before, strict=True)):
            if is_matrix(a) or not nesterov:  # timm's other steps are then NAdam's
                assert (a - b).norm() <= 1e-4 * (a - old).norm(), i
    assert not mine.state[ours[4]].keys() ^ {"step", "exp_avg", "exp_avg_sq"}


@given(st.integers(4, 40), st.integers(4, 40), st.integers(0, 1000), st.sampled_from([1e-4, 1.0, 1e4]))
def test_what_muon_takes_is_nearly_orthogonal_and_of_no_scale(rows: int, columns: int, seed: int, scale: float) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = orthogonal(matrix * scale)
    assert torch.allclose(found, orthogonal(matrix), atol=1e-3)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    shares = (left.T @ found @ right.T).diagonal()
    # the smallest directions take more than five iterations
    assert (shares < 1.25).all()
    assert (shares > 0).all()
    assert shares[: max(1, len(shares) // 2)].min() > 0.6
    assert torch.equal(orthogonal(torch.zeros(rows, columns)), torch.zeros(rows, columns))


# The numbers --------------------------------------------------------------------------------------------------------


def test_rmsprop_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = RMSpropTF([parameter], lr=0.1, alpha=0.9, eps=0.01, momentum=0.5, weight_decay=0.25)
    parameter.grad = torch.tensor([1.0], dtype=torch.float64)
    optimizer.step()  # g = 1 + 0.25 * 2 = 1.5; s = 1 + 0.1 * (2.25 - 1) = 1.125; b = 0.1 * 1.5 / sqrt(1.135)
    first = 0.15 / math.sqrt(1.135)
    assert parameter.item() == pytest.approx(2 - first, rel=1e-15)
    optimizer.param_groups[0]["lr"] = 0.01  # what is in the momentum keeps the rate it came with
    parameter.grad = torch.tensor([-1.0], dtype=torch.float64)
    optimizer.step()
    gradient = -1 + 0.25 * (2 - first)
    square = 1.125 + 0.1 * (gradient**2 - 1.125)
    second = 0.5 * first + 0.01 * gradient / math.sqrt(square + 0.01)
    assert parameter.item() == pytest.approx(2 - first - second, rel=1e-14)


@pytest.mark.peer
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("flag", [None, GOOD])
def test_rmsprop_equals_timm_step_for_step(momentum: float, weight_decay: float, flag: Tensor | None) -> None:
    from timm.optim import RMSpropTF as Reference

    ours, theirs = parameters(), parameters()
    options = {"lr": 0.05, "alpha": 0.9, "eps": 1e-3, "momentum": momentum, "weight_decay": weight_decay}
    optimizer, reference = RMSpropTF(ours, **options), Reference(theirs, **options)  # type: ignore[arg-type]
    if flag is not None:
        optimizer.found_inf = flag  # type: ignore[attr-defined]
    for step in range(30):
        set_gradients(ours, step, 10.0 ** (step % 5 - 2))
        set_gradients(theirs, step, 10.0 ** (step % 5 - 2))
        for one in (optimizer, reference):
            one.param_groups[0]["lr"] = 0.05 * 0.9**step
            one.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "nesterov", "adamw"])
def test_fused_optimisers_equal_torchs_plain_ones_in_any_layout(kind: str) -> None:
    ours, theirs = parameters(), parameters()
    if kind == "adamw":
        optimizer: torch.optim.Optimizer = AdamW(ours, lr=0.1, weight_decay=0.01, fused=True)
        reference: torch.optim.Optimizer = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.01, foreach=False)
    else:
        options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": kind == "nesterov"}
        optimizer, reference = SGD(ours, fused=True, **options), torch.optim.SGD(theirs, foreach=False, **options)
    for step in range(10):
        for params, one in ((ours, optimizer), (theirs, reference)):
            set_gradients(params, step)
            one.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_each_optimiser_finds_a_minimum(name: str) -> None:
    parameter = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = build_optimizer(
        OptimConfig(name=name, lr=0.02), [{"params": [parameter], "lr": 0.02, "weight_decay": 0.0}]
    )  # type: ignore[arg-type]
    for _ in range(400):
        loss = optimizer.step(lambda: _closure(optimizer, parameter))
    assert loss is not None
    assert loss < 1e-3


def _closure(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> float:
    optimizer.zero_grad()
    loss = (parameter**2).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_scale_is_divided_out(name: str) -> None:
    runs = []
    for scale in (None, torch.tensor(1024.0)):
        params = parameters()
        optimizer = built(name, params)
        for step in range(3):
            set_gradients(params, step, 1.0 if scale is None else 1024.0)
            optimizer.grad_scale, optimizer.found_inf = scale, GOOD  # type: ignore[attr-defined]
            optimizer.step()
        runs.append([bits(p) for p in params])
    assert runs[0] == runs[1]


# Finiteness and clipping --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_found_inf_sees_one_bad_number_anywhere(where: int, value: float) -> None:
    params = parameters()
    set_gradients(params, 0)
    loss = torch.tensor(2.0)
    assert found_inf(params, loss).item() == 0
    if where == 3:
        loss = torch.tensor(value)
    else:
        gradient = params[where].grad
        assert gradient is not None
        gradient.view(-1)[-1] = value
    flag = found_inf(params, loss)
    assert (flag.item(), flag.dtype, flag.shape) == (1, torch.float32, ())


def test_found_inf_of_large_finite_numbers_and_of_none() -> None:
    params = parameters()
    assert found_inf(params, torch.tensor(1e38)).item() == 0
    set_gradients(params, 0, 1e15)
    assert found_inf(params, torch.tensor(0.0)).item() == 0
    assert found_inf([], torch.tensor(float("nan"))).item() == 1


def test_clipping_bounds_the_common_norm() -> None:
    params = parameters()
    set_gradients(params, 0)
    grads = [p.grad.clone() for p in params if p.grad is not None]
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads))
    assert clip_grad_norm(params, 2 * norm).item() == pytest.approx(norm, rel=1e-6)
    assert all(torch.allclose(p.grad, g) for p, g in zip(params, grads, strict=False) if p.grad is not None)
    clip_grad_norm(params, norm / 4)
    for parameter, gradient in zip(params, grads, strict=False):
        torch.testing.assert_close(parameter.grad, gradient / 4, rtol=1e-4, atol=1e-7)
    assert params[0].grad is not None
    params[0].grad[0, 0] = float("nan")
    assert math.isnan(clip_grad_norm(params, 1.0))  # and does not raise


# Schedules ----------------------------------------------------------------------------------------------------------


def trace(total: int, warmup: int = 0, per_epoch: float = 10, **options: Any) -> list[float]:
    config = OptimConfig(**options)
    return [lr_factor(step, total=total, warmup=warmup, per_epoch=per_epoch, config=config) for step in range(total)]


def test_schedules_equal_traces_computed_by_hand() -> None:
    half, sixth = math.sqrt(0.5), math.sqrt(3) / 2
    # Warm-up of 3 steps: a quarter, a half, three quarters; the cosine of 6 steps: angles of 0, 30, ..., 150 degrees.
    cosine = [0.25, 0.5, 0.75, 1, (1 + sixth) / 2, 0.75, 0.5, 0.25, (1 - sixth) / 2]
    assert trace(9, 3, schedule="cosine") == pytest.approx(cosine, abs=1e-15)
    assert trace(4, schedule="cosine", min_lr_fraction=0.2) == pytest.approx(
        [1, 0.6 + 0.4 * half, 0.6, 0.6 - 0.4 * half], abs=1e-15
    )
    assert trace(4, 3, schedule="constant", warmup_start=0.2) == pytest.approx([0.4, 0.6, 0.8, 1], abs=1e-15)
    assert trace(3, schedule="constant") == [1, 1, 1]
    # 2 steps an epoch, a drop every 1.5 epochs: steps 3, 6, 9, counted from the start and not from the end of the warm-up.
    steps = [0.2, 0.4, 0.6, 0.8, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    assert trace(10, 4, 2, schedule="step", step_epochs=1.5, step_gamma=0.5) == pytest.approx(steps, abs=1e-15)
    assert trace(10, 0, 2, schedule="step", step_epochs=1.5, step_gamma=0.5, min_lr_fraction=0.2)[-4:] == [
        0.25,
        0.25,
        0.25,
        0.2,
    ]


def test_the_published_staircase() -> None:
    # 0.97 every 2.4 epochs of 1251 steps: drops at multiples of 3002.4, so first at steps 3003, 6005, 9008, 12010, 15012.
    config = OptimConfig(schedule="step", step_epochs=2.4, step_gamma=0.97)
    values = [lr_factor(step, total=20_000, warmup=0, per_epoch=1251, config=config) for step in range(15_100)]
    drops = [step for step in range(1, len(values)) if values[step] != values[step - 1]]
    assert drops == [3003, 6005, 9008, 12010, 15012]
    assert values[-1] == pytest.approx(0.97**5)
    # A border that falls on a step exactly is not lost to rounding, whatever the number of drops.
    for drop in range(1, 200):
        assert lr_factor(24 * drop, total=10**6, warmup=0, per_epoch=10, config=config) == pytest.approx(0.97**drop)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.data())
def test_schedules_stay_between_0_and_1_and_never_jump_up(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total))
    kind = data.draw(st.sampled_from(["cosine", "step", "constant"]))
    low = data.draw(st.floats(0, 1))
    values = trace(total, warmup, data.draw(st.floats(0.5, 100)), schedule=kind, min_lr_fraction=low)
    assert all(0 < value <= 1 for value in values) or (low == 0 and values[-1] >= 0)
    assert all(a < b for a, b in pairwise(values[:warmup]))
    assert all(a >= b for a, b in pairwise(values[warmup:]))
    assert all(value >= low - 1e-12 for value in values[warmup:])


def test_scaled_lr() -> None:
    table: dict[Any, float] = {
        ("linear", 512): 0.2,
        ("linear", 64): 0.025,
        ("sqrt", 1024): 0.2,
        ("sqrt", 64): 0.05,
        ("none", 64): 0.1,
        ("none", 4096): 0.1,
    }
    for (scaling, batch), expected in table.items():
        assert OptimConfig(lr=0.1, base_batch=256, lr_scaling=scaling).scaled_lr(batch) == pytest.approx(expected)


# Moving averages ----------------------------------------------------------------------------------------------------


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4, 5))
    model.register_buffer("wide", torch.zeros(2, dtype=torch.float64))
    return model.to(memory_format=torch.channels_last)


def moves(model: nn.Module, steps: int) -> Iterator[int]:
    """Change every parameter and buffer, ``steps`` times."""
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        model(torch.randn(8, 3, 4, 4))
        with torch.no_grad():
            for tensor in [*model.parameters(), model.get_buffer("wide")]:
                tensor += 0.1 * torch.randn_like(tensor)
        yield step


def test_ema_equals_its_definition() -> None:
    model = network()
    ema = Ema(model, 0.7)
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    decays = []
    for step in moves(model, 40):
        ema.update(model, step)
        decay = min(0.7, (1 + step) / (10 + step))
        decays.append(decay)
        for name, value in model.state_dict().items():
            expected[name] = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
            )
    assert decays[0] == 2 / 11
    assert decays[-1] == 0.7
    assert ema.decay_at(1) == 2 / 11
    for name, value in ema.state_dict().items():
        assert value.shape == model.state_dict()[name].shape
        assert value.dtype == model.state_dict()[name].dtype
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-6, atol=1e-6)
    assert ema.state_dict()["1.num_batches_tracked"] == 40
    assert not torch.equal(ema.state_dict()["1.running_mean"], model.get_buffer("1.running_mean"))


def test_ema_of_what_does_not_move_is_exact() -> None:
    model = network()
    ema = Ema(model, 0.99)
    for step in range(1, 20):
        ema.update(model, step, skip=GOOD)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in ema.state_dict().items())


@pytest.mark.parametrize("flag", [BAD, BAD.reshape(1)])
def test_ema_is_not_moved_by_a_skipped_step(flag: Tensor) -> None:
    model = network()
    ema = Ema(model, 0.9)
    for step in moves(model, 3):
        ema.update(model, step, skip=GOOD)
    before = {name: bits(value) for name, value in ema.state_dict().items()}
    with torch.no_grad():
        model.get_buffer("1.running_var").fill_(float("nan"))
        model.get_parameter("3.weight").fill_(float("inf"))
    ema.update(model, 4, skip=flag)
    assert {name: bits(value) for name, value in ema.state_dict().items()} == before


def test_applied_averages_and_exact_return() -> None:
    model = network()
    ema = Ema(model, 0.9)
    for step in moves(model, 5):
        ema.update(model, step)
    before = {name: bits(value) for name, value in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    strides = [p.stride() for p in model.parameters()]
    assert model.training
    with ema.applied(model):
        assert torch.is_grad_enabled()
        assert all(torch.equal(value, ema.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ZeroDivisionError), ema.applied(model):
        raise ZeroDivisionError  # the way back is taken on errors too
    assert {name: bits(value) for name, value in model.state_dict().items()} == before
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert [p.stride() for p in model.parameters()] == strides


def test_ema_state_restores_bit_for_bit() -> None:
    model = network()
    ema = Ema(model, 0.9)
    for step in moves(model, 3):
        ema.update(model, step)
    saved = {name: value.clone() for name, value in ema.state_dict().items()}
    again = Ema(network(1), 0.9)
    again.load_state_dict(saved)
    for step in moves(model, 2):
        ema.update(model, 3 + step)
        again.update(model, 3 + step)
    assert all(bits(value) == bits(again.state_dict()[name]) for name, value in ema.state_dict().items())
    with pytest.raises(ValueError, match="averages of other tensors"):
        again.load_state_dict({})
    with pytest.raises(ValueError, match="expected shape"):
        again.load_state_dict(saved | {"3.bias": torch.zeros(1)})


def test_short_runs_are_not_left_with_their_first_weights() -> None:
    # With a plain decay of 0.9999, 50 steps would leave 99.5 % of the initial weights in the average.
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Ema(model, 0.9999)
    nn.init.ones_(model.weight)
    for step in range(1, 51):
        ema.update(model, step)
    assert ema.state_dict()["weight"].item() > 0.999


def test_buffers_survive_a_poisoned_forward_pass() -> None:
    model = network()
    guard = BufferGuard(model)
    model(torch.randn(8, 3, 4, 4))
    guard.settle(model, GOOD)
    before = {name: bits(value) for name, value in model.named_buffers()}
    model(torch.full((8, 3, 4, 4), float("nan")))
    assert model.get_buffer("1.running_mean").isnan().any()
    guard.settle(model, BAD)
    assert {name: bits(value) for name, value in model.named_buffers()} == before
    model(torch.randn(8, 3, 4, 4))
    moved = {name: bits(value) for name, value in model.named_buffers()}
    guard.settle(model, GOOD)
    assert {name: bits(value) for name, value in model.named_buffers()} == moved != before
