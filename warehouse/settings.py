"""Settings as frozen models, a class for each section.

Owns the names, defaults and ranges of every setting. Reads nothing but the files that hold passwords, and those when asked;
where the values come from is in settings_file.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from warehouse.errors import SettingsError

ENV_PREFIX = "TAILRACE__"

Port = Annotated[int, Field(ge=1, le=65535)]
Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
TablePattern = Annotated[str, Field(pattern=r"^[^.\s]+\.[^.]+$")]
ColumnName = Annotated[str, Field(pattern=r"^[^.\s]+\.[^.]+\.[^.]+$")]
HostName = Annotated[str, Field(pattern=r"^([^\s:,\[\]]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?$")]


class Section(BaseModel):
    """One table of the TOML file: unknown keys are refused and values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, hide_input_in_errors=False)


class Login(Section):
    """Host, user and password of a server; the password comes from the environment or a file, best not from the TOML."""

    host: str = "127.0.0.1"
    user: str = Field(min_length=1)
    password: SecretStr | None = Field(default=None, description="best given as an environment variable")
    password_file: Path | None = Field(default=None, description="a file that holds nothing but the password")
    connect_timeout_s: float = Field(default=10, gt=0, le=600)

    @model_validator(mode="after")
    def one_secret(self) -> Self:
        """Refuse a password given twice."""
        if self.password is not None and self.password_file is not None:
            raise ValueError("give password or password_file, not both")
        return self

    def read_password(self) -> str:
        """The password, from the setting or from its file.

        Raises:
            SettingsError: neither is given, or the file cannot be read.
        """
        section = type(self).__name__.removesuffix("Settings").lower()
        if self.password is not None:
            return self.password.get_secret_value()
        if self.password_file is None:
            raise SettingsError(
                f"{section}.password is missing",
                hint=f"Set {ENV_PREFIX}{section.upper()}__PASSWORD, or {section}.password_file in the settings file.",
            )
        try:
            return self.password_file.read_text().rstrip("\r\n")
        except OSError as error:
            raise SettingsError(f"{section}.password_file cannot be read: {error.strerror}", path=self.password_file) from error


