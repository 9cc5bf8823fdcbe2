"""What the review server is told: by its command line, by `LEUKOSCOPE_REVIEW_*`, or by default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from leukoscope.errors import InputError
from leukoscope.review.untrusted import Limits
from leukoscope.tables import Table

PREFIX = "LEUKOSCOPE_REVIEW_"
SMALLEST_PIXEL, LARGEST_PIXEL = 0.005, 5.0  # micrometres
Positive = Annotated[int, Field(ge=1)]


class Settings(Table):
    """All settings; docs/operations.md lists them with what is written below each."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    bundle: Path
    """The folder of the model, as `leukoscope export` writes it."""
    folder: Path = Path("leukoscope-review")
    """Holds images, derived pictures, the secret and, unless `database` names another one, the
    SQLite file."""
    database: str = ""
    """`postgresql://user:password@host/name`; empty: a file in `folder`."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8350
    """The port to listen on; 0 takes a free one."""
    references: Path | None = None
    """Reference images: one folder a class."""
    origin: str = ""
    """The address under which browsers reach the server where a proxy stands before it, e.g.
    `https://smear.example.org`."""
    behind_tls: bool = False
    """Cookies travel over TLS only; an `origin` of https implies it."""
    log: Literal["text", "json"] = "text"
    """What is written to stderr: `text` warnings and errors, `json` also a line a request."""
    metrics_token: Annotated[str, Field(pattern=r"^([!-~]{16,})?$")] = ""
    """Opens `/metrics` to who sends it as a bearer token; 16 printable characters or more. Empty:
    administrators only."""
    pixel_size: Annotated[float, Field(ge=SMALLEST_PIXEL, le=LARGEST_PIXEL)] | None = None
    """Micrometres a pixel with which new cases begin."""
    file_bytes: Positive = 200_000_000
    """Bytes of one image file."""
    archive_bytes: Positive = 2_000_000_000
    """Bytes of one archive, packed and unpacked."""
    archive_members: Positive = 5_000
    """Files in one archive."""
    archive_ratio: Positive = 200
    """How many times its size a packed file may unpack to."""
    image_pixels: Positive = 100_000_000
    """Width times height of one image."""
    cells_per_field: Positive = 5_000
    """Cells found in one field of view."""
    cells_per_case: Positive = 20_000
    """Cells, and files, of one case."""
    decode_memory: Positive = 3_000_000_000
    """Bytes that the process that opens a file may take beyond its libraries'."""
    decode_cpu_seconds: Positive = 60
    """Seconds that it may compute for one file."""
    decode_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that it may be silent."""
    files_per_user: Positive = 2_000
    """Files of one person that are on their way or wait to be read."""
    files_waiting: Positive = 20_000
    """Files of everybody that are on their way or wait to be read."""
    jobs_per_user: Positive = 50
    """Cases of one person that wait to be read, or are being read."""
    jobs_waiting: Positive = 500
    """Cases of everybody that wait to be read, or are being read."""
    uploads_per_user: Positive = 8
    """Uploads of one person that send bytes at the same time."""
    uploads_at_once: Positive = 32
    """Uploads of everybody that send bytes at the same time."""
    requests_per_session: Positive = 200
    """Requests of one browser session or API token that are worked on at the same time."""
    requests_at_once: Positive = 500
    """Requests of everybody that are worked on at the same time."""
    logins_per_minute: Positive = 30
    """Attempts to log in from one address."""

    @model_validator(mode="before")
    @classmethod
    def _over_tls(cls, given: Any) -> Any:
        """Whoever is reached by https stands behind it."""
        if isinstance(given, dict) and str(given.get("origin", "")).startswith("https://"):
            return given | {"behind_tls": True}
        return given

    @property
    def limits(self) -> Limits:
        """What of these the decoders must know; no password is among it."""
        return Limits(
            pixels=self.image_pixels,
            file_bytes=self.file_bytes,
            cells=self.cells_per_field,
            members=self.archive_members,
            archive_bytes=self.archive_bytes,
            ratio=self.archive_ratio,
            seconds=self.decode_seconds,
            cpu_seconds=self.decode_cpu_seconds,
            memory=self.decode_memory,
        )

    @property
    def database_url(self) -> str:
        """Where the database is: `database`, or a file in `folder`."""
        return self.database or f"sqlite:///{self.folder.absolute() / 'review.sqlite'}"

    @property
    def address(self) -> str:
        """What to open in a browser."""
        if self.origin:
            return self.origin.rstrip("/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def settings_of(environment: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """Settings from what is given (None: not given), else the environment, else the defaults.

    Raises InputError naming the setting.
    """
    variables = os.environ if environment is None else environment
    found: dict[str, Any] = {
        name: variables[PREFIX + name.upper()]
        for name in Settings.model_fields
        if PREFIX + name.upper() in variables
    }
    try:
        return Settings(**found | {k: v for k, v in given.items() if v is not None})
    except ValidationError as problem:
        first = problem.errors()[0]
        name = str(first["loc"][0])
        raise InputError(
            f"The setting {name} can't be {first.get('input')!r}: {first['msg']}",
            fix=f"Change the option or {PREFIX}{name.upper()}.",
            field=name,
        ) from None
