"""``torch.jit.trace`` and the exporter built on it take a model, at the size of the example."""

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from effbackbones import build_model

pytestmark = pytest.mark.filterwarnings("ignore")  # the tracer warns of every size that it fixes

TASKS = ("cls", "det", "seg")


def model_and_images(task):
    torch.manual_seed(0)
    # 72 x 100 is padded, by another amount on each side.
    return build_model(task, "lite0", num_classes=3).eval(), torch.rand(2, 1, 3, 72, 100)


@pytest.mark.parametrize("task", TASKS)
def test_a_traced_model_answers_as_the_model(task):
    model, (example, images) = model_and_images(task)
    with torch.no_grad():
        traced = torch.jit.trace(model, example, check_trace=False)
        for one, other in zip(pytree.tree_leaves(model(images)), pytree.tree_leaves(traced(images)), strict=True):
            # A trace goes layer by layer; a call folds batch norms where that pays, which rounds otherwise.
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_the_older_onnx_exporter_takes_a_model(task, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model, (example, images) = model_and_images(task)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (example,), str(path), dynamo=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answers = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = pytree.tree_leaves(model(images))
    for answer, one in zip(answers, expected, strict=False):
        np.testing.assert_allclose(answer, one.numpy(), rtol=1e-3, atol=1e-4)
