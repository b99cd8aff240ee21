"""The messages of the Open Inference Protocol v2 over gRPC that the client needs, as classes.

They are made in a pool of their own: protobuf refuses to register messages of the same names twice,
and tritonclient and kserve bring theirs. Fields that are not named here are skipped.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"

FIELD = descriptor_pb2.FieldDescriptorProto
TYPES = {
    "string": FIELD.TYPE_STRING,
    "bool": FIELD.TYPE_BOOL,
    "int32": FIELD.TYPE_INT32,
    "int64": FIELD.TYPE_INT64,
    "uint32": FIELD.TYPE_UINT32,
    "uint64": FIELD.TYPE_UINT64,
    "float": FIELD.TYPE_FLOAT,
    "double": FIELD.TYPE_DOUBLE,
    "bytes": FIELD.TYPE_BYTES,
}

# message -> "type name number" of its fields; a star stands for a list
MESSAGES = {
    "ServerMetadataRequest": [],
    "ServerMetadataResponse": ["string name 1", "string version 2", "string* extensions 3"],
    "ModelReadyRequest": ["string name 1"],
    "ModelReadyResponse": ["bool ready 1"],
    "TensorMetadata": ["string name 1", "string datatype 2", "int64* shape 3"],
    "ModelMetadataRequest": ["string name 1"],
    "ModelMetadataResponse": [
        "string name 1",
        "TensorMetadata* inputs 4",
        "TensorMetadata* outputs 5",
    ],
    "RepositoryIndexRequest": [],
    "ModelIndex": ["string name 1"],
    "RepositoryIndexResponse": ["ModelIndex* models 1"],
    # a map is a list of keys and values
    "Parameter": ["string string_value 1"],
    "ParameterEntry": ["string key 1", "Parameter value 2"],
    "ModelConfig": ["string name 1", "int32 max_batch_size 4", "ParameterEntry* parameters 14"],
    "ModelConfigRequest": ["string name 1"],
    "ModelConfigResponse": ["ModelConfig config 1"],
    "Contents": [
        "bool* bool_contents 1",
        "int32* int_contents 2",
        "int64* int64_contents 3",
        "uint32* uint_contents 4",
        "uint64* uint64_contents 5",
        "float* fp32_contents 6",
        "double* fp64_contents 7",
    ],
    "Tensor": ["string name 1", "string datatype 2", "int64* shape 3", "Contents contents 5"],
    "ModelInferRequest": ["string model_name 1", "Tensor* inputs 5", "bytes* raw_input_contents 7"],
    "ModelInferResponse": [
        "string model_name 1",
        "Tensor* outputs 5",
        "bytes* raw_output_contents 6",
    ],
}


@functools.cache
def message(name: str) -> Any:
    """Return the class of a message of MESSAGES."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="jec_client.proto", package="inference", syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        descriptor = file.message_type.add(name=name)
        for text in fields:
            kind, field_name, number = text.split()
            field = descriptor.field.add(name=field_name, number=int(number))
            field.label = FIELD.LABEL_REPEATED if kind.endswith("*") else FIELD.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind in TYPES:
                field.type = TYPES[kind]
            else:
                field.type, field.type_name = FIELD.TYPE_MESSAGE, f".inference.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
