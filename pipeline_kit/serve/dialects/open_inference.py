"""The Open Inference Protocol v2, which Triton, KServe and MLServer speak: tensors in, tensors out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pipeline_kit.contract.column_types import VECTOR
from pipeline_kit.contract.types import Result
from pipeline_kit.contract.version import __version__
from pipeline_kit.errors import for_message
from pipeline_kit.serve.dialects.base import Call, Dialect, Loose, Reply, Route, decoded
from pipeline_kit.serve.refused import Refused
from pipeline_kit.serve.served import ServedPipeline

TensorInfo = dict[str, Any]
HEADER = "inference-header-content-length"
"""How many bytes of a body are JSON; tensors follow."""

DATATYPES = {"string": "BYTES", "float64": "FP64", "float32": "FP32", "int64": "INT64", "bool": "BOOL"}
_TRITON = {name: f"TYPE_{name}" for name in DATATYPES.values()} | {"BYTES": "TYPE_STRING"}
_NUMPY = {"FP64": "<f8", "FP32": "<f4", "INT64": "<i8", "BOOL": "?"}


class InputTensor(Loose):
    """Texts of one field: ``[N]`` or ``[N, 1]``, or ``[N, K]`` for a field that is a list of K texts."""

    name: Annotated[str, Meta(examples=["text"])]
    shape: Annotated[list[int], Meta(examples=[[1]])]
    datatype: Annotated[str, Meta(examples=["BYTES"])]
    data: Annotated[list[Any], Meta(examples=[["I love this."]])] | None = None
    parameters: dict[str, Any] | None = None


class OutputRequest(Loose):
    """An output that the client wants."""

    name: Annotated[str, Meta(examples=["result"])]
    parameters: dict[str, Any] | None = None


class InferBody(Loose):
    """The JSON part of a request."""

    inputs: list[InputTensor]
    outputs: list[OutputRequest] | None = None
    parameters: dict[str, Any] | None = None
    id: str | None = None


class OpenInference(Dialect):
    """``/v2``. Every task has the output ``result``, JSON text; each number, text or vector in it is one besides."""

    def routes(self) -> Sequence[Route]:
        """See :class:`Dialect`."""
        model = "/v2/models/{model}"
        return (
            Route("/v2", about_server, method="GET", summary="Name and version of the server"),
            Route("/v2/health/live", live, method="GET", summary="Whether the process lives", open=True),
            Route("/v2/health/ready", ready, method="GET", summary="Whether requests are taken", open=True),
            Route(model, about_model, method="GET", summary="Inputs and outputs of a pipeline"),
            Route(f"{model}/ready", ready, method="GET", summary="Whether a pipeline takes requests", open=True),
            Route(f"{model}/config", config, method="GET", summary="Inputs and outputs, as Triton writes them"),
            Route(f"{model}/infer", infer, bytes, InferBody, summary="Run a pipeline on tensors of texts"),
        )

    def error(self, refused: Refused) -> Any:
        """See :class:`Dialect`; clients fail themselves if this is not a text."""
        return {"error": f"{refused.param}: {refused.message}" if refused.param else refused.message}

    def pipeline_name(self, body: Any, path: Mapping[str, str]) -> str | None:
        """See :class:`Dialect`."""
        return path.get("model")


async def about_server(call: Call) -> Any:
    """Answer with what the server is."""
    return {"name": "pipeline-kit", "version": __version__, "extensions": ["binary_tensor_data"]}


async def live(call: Call) -> Any:
    """Answer 200 while the process lives."""
    return {"live": True}


async def ready(call: Call) -> Any:
    """Answer 200 while requests are taken."""
    return Reply(msgspec.json.encode({"ready": call.server.ready}), status=200 if call.server.ready else 503)


async def about_model(call: Call) -> Any:
    """Answer with the tensors that a pipeline takes and returns."""
    about = {"name": call.pipeline.name, "versions": [], "platform": "pipeline-kit"}
    return {**about, "inputs": _inputs(call.pipeline), "outputs": [*_outputs(call.pipeline).values()]}


async def config(call: Call) -> Any:
    """Answer with the same in Triton's own words."""
    input, output = (
        [{"name": one["name"], "data_type": _TRITON[one["datatype"]], "dims": one["shape"]} for one in tensors]
        for tensors in (_inputs(call.pipeline), _outputs(call.pipeline).values())
    )
    about = {"name": call.pipeline.name, "backend": "pipeline-kit", "max_batch_size": 0}
    return {**about, "input": input, "output": output}


def _inputs(pipeline: ServedPipeline) -> list[TensorInfo]:
    names = [name.removesuffix("?") for name in pipeline.takes if name != "messages?"]  # those are objects
    return [{"name": name, "datatype": "BYTES", "shape": [-1, -1] if name.endswith("s") else [-1]} for name in names]


def _outputs(pipeline: ServedPipeline) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {"result": {"name": "result", "datatype": "BYTES", "shape": [-1]}}
    for name, kind in pipeline.gives.items():
        if kind == VECTOR:
            found.setdefault(name, {"name": name, "datatype": "FP32", "shape": [-1, -1]})
        elif isinstance(kind, str):
            found.setdefault(name, {"name": name, "datatype": DATATYPES[kind], "shape": [-1]})
    return found


