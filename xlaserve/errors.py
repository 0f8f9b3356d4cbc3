"""Every error that xlaserve raises on purpose, one type per kind of mistake.

The server maps each type to one HTTP status in one place (`xlaserve.server.errors`); the Python API lets them through as they are.
Each message names the field, the value, the limit and the remedy.
"""

from __future__ import annotations


class XlaserveError(Exception):
    """Base of all errors raised on purpose."""


class InvalidRequestError(XlaserveError, ValueError):
    """A request asks for something malformed or out of range (HTTP 400).

    Args:
        message: a full sentence for the person who sent the request.
        field: the name of the offending field as the user wrote it, or None where no single field is at fault.
        value: the offending value.
    """

    def __init__(self, message: str, *, field: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.field = field
        self.value = value


class ModelNotFoundError(XlaserveError):
    """The request names a model that this server does not serve (HTTP 404)."""


class OverloadedError(XlaserveError):
    """The waiting queue is full; the request was not accepted and may be retried (HTTP 503)."""


class EngineDeadError(XlaserveError):
    """The engine has stopped after an internal failure; no request can be served (HTTP 500)."""


class EngineStateError(XlaserveError):
    """The engine cannot do this as it stands: it is asleep, or somebody has let it go on meanwhile (HTTP 409)."""


class CallFailedError(XlaserveError):
    """The engine could not do what an operator asked for, for a reason of its own; it goes on (HTTP 500)."""


class ConfigError(XlaserveError, ValueError):
    """A command-line flag or engine option is wrong, or does not fit the model, the platform or the memory."""


class CheckpointError(XlaserveError):
    """A model cannot be found, fetched or read, or its files are damaged or incomplete."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint is readable, but its architecture or a feature that it needs is not implemented."""


class ArtifactError(XlaserveError):
    """A compiled artifact is missing, damaged or made for something else."""


class CompileError(XlaserveError):
    """The platform's compiler refuses a graph, or fails on it."""
