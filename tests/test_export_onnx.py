"""ONNX files in onnxruntime: `make test-export` installs the converter and runs these."""

import json

import numpy as np
import pytest

import lunar_distill_jax as ld
from lunar_distill_jax.export.graph import INPUTS, OUTPUTS, TOLERANCE, photographs
from lunar_distill_jax.export.onnx_file import write_onnx
from lunar_distill_jax.models.zoo import STUDENTS

onnx, onnxruntime, _ = map(pytest.importorskip, ("onnx", "onnxruntime", "jax2onnx"))
pytestmark = pytest.mark.slow
SIZE = (32, 64)


@pytest.mark.parametrize("name", ["test", "moonlet", "moonlet-small", *STUDENTS])
def test_every_architecture_becomes_onnx(name, tmp_path):
    stereo = ld.load(name) if name in ld.list_models()["models"] else ld.build(name)
    path = tmp_path / "model.onnx"
    error, _ = write_onnx(stereo, path, *SIZE)
    assert error < TOLERANCE
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert tuple(i.name for i in session.get_inputs()) == INPUTS
    assert tuple(o.name for o in session.get_outputs()) == OUTPUTS
    images = photographs(*SIZE)
    arrays = session.run(None, dict(zip(INPUTS, images, strict=True)))
    found = dict(zip(OUTPUTS, arrays, strict=True))
    assert found["pts3d_2"].shape == (1, *SIZE, 3)
    norms = np.linalg.norm(found["desc_1"], axis=-1)
    np.testing.assert_allclose(norms, 1, atol=1e-4)
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts["size"] == "32x64" and json.loads(facts["architecture"])["name"]
    operations = {node.op_type for node in onnx.load(path).graph.node}
    assert not operations & {"If", "Loop", "Scan", "NonZero", "Unique"}  # what depends on values
