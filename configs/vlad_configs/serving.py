"""How the daemon serves: one frozen dataclass, filled by the command line or by hand."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vlad_configs.access import AccessConfig
from vlad_configs.environments import ENVIRONMENTS, Environment
from vlad_configs.errors import ConfigError
from vlad_configs.precision import parse_precision
from vlad_configs.pruning import TokenPruning

BackendName = Literal["pytorch", "triton", "triton_pipelined", "tensorrt", "tensorrt_pipelined"]

MAX_BATCH_SIZE = 16
MIN_MESSAGE_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 1 << 30
MIN_HANG_S = 0.1
MIN_RECORD_FILE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Everything that `serve_policy` needs to know, checked.

    Attributes:
        environment: a name of `ENVIRONMENTS`.
        checkpoint: a checkpoint directory, `demo`, or `random:pi05` (random weights) and its kin.
        openpi_config: a name of `OPENPI_CONFIGS`, or None to derive the contract.
        default_prompt: used for requests without one.
        num_steps: denoising steps; None for the checkpoint's own.
        precision: as `parse_precision` reads it; None for the usual one, which the metadata then names.
        device: torch device; None for the GPU where there is one.
        batch_sizes: how many requests may share one computation; 1 is always possible. Only for backends that
            compute batches.
        devices: torch devices, with an engine worker on each; empty for one worker on `device`.
        engine_dir: folder of prebuilt TensorRT engines, only read; None to build what is missing.
        calibration: recording or npz file of observations for `fp8`; None for drawn ones.
        tokenizer, norm_stats: files that replace those found beside the checkpoint.
        host, port: where robots connect; port 0 picks a free one.
        metrics_port: where `/metrics` and the health paths are served as well; 0 picks a free one.
        access: who may connect, how, and how often.
        max_message_bytes: largest request.
        max_waiting: requests that may wait for a worker; what comes on top is refused as `busy`.
        session_ttl_s: seconds for which a robot's session outlives its connection.
        hang_s: seconds without an answer after which a busy engine worker is taken for stuck and replaced.
        action_limits: JSON file of limits for every chunk; None checks nothing but finiteness.
        status_page: serve the page for people at `/`.
        record_dir: where requests and replies are recorded; None records nothing.
        record_file_bytes: size at which a recording goes on in its next file.
        drain_s: seconds that requests in flight get at SIGTERM.
        send_timeout_s: seconds that a client may leave its reply unread.
        keep_connection_on_error: answer a client's mistake without closing its connection.
        debug: send tracebacks to clients.
        allow_low_fidelity: serve a backend that is too far from the float32 reference.
        token_pruning: which image tokens the prefix keeps; None for all.
    """

    environment: str
    checkpoint: str
    backend: BackendName = "pytorch"
    openpi_config: str | None = None
    default_prompt: str | None = None
    num_steps: int | None = None
    precision: str | None = None
    engine_dir: str | None = None
    calibration: str | None = None
    device: str | None = None
    batch_sizes: tuple[int, ...] = (1,)
    devices: tuple[str, ...] = ()
    tokenizer: str | None = None
    norm_stats: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int = 9100
    access: AccessConfig = dataclasses.field(default_factory=AccessConfig)
    max_message_bytes: int = 64 << 20
    max_waiting: int = 256
    session_ttl_s: float = 60.0
    hang_s: float = 60.0
    action_limits: str | None = None
    status_page: bool = True
    record_dir: str | None = None
    record_file_bytes: int = 1 << 30
    drain_s: float = 30.0
    send_timeout_s: float = 5.0
    keep_connection_on_error: bool = False
    debug: bool = False
    allow_low_fidelity: bool = False
    token_pruning: TokenPruning | None = None

    def __post_init__(self) -> None:
        if self.environment not in ENVIRONMENTS:
            raise ConfigError(
                f"unknown environment '{self.environment}'; known: {', '.join(sorted(ENVIRONMENTS))}"
            )
        if self.num_steps is not None and not 1 <= self.num_steps <= 1000:
            raise ConfigError(f"--num-steps must lie in 1..1000, not {self.num_steps}")
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError(
                    f"--{name.replace('_', '-')} must lie in 0..65535, not {getattr(self, name)}"
                )
        if self.port and self.port == self.metrics_port:
            raise ConfigError(f"--port and --metrics-port are both {self.port}; give them different ports")
        if not MIN_MESSAGE_BYTES <= self.max_message_bytes <= MAX_MESSAGE_BYTES:
            raise ConfigError(
                f"--max-message-bytes must lie in {MIN_MESSAGE_BYTES}..{MAX_MESSAGE_BYTES}, "
                f"not {self.max_message_bytes}"
            )
        if not all(1 <= size <= MAX_BATCH_SIZE for size in self.batch_sizes):
            raise ConfigError(
                f"--batch-sizes must lie in 1..{MAX_BATCH_SIZE}, not {', '.join(map(str, self.batch_sizes))}"
            )
        precisions = () if self.precision is None else parse_precision(self.precision).values()
        if self.engine_dir is not None and not self.backend.startswith("tensorrt"):
            raise ConfigError(f"--engine-dir is for TensorRT's backends, not for '{self.backend}'")
        if self.calibration is not None and "fp8" not in precisions:
            raise ConfigError("--calibration is for --precision fp8")
        if self.calibration is not None and self.engine_dir is not None:
            raise ConfigError("engines of --engine-dir are calibrated already: leave --calibration out")
        if self.devices and self.device is not None:
            raise ConfigError("--device and --devices contradict each other; give one of them")
        if self.max_waiting < 1:
            raise ConfigError(f"--max-waiting must be at least 1, not {self.max_waiting}")
        if self.record_dir == "":
            raise ConfigError("--record needs a directory, not an empty text")
        if self.record_file_bytes < MIN_RECORD_FILE_BYTES:
            raise ConfigError(
                f"--record-file-bytes must be at least {MIN_RECORD_FILE_BYTES}, not {self.record_file_bytes}"
            )
        if self.session_ttl_s < 0:
            raise ConfigError(f"--session-seconds must not be negative, not {self.session_ttl_s}")
        if not self.hang_s >= MIN_HANG_S:
            raise ConfigError(f"--hang-seconds must be at least {MIN_HANG_S}, not {self.hang_s}")
        if self.drain_s < 0 or self.send_timeout_s <= 0:
            raise ConfigError("drain_s must not be negative and send_timeout_s must be positive")

    @property
    def worker_devices(self) -> tuple[str | None, ...]:
        """The device of each engine worker; None for the GPU where there is one."""
        return self.devices or (self.device,)

    @property
    def robot(self) -> Environment:
        """The environment that `environment` names."""
        return ENVIRONMENTS[self.environment]

    def policy_options(self, device: str | None) -> dict[str, object]:
        """For one engine worker: the arguments of `UnifiedPolicy`, and `allow_low_fidelity`.

        Args:
            device: torch device; None for the GPU where there is one.
        """
        return {
            "checkpoint_dir": self.checkpoint,
            "backend": self.backend,
            "num_denoising_steps": self.num_steps,
            "env": self.environment,
            "config": self.openpi_config,
            "precision": self.precision,
            "engine_dir": self.engine_dir,
            "calibration": self.calibration,
            "device": device,
            "batch_sizes": sorted({1, *self.batch_sizes}),
            "tokenizer": self.tokenizer,
            "norm_stats": self.norm_stats,
            "default_prompt": self.default_prompt,
            "allow_low_fidelity": self.allow_low_fidelity,
            "token_pruning": None if self.token_pruning is None else self.token_pruning.to_json(),
        }