async def infer(call: Call) -> Any:
    """Answer with a tensor for each output; a row that fails fails the request."""
    body, tail = _split(call)
    outputs, settings = _outputs(call.pipeline), body.parameters or {}
    for place, one in enumerate(body.outputs or ()):
        if one.name not in outputs:
            message = f"there is no output '{for_message(one.name, 60)}'; there are: {', '.join(outputs)}"
            raise Refused(422, message, param=f"$.outputs[{place}].name")
    if len({one.name for one in body.outputs or ()}) < len(body.outputs or ()):
        raise Refused(422, "an output is asked for twice; name each one once", param="$.outputs")
    examples = _examples(body.inputs, tail, call.pipeline)
    options = {key: value for key, value in settings.items() if key in call.pipeline.parameters and value is not None}
    results = await call.results(examples, options)
    tensors: list[TensorInfo] = []
    packed: list[bytes] = []
    for one in body.outputs or [OutputRequest(name=name) for name in outputs]:
        tensor = {**outputs[one.name]}
        column = _column(tensor, results)
        if column is None and body.outputs:
            raise Refused(422, f"not every result has '{one.name}'; ask for the output 'result'")
        if column is None:
            continue
        tensor["shape"] = column.shape if results else [0] * len(tensor["shape"])
        if (one.parameters or {}).get("binary_data", settings.get("binary_data_output")) is True:
            packed.append(_packed(column))
            tensor["parameters"] = {"binary_data_size": len(packed[-1])}
        else:
            tensor["data"] = column.ravel().tolist()
        tensors.append(tensor)
    head = msgspec.json.encode({"model_name": call.pipeline.name, "id": body.id or "", "outputs": tensors})
    if not packed:
        return Reply(head)
    return Reply(head + b"".join(packed), "application/octet-stream", {HEADER: str(len(head))})


def _split(call: Call) -> tuple[InferBody, bytes]:
    """Return the JSON of a body, and the tensors behind it."""
    text: str = call.headers.get(HEADER, str(len(call.body)))
    length = int(text[:20]) if text.isascii() and text.isdecimal() else -1
    if not 0 <= length <= len(call.body):
        raise Refused(400, f"{HEADER} is '{for_message(text, 40)}', the body has {len(call.body):,} bytes")
    return decoded(Route("", infer, InferBody), call.body[:length]), call.body[length:]


def _examples(inputs: Sequence[InputTensor], tail: bytes, pipeline: ServedPipeline) -> list[dict[str, Any]]:
    """Return an example for each row of the input tensors.

    :raises Refused: 422 if a tensor is not what its shape promises, or they have different numbers of rows.
    """
    columns: dict[str, list[Any]] = {}
    for place, one in enumerate(inputs):
        try:
            texts, tail = _texts(one, tail)
            if one.name in columns:
                raise ValueError("it is there twice")
        except ValueError as error:
            message = f"input '{for_message(one.name, 60)}': {error}"
            raise Refused(422, message, param=f"$.inputs[{place}]") from None
        width = one.shape[-1]
        listed = len(one.shape) == 2 and (width > 1 or one.name.endswith("s"))
        columns[one.name] = [texts[at : at + width] for at in range(0, len(texts), width)] if listed else texts
    if tail:
        raise Refused(422, f"{len(tail):,} bytes follow the last tensor; see binary_data_size")
    if len({*map(len, columns.values())}) != 1:
        rows = ", ".join(f"{for_message(name, 60)} has {len(column)}" for name, column in columns.items())
        takes = f"task={pipeline.task} takes {', '.join(pipeline.takes)}"
        raise Refused(422, f"inputs need a row for each example: {rows or 'there are none'}; {takes}", param="$.inputs")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _texts(tensor: InputTensor, tail: bytes) -> tuple[list[str], bytes]:
    """Return the texts of a tensor, row by row, and the bytes of the tensors behind it.

    :raises ValueError: if they are not texts, or not as many as its shape promises.
    """
    shape, size = tensor.shape, (tensor.parameters or {}).get("binary_data_size")
    if tensor.datatype != "BYTES":
        raise ValueError(f"its datatype is {for_message(tensor.datatype, 20)}; texts are BYTES")
    if len(shape) not in (1, 2) or shape[0] < 0 or shape[-1] < len(shape) - 1:
        raise ValueError(f"its shape is {for_message(str(shape), 60)}; it is [N], or [N, K] for lists of K texts")
    if size is None:
        texts = [text for row in tensor.data or () for text in (row if isinstance(row, list) else [row])]
    elif type(size) is not int or not 0 <= size <= len(tail):
        raise ValueError(f"its binary_data_size is {for_message(str(size), 40)}, {len(tail):,} bytes are left")
    else:
        texts, tail = _unpacked(tail[:size]), tail[size:]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("its data are not all texts")
    if len(texts) != math.prod(shape):
        raise ValueError(f"it has {len(texts):,} texts, but the shape {for_message(str(shape), 60)}")
    return texts, tail


def _unpacked(data: bytes) -> list[str]:
    """Read texts, each behind its length in four bytes."""
    texts: list[str] = []
    place = 0
    while place < len(data):
        end = place + 4 + int.from_bytes(data[place : place + 4], "little")
        if end > len(data) or place + 4 > len(data):
            raise ValueError(f"its bytes end within text {len(texts)}")
        texts.append(data[place + 4 : end].decode())  # what is not UTF-8 is a ValueError, too
        place = end
    return texts


def _packed(column: NDArray[Any]) -> bytes:
    if column.dtype != object:
        return column.tobytes()
    return b"".join(len(text).to_bytes(4, "little") + text for text in map(str.encode, column))


def _column(tensor: TensorInfo, results: Sequence[Result]) -> NDArray[Any] | None:
    """Return one value of each result; None if not every one has it, or vectors differ in length."""
    name = tensor["name"]
    if name == "result":
        return np.array([msgspec.json.encode(one).decode() for one in results], dtype=object)
    values = [one.get(name) for one in results]
    if None in values or len({len(value) for value in values if isinstance(value, list)}) > 1:
        return None
    return np.array(values, dtype=_NUMPY.get(tensor["datatype"], object))
