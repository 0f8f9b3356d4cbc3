"""How log lines look, in the server's process and in the engine's alike: text for people, or a JSON object on each line for machines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """A JSON object on one line: time (ISO 8601, UTC), level, logger, message; the fields of `extra={"data": {...}}`; the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """As in `logging.Formatter`."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        data = getattr(record, "data", None)
        if isinstance(data, dict):
            line.update({str(name): value for name, value in data.items() if name not in line})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # What is no JSON is told as text: a line in the log is worth more than its types.
        return json.dumps(line, default=str)


def log_to_stderr(level: int, log_format: LogFormat) -> None:
    """Send this process's log to standard error: of xlaserve from `level` on, of others warnings and worse."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("xlaserve").setLevel(level)


def current_format() -> LogFormat:
    """What `log_to_stderr` was told in this process."""
    return "json" if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers) else "text"
