"""The base of everything that is read from a file a person may edit."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """Plain data with no unknown keys, unchangeable once read; no infinities, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
