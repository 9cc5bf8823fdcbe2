"""What the API takes and gives, for its documentation and its checks."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from leukoscope.review.schema import Role
from leukoscope.review.settings import LARGEST_PIXEL, SMALLEST_PIXEL
from leukoscope.tables import Table

Revision = Annotated[int, Field(ge=-1)]
CellId = Annotated[int, Field(strict=False)]  # a key of JSON is text
Seen = Annotated[dict[CellId, Revision], Field(min_length=1, max_length=20_000)]
"""Cell ids and the revision of each that was seen."""


PixelSize = Annotated[float, Field(ge=SMALLEST_PIXEL, le=LARGEST_PIXEL)] | None


class Given(Table):
    """What is sent: `true` is no number and "1" neither."""

    model_config = ConfigDict(strict=True)


class Row(BaseModel):
    """Made from a row of a table or a dataclass."""

    model_config = ConfigDict(from_attributes=True)


# --- people ---------------------------------------------------------------------------------------


class Credentials(Given):
    name: str
    password: str


class NewPassword(Given):
    old: str
    new: str


class Person(Row):
    id: int
    name: str
    role: Role
    active: bool
    created: datetime.datetime


class Me(BaseModel):
    """Who is logged in; `csrf_token` goes into X-CSRF-Token with every change, "" for programs."""

    user: Person
    csrf_token: str


class PersonChange(Given):
    role: Role | None = None
    active: bool | None = None


class NewInvitation(Given):
    """`user_id`: the link gives that account a new password instead of making one."""

    role: Role = "reviewer"
    hours: Annotated[float, Field(gt=0, le=720)] = 24
    user_id: int | None = None


class Invited(BaseModel):
    """Shown once."""

    token: str
    url: str


class NewToken(Given):
    name: str
    scopes: list[Literal["read", "write", "admin"]]
    days: Annotated[int, Field(ge=1, le=366)] = 90


class Token(Row):
    id: int
    user_id: int
    name: str
    scopes: list[str]
    created: datetime.datetime
    expires: datetime.datetime | None


class MadeToken(BaseModel):
    """Shown once."""

    token: str


# --- cases ----------------------------------------------------------------------------------------


class NewCase(Given):
    pseudonym: str
    slide: str = ""
    stain: str = ""
    notes: str = ""
    pixel_size: PixelSize = None
    """Micrometres; by default the server's setting, null: unknown."""


class CaseChange(Given):
    revision_seen: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    pseudonym: str | None = None
    slide: str | None = None
    stain: str | None = None
    notes: str | None = None
    pixel_size: PixelSize = None


class Case(Row):
    id: str
    pseudonym: str
    slide: str
    stain: str
    notes: str
    pixel_size: float | None
    state: Literal["open", "signed"]
    version: int
    revision: int
    model_id: int
    created_by: int
    created: datetime.datetime


class CaseLine(Row):
    id: str
    pseudonym: str
    slide: str
    stain: str
    state: Literal["open", "signed"]
    version: int
    revision: int
    created: datetime.datetime
    created_by: str
    model: str
    model_version: str
    cells: int
    doubtful: int
    novel: int
    reviewed: int


class Cases(BaseModel):
    cases: list[CaseLine]


class Model(Row):
    """A model that was ever served here."""

    id: int
    name: str
    version: str
    sha256: str
    contract_sha256: str
    first_served: datetime.datetime
    classes: list[str]
    served: bool


class Models(BaseModel):
    models: list[Model]


class Job(Row):
    id: str
    kind: str
    case_id: str | None
    state: Literal["waiting", "running", "done", "failed"]
    done: int
    total: int
    error: str
    created: datetime.datetime
    changed: datetime.datetime


class Jobs(BaseModel):
    jobs: list[Job]


# --- uploads --------------------------------------------------------------------------------------


class NewUpload(Given):
    """A file that will come. kind: what an image shows; auto has that found out."""

    name: str
    size: int
    kind: Literal["auto", "cell", "field"] = "auto"


class Upload(Row):
    """A file on its way, `received` bytes of it; `duplicate_of`: the upload it equals."""

    id: str
    case_id: str
    parent_id: str | None
    name: str
    kind: str
    size: int
    received: int
    sha256: str | None
    state: Literal["receiving", "received", "done", "failed", "duplicate"]
    width: int | None
    height: int | None
    error: str
    duplicate_of: str | None = None
    created: datetime.datetime


class Uploads(BaseModel):
    uploads: list[Upload]


# --- cells ----------------------------------------------------------------------------------------


class Cell(BaseModel):
    """A cell as a reviewer sees it; `shown` is the reviewer's label or the predicted class."""

    id: int
    upload_id: str
    field_name: str
    x: int | None
    y: int | None
    box_width: int | None
    box_height: int | None
    width: int
    height: int
    sha256: str
    quality: list[str]
    label: str | None
    shown: str
    comment: str
    revision: int
    model_id: int
    predicted: str
    confidence: float
    probs: dict[str, float]
    prediction_set: list[str]
    novelty: float | None
    flag: Literal["", "doubtful", "novel"]


