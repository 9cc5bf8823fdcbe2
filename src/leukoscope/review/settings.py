"""What the review server is told: by its command line, by `LEUKOSCOPE_REVIEW_*`, or by default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from leukoscope.errors import InputError
from leukoscope.review.untrusted import Limits
from leukoscope.tables import Table

PREFIX = "LEUKOSCOPE_REVIEW_"
SMALLEST_PIXEL, LARGEST_PIXEL = 0.005, 5.0  # micrometres


class Settings(Table):
    """All settings. Sizes are in bytes, `image_pixels` is width x height of one image.

    `folder` holds images, derived pictures, the secret and, unless `database` names another one,
    the SQLite file. `origin` is the address under which browsers reach the server where a proxy
    stands before it, e.g. https://smear.example.org; `behind_tls`, which
    https there implies, makes cookies secure. `pixel_size`: micrometres a pixel with which new
    cases begin. A file is opened by a process that may take `decode_memory` beyond its libraries',
    compute for `decode_cpu_seconds` and be silent for `decode_seconds`; a packed file may unpack to
    `archive_ratio` times its size.
    """

    bundle: Path
    folder: Path = Path("leukoscope-review")
    database: str = ""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8350
    references: Path | None = None
    origin: str = ""
    behind_tls: bool = False
    file_bytes: Annotated[int, Field(ge=1)] = 200_000_000
    archive_bytes: Annotated[int, Field(ge=1)] = 2_000_000_000
    archive_members: Annotated[int, Field(ge=1)] = 5_000
    image_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    cells_per_case: Annotated[int, Field(ge=1)] = 20_000
    pixel_size: Annotated[float, Field(ge=SMALLEST_PIXEL, le=LARGEST_PIXEL)] | None = None
    cells_per_field: Annotated[int, Field(ge=1)] = 5_000
    archive_ratio: Annotated[int, Field(ge=1)] = 200
    decode_seconds: Annotated[float, Field(gt=0)] = 120.0
    decode_cpu_seconds: Annotated[int, Field(ge=1)] = 60
    decode_memory: Annotated[int, Field(ge=1)] = 3_000_000_000

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