class SourceSettings(Login):
    """The MySQL or MariaDB server that is read, and what is read from it."""

    name: Identifier = Field(default="plant", description="the source's name in warehouse.sources")
    port: Port = 3306
    hosts: tuple[HostName, ...] = Field(
        default=(),
        description="several servers of one replication set, HOST or HOST:PORT, in place of host: the first that has all that"
        " the mirror has is read, and after it fails the next",
    )
    user: str = Field(default="tailrace", min_length=1)
    tables: tuple[TablePattern, ...] = Field(
        default=("plant.asset_readings_%",),
        min_length=1,
        description="database.table, with the wildcards % and _ of LIKE",
    )
    excluded_columns: tuple[ColumnName, ...] = Field(
        default=(), description="database.table.column: columns that stay NULL in the mirror, passwords for instance"
    )
    schema_prefix: str = Field(
        default="",
        pattern=r"^([a-z][a-z0-9_]{0,30})?$",
        description="what the schemas of new mirrors begin with, before the database's name; tells two sources apart",
    )
    server_id: int = Field(
        default=7201,
        ge=1,
        le=4294967295,
        description="the id that this replica registers with; unique among all replicas",
    )
    tls: Literal["off", "required", "verify"] = Field(
        default="off", description="required encrypts, verify also checks the certificate and the host name"
    )
    tls_ca: Path | None = Field(default=None, description="certificate authority for tls = verify; default: the system's")
    heartbeat_s: float = Field(
        default=5,
        ge=0.1,
        le=300,
        description="how often the idle server says that it lives; three missed end the connection",
    )

    @property
    def servers(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every server, in the order in which they are tried."""
        return tuple(_split_host(name, self.port) for name in self.hosts) or ((self.host, self.port),)


def _split_host(name: str, port: int) -> tuple[str, int]:
    host, colon, given = name.rpartition(":")
    if not colon or name.endswith("]"):
        host, given = name, ""
    return host.strip("[]"), int(given) if given else port


class WarehouseSettings(Login):
    """The Postgres server that holds the mirror, the views and the scores."""

    port: Port = 5432
    user: str = Field(default="tailrace", min_length=1)
    dbname: str = Field(default="warehouse", min_length=1, max_length=63)
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    sslrootcert: Path | None = None


class ReplicatorSettings(Section):
    """How the stream is read and applied."""

    linger_ms: float = Field(default=5, ge=0, le=10_000, description="how long a small batch may wait for more transactions")
    batch_rows: int = Field(default=20_000, ge=1, le=10_000_000, description="a batch is applied once it holds so many rows")
    batch_bytes: int = Field(default=16 << 20, ge=1 << 16, le=1 << 32)
    takeover_s: float = Field(
        default=2.5,
        ge=1,
        le=3600,
        description="a standby ends the session of a replicator that has shown no sign of life for so long; one that ended is"
        " followed at once",
    )
    checkpoint_idle_s: float = Field(default=10, ge=0.1, le=3600, description="how often an idle stream's position is saved")
    dropped_columns: Literal["keep", "drop"] = Field(
        default="keep", description="whether a column that the source drops stays in the mirror, with the values that it had"
    )
    lock_patience_s: float = Field(
        default=60,
        ge=0,
        le=86_400,
        description="how long the stream waits where a mirror must be altered that somebody reads; then it goes on without that"
        " table, which is copied afresh",
    )
    snapshot_readers: int = Field(default=2, ge=1, le=32, description="how many ranges of source tables are read at once")
    snapshot_page_rows: int = Field(
        default=50_000, ge=1, le=10_000_000, description="the most rows of one SELECT of a copy; fewer where it takes long"
    )
    snapshot_slice_rows: int = Field(
        default=2_000, ge=1, le=1_000_000, description="so many copied rows are written at once while the stream is busy"
    )
    snapshot_max_rows_per_s: float | None = Field(
        default=None, gt=0, description="copies read no faster; none: as fast as they can"
    )
    snapshot_max_threads_running: int | None = Field(
        default=None, ge=1, description="copies wait while more threads than these run at the source; none: they never do"
    )
    snapshot_max_lag_ms: float = Field(
        default=5_000, gt=0, description="while the stream is further behind, copies are written only now and then"
    )


class VerifySettings(Section):
    """The comparison of mirrors with the source; what somebody asks for is compared at once, whatever stands here."""

    every_s: float | None = Field(
        default=None, ge=1, description="each table is compared so often, while the stream runs; none: only when somebody asks"
    )
    rows_per_s: float = Field(default=20_000, gt=0, description="the most rows that are read per second, on either side")
    chunk_rows: int = Field(default=20_000, ge=1, le=1_000_000, description="rows that are compared at once")
    repair: bool = Field(default=False, description="write rows again that differ from the source without a change on its way")
    busy_threads: int = Field(
        default=32, ge=1, description="no chunk is begun while the source runs so many statements (Threads_running)"
    )


class RetentionSettings(Section):
    """How long records are kept; the replicator prunes them."""

    deleted_rows_days: float | None = Field(
        default=30, gt=0, description="of deletions, once every model has seen them; none: for ever"
    )
    state_changes_days: float | None = Field(default=90, gt=0, description="of changes of state; none: for ever")
    verifications_days: float | None = Field(
        default=90, gt=0, description="of comparisons with the source and the drift they found, but for the last of each table"
    )
    anomalies_days: float | None = Field(
        default=None, gt=0, description="of anomalies that belong to no open incident; none: for ever"
    )
    incidents_days: float | None = Field(
        default=None, gt=0, description="of closed incidents with their anomalies, by when they closed; none: for ever"
    )


class RefreshSettings(Section):
    """The materialized views of the schema analytics."""

    interval_s: float = Field(default=5, ge=0.1, le=86_400)
    directory: Path | None = Field(default=None, description="a folder of your own view files, read after the shipped ones")
    shipped: bool = Field(default=True, description="create the views that come with Tailrace")


class ScorerSettings(Section):
    """When and how new rows are scored."""

    interval_s: float = Field(
        default=1, ge=0.05, le=3600, description="scoring is woken by NOTIFY; this is the timer beside it"
    )
    batch_rows: int = Field(default=5_000, ge=1, le=1_000_000)
    checkpoint_rows: int = Field(
        default=20_000, ge=1, le=10_000_000, description="rows after which the forest of a model that learns is saved"
    )
    forests_in_memory: int = Field(
        default=64, ge=1, le=100_000, description="of a model with forest_per entity; the others are parked in the warehouse"
    )
    threads: int = Field(default=1, ge=1, le=256)
    retention_days: float | None = Field(default=None, gt=0, description="scores older than this are pruned; none: kept")


class ModelSettings(Section):
    """A model, as scorer.create_model takes it; created or updated when the scorer starts."""

    name: Identifier
    relation: str = Field(
        pattern=r"^$|^\s*[^.,\s]+\.[^.,]+(,\s*[^.,\s]+\.[^.,]+)*$",
        description="the mirror tables whose rows are scored: schema.table, with % and _ of LIKE, several separated by commas;"
        ' "" for a model that is only asked in SQL',
    )
    training_query: str = Field(min_length=1, description="a SELECT that yields at least the feature columns")
    features: tuple[str, ...] = Field(min_length=1)
    entity: str | None = None
    order: str | None = None
    trees: int = Field(default=100, ge=1, le=1000)
    samples: int = Field(default=256, ge=10, le=2048)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    scale: Literal["robust", "none"] = "robust"
    threshold: Literal["sigma", "quantile", "adaptive", "budget"] = "sigma"
    threshold_value: float | None = Field(
        default=None, gt=0, description="k of mean + k sigma, the quantile or the share (0 to 1); none: the default of the kind"
    )
    policy: Literal["frozen", "gated", "streaming"] = Field(default="frozen", description="which rows the forest learns")
    shingle: int = Field(default=1, ge=1, le=128, description="rows of an entity that make one point")
    baseline_rows: int = Field(default=0, ge=0, le=10_000, description="first rows of an entity that make its own level")
    direction: Literal["both", "high", "low"] = Field(default="both", description="which anomalies are wanted")
    forest_per: Literal["model", "entity"] = Field(
        default="model", description="entity: a forest for each entity with rows enough, the pooled one for the others"
    )
    parameters: dict[str, int | float | str] = Field(
        default={}, description="any other parameter of scorer.create_model, under its name there"
    )

    @model_validator(mode="after")
    def quantile_in_range(self) -> Self:
        """Refuse a quantile of 1 or more."""
        if self.threshold == "quantile" and (self.threshold_value or 0) >= 1:
            raise ValueError("threshold_value is a quantile here and must be below 1")
        return self


class RetrySettings(Section):
    """What happens while a server is down."""

    budget_s: float = Field(default=300, ge=0, le=10_000_000, description="how long without any progress before exit 75")
    first_wait_s: float = Field(default=0.2, gt=0, le=60)
    longest_wait_s: float = Field(default=15, gt=0, le=3600)


class LogSettings(Section):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """The whole file."""

    source: SourceSettings = SourceSettings()
    warehouse: WarehouseSettings = WarehouseSettings()
    replicator: ReplicatorSettings = ReplicatorSettings()
    verify: VerifySettings = VerifySettings()
    retention: RetentionSettings = RetentionSettings()
    refresh: RefreshSettings = RefreshSettings()
    scorer: ScorerSettings = ScorerSettings()
    model: tuple[ModelSettings, ...] = ()
    retry: RetrySettings = RetrySettings()
    log: LogSettings = LogSettings()

    @field_validator("model")
    @classmethod
    def names_differ(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        """Refuse two models of one name."""
        names = [model.name for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two models have the name {', '.join(twice)}")
        return models