class Cells(BaseModel):
    """In the order of looking: by class, flagged and least confident ones first."""

    revision: int
    state: Literal["open", "signed"]
    version: int
    cells: list[Cell]


class Reading(Row):
    """What one model said of a cell."""

    model_id: int
    predicted: str
    confidence: float
    probs: dict[str, float]
    prediction_set: list[str]
    novelty: float | None
    flag: str
    created: datetime.datetime


class Readings(BaseModel):
    readings: list[Reading]


class Reference(BaseModel):
    """A cell that shows what a class looks like; without case and cell it is the laboratory's."""

    cell_id: int | None
    case_id: str | None
    pseudonym: str | None
    confidence: float | None
    distance: float | None
    """How unlike the cell in question it is for the model, null where that isn't known."""
    url: str


class References(BaseModel):
    references: list[Reference]


class Change(BaseModel):
    """One act: by whom, and the label that all its cells got, if it was one."""

    revision: int
    kind: Literal["label", "comment", "undo", "redo", "sign", "amend", "read", "edit"]
    by: str
    at: datetime.datetime
    label: str | None
    cells: list[int]


class Changes(BaseModel):
    """What happened after a revision, the cells that it touched, and what can be taken back."""

    revision: int
    state: Literal["open", "signed"]
    version: int
    undo: bool
    redo: bool
    changes: list[Change]
    cells: list[Cell]


class Acted(BaseModel):
    """What was done, and the cells as they are now."""

    revision: int
    undo: bool
    redo: bool
    change: Change
    cells: list[Cell]


class Erasure(Given):
    """reason: why, without naming a patient; it is kept."""

    reason: str


class Erased(BaseModel):
    """How many image files were deleted; those that other cases show, too, stay."""

    files: int


class NewLabels(Given):
    label: str
    cells: Seen


class Confirmed(Given):
    cells: Seen


class NewComment(Given):
    text: str
    revision_seen: Revision


class Share(BaseModel):
    """Cells of a class; its share of the leukocytes with a 95 % interval, null beside them."""

    name: str
    count: int
    share: float | None
    low: float | None
    high: float | None


class Agreement(BaseModel):
    """How often model and reviewer say the same; kappa null with its reason."""

    n: int
    agreed: int
    share: float | None
    low: float | None
    high: float | None
    kappa: float | None
    reason: str


class Differential(BaseModel):
    """`apart`: cells that a reviewer took out of the count."""

    revision: int
    model: list[Share]
    reviewer: list[Share]
    agreement: Agreement
    """Over all cells: those that nobody has looked at count as agreed."""
    looked_at: Agreement
    """Over the cells that a reviewer has labelled or confirmed."""
    apart: dict[str, int]


# --- signing, oversight ---------------------------------------------------------------------------


class NewSignature(Given):
    revision_seen: Revision
    password: str


class Amendment(Given):
    reason: str


class Signature(Row):
    version: int
    user_id: int
    model_id: int
    reason: str
    sha256: str
    at: datetime.datetime


class Signatures(BaseModel):
    signatures: list[Signature]


class SignedContent(Signature):
    """A signature with everything that was signed."""

    content: dict[str, Any]


class Entry(Row):
    """A line of the audit log; `details` is JSON text, exactly as hashed."""

    id: int
    at: str
    user: str
    action: str
    case_id: str | None
    model_sha256: str
    contract_sha256: str
    details: str
    previous: str
    sha256: str


class Entries(BaseModel):
    entries: list[Entry]


class Verdict(Row):
    """Whether the chain is whole; `head`, noted elsewhere, proves later that it is."""

    entries: int
    intact: bool
    first_broken: int | None
    head: str


class Estimate(Row):
    """A value with its 99 % interval; null with its reason where it is undefined."""

    value: float | None
    low: float | None
    high: float | None
    reason: str


class Period(Row):
    """One day or week; shifts are in standard deviations of the validation images."""

    start: datetime.date
    cases: int
    cells: int
    flagged: int
    agreement: Estimate
    confidence: Estimate
    confidence_shift: Estimate
    novelty_shift: Estimate
    novel: Estimate
    alarms: list[str]


class Quality(BaseModel):
    """`rule`: when there is an alarm, in words."""

    model_id: int
    unit: Literal["day", "week"]
    rule: str
    periods: list[Period]


class Health(BaseModel):
    """The server is alive; which model it serves."""

    status: Literal["ok"]
    version: str
    model: str


class Ready(BaseModel):
    """The parts that work: all of them, or the answer is another one."""

    database: Literal["ok"]
    folder: Literal["ok"]
    model: Literal["ok"]
    worker: Literal["ok"]
