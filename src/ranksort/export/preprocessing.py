"""Preprocessing as an ONNX graph: the counterpart of `ImageTransform`."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..models.images import ImageTransform


def preprocessing_graph(transform: ImageTransform, opset: int) -> onnx.ModelProto:
    """Map `image`, uint8 RGB [H, W, 3], to the inputs of `OneImage` except the threshold, by name.

    Sizes are computed in float64, as Python does.
    """
    graph = _Graph()
    shape = graph("Shape", "image")
    original_height, original_width = (graph("Gather", shape, np.array(axis)) for axis in (0, 1))
    sides = [graph("Cast", side, to=TensorProto.DOUBLE) for side in (original_height, original_width)]
    if transform.keep_ratio:
        scale = graph(
            "Min",
            graph("Div", np.array(float(transform.min_size)), graph("Min", *sides)),
            graph("Div", np.array(float(transform.max_size)), graph("Max", *sides)),
        )
        rounded = [graph("Floor", graph("Add", graph("Mul", side, scale), np.array(0.5))) for side in sides]
        height, width = (graph("Cast", graph("Max", side, np.array(1.0)), to=TensorProto.INT64) for side in rounded)
    else:
        height, width = (graph("Identity", np.array(transform.min_size)) for _ in sides)

    d = transform.divisor
    pixels = graph(
        "Transpose", graph("Unsqueeze", graph("Cast", "image", to=TensorProto.FLOAT), np.array([0])), perm=[0, 3, 1, 2]
    )
    pixels = graph("Div", pixels, np.array(255, np.float32))
    size = graph("Concat", np.array([1, 3]), *(graph("Unsqueeze", n, np.array([0])) for n in (height, width)), axis=0)
    # As in torch: pixels outside the image do not count.
    resizing: dict[str, Any] = {
        "mode": "linear",
        "antialias": 1,
        "exclude_outside": 1,
        "coordinate_transformation_mode": "half_pixel",
    }
    pixels = graph("Resize", pixels, "", "", size, **resizing)
    mean, std = (x.detach().cpu().numpy()[None] for x in (transform.mean, transform.std))
    pixels = graph("Div", graph("Sub", pixels, mean), std)
    # -n modulo d; ONNX's modulo has the sign of the divisor.
    rest = [graph("Unsqueeze", graph("Mod", graph("Neg", n), np.array(d)), np.array([0])) for n in (height, width)]
    pixels = graph("Pad", pixels, graph("Concat", np.zeros(6, np.int64), *rest, axis=0))
    pixels = graph("Reshape", pixels, _block_shape(graph, pixels, d))
    outputs = {
        "pixels": (pixels, TensorProto.FLOAT, [1, 3, None, d, None, d]),
        "height": (height, TensorProto.INT64, []),
        "width": (width, TensorProto.INT64, []),
        "original_height": (original_height, TensorProto.INT64, []),
        "original_width": (original_width, TensorProto.INT64, []),
    }
    for name, (value, _, _) in outputs.items():
        graph("Identity", value, out=name)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["image_height", "image_width", 3])
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, (_, kind, shape) in outputs.items()]
    made = helper.make_graph(graph.nodes, "preprocessing", [image], infos, graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])


def _block_shape(graph: "_Graph", pixels: str, d: int) -> str:
    """The shape [1, 3, H / d, d, W / d, d] of pixels [1, 3, H, W]."""
    blocks = graph("Div", graph("Shape", pixels, start=2), np.array([d]))
    rows, columns = (graph("Slice", blocks, np.array([n]), np.array([n + 1])) for n in (0, 1))
    return graph("Concat", np.array([1, 3]), rows, np.array([d]), columns, np.array([d]), axis=0)


class _Graph:
    """Create ONNX nodes by calling attributes like functions, on names of values and on arrays."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str | np.ndarray, out: str = "", **attributes: Any) -> str:
        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        name = out or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], **attributes))
        return name

    def _constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name
