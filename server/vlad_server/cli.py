"""The command `serve_policy`: openpi's command line and what the daemon adds to it."""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
import sys
from collections.abc import Sequence

import tyro
import uvloop

from vlad_configs.access import AccessConfig
from vlad_configs.errors import ConfigError
from vlad_configs.pruning import Positions, PruningMode, pruning_of_options
from vlad_configs.serving import BackendName, ServeConfig
from vlad_server import logs
from vlad_server.app import serve_policy
from vlad_server.checkpoint_choice import choose_checkpoint

API_KEY_VARIABLE = "VLAD_API_KEY"
RECORD_DIRECTORY = "policy_records"


class EnvMode(enum.Enum):
    """Robots that can be served."""

    ALOHA = "ALOHA"
    ALOHA_SIM = "ALOHA_SIM"
    DROID = "DROID"
    LIBERO = "LIBERO"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Serve a checkpoint directory under one of openpi's configuration names."""

    config: str
    """Configuration name, such as pi05_libero."""
    dir: str
    """Checkpoint directory."""


@dataclasses.dataclass(frozen=True)
class Default:
    """Serve --checkpoint, or else the published checkpoint of the environment."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Serve a pi0 / pi0.5 policy to robots over a websocket."""

    env: EnvMode | None = None
    """Robot; ALOHA_SIM where neither this nor a policy is named."""
    checkpoint: str | None = None
    """Checkpoint directory (openpi PyTorch or LeRobot, told apart by content), `demo`, or `random:pi05`."""
    backend: BackendName = "pytorch"
    """Engine that runs the policy; what is named here runs, or the start fails."""
    num_steps: int | None = None
    """Denoising steps; the checkpoint's own number (10 for published ones) where not given."""
    precision: str | None = None
    """fp32, tf32, bf16 or fp8, or one for each part, such as vision=fp16,prefix=tf32,denoise=tf32; bf16 on a
    GPU and fp32 on a CPU where not given."""
    engine_dir: str | None = None
    """Folder of prebuilt TensorRT engines, which is only read; nothing is built then."""
    calibration: str | None = None
    """Recording (mcap) or npz file that tells fp8 the size of activations; drawn ones where not given."""
    device: str | None = None
    """Torch device; the first GPU, or else the CPU, where not given."""
    devices: str | None = None
    """Several devices, an engine worker on each: numbers of GPUs or torch devices, such as `0,1`."""
    batch_sizes: str | None = None
    """How many requests may share one computation, such as `1,2,4,8`; for backends that compute batches."""
    keep_tokens: int | None = None
    """Token pruning: how many image tokens the prefix keeps, of all cameras together; all where not given."""
    keep_ratio: float | None = None
    """The same as a share of the image tokens, above 0 and at most 1."""
    pruning_mode: PruningMode = "fixed"
    """`fixed` fills every slot, `union` keeps only tokens with a vote and masks the other slots."""
    pruning_positions: Positions = "original"
    """Whether kept tokens stay where they were (`original`) or move together (`compact`)."""
    default_prompt: str | None = None
    """Prompt for requests that carry none."""
    tokenizer: str | None = None
    """SentencePiece model; looked for beside the checkpoint and in OPENPI_DATA_HOME where not given."""
    norm_stats: str | None = None
    """norm_stats.json; looked for in the checkpoint where not given."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 admits other machines."""
    port: int = 8000
    """Policy port: websocket and health paths; 0 picks a free one."""
    metrics_port: int = 9100
    """Port of /metrics and the health paths; 0 picks a free one."""
    api_key: str | None = None
    """Key that clients must present; better given in the variable VLAD_API_KEY, which `ps` does not show."""
    api_key_file: str | None = None
    """File with several keys, a line each: a name and a key, or a key alone; read again at SIGHUP."""
    require_key: bool = False
    """Refuse to start without a key."""
    tls_cert: str | None = None
    """Certificate chain (PEM); with --tls-key the policy port speaks TLS only. Read again at SIGHUP."""
    tls_key: str | None = None
    """Private key (PEM) of --tls-cert."""
    tls_client_ca: str | None = None
    """Authorities (PEM); clients must then show a certificate that one of them signed."""
    allow_origin: str | None = None
    """Web pages that may open a websocket, such as `https://lab.example`, with commas in between."""
    max_connections: int = 256
    """Websockets that may be open at once."""
    max_requests_per_second: float | None = None
    """Of one client, by key of --api-key-file or else by address; any number where not given."""
    status_page: bool = True
    """Serve the page for people at `/`; --no-status-page for 426 as openpi's server has it."""
    max_message_bytes: int = 64 << 20
    """Largest request in bytes."""
    max_waiting: int = 256
    """Requests that may wait for the engine; what comes on top is refused as busy."""
    session_seconds: float = 60.0
    """How long the session of a robot that names one outlives its connection."""
    hang_seconds: float = 60.0
    """How long a busy engine worker may say nothing before it is killed and replaced."""
    action_limits: str | None = None
    """JSON file of limits that every chunk is held against before it is sent."""
    drain_seconds: float = 30.0
    """How long requests in flight may take after SIGTERM."""
    keep_connection_on_error: bool = False
    """Answer a client's mistake without closing its connection (openpi closes it)."""
    record: str | None = None
    """Directory for MCAP files of all requests and replies; `policy_records` where only --record is given."""
    record_file_bytes: int = 1 << 30
    """Size at which a recording goes on in its next file."""
    allow_low_fidelity: bool = False
    """Serve a backend that is too far from the float32 reference; metadata and metrics then say so."""
    debug: bool = False
    """Send tracebacks to clients."""

    policy: Checkpoint | Default = dataclasses.field(default_factory=Default)
    """Which policy to serve."""


def parse(arguments: Sequence[str]) -> Args:
    """Parse a command line; exits with a usage message where it is wrong."""
    return tyro.cli(Args, prog="serve_policy", args=_subcommand_last(_record_somewhere(arguments)))


def serve_config(args: Args, variables: dict[str, str]) -> ServeConfig:
    """Turn parsed arguments and the process environment into a checked configuration.

    Raises:
        ConfigError: for contradictions, unknown names, and where there is nothing to serve.
    """
    policy = (args.policy.config, args.policy.dir) if isinstance(args.policy, Checkpoint) else None
    choice = choose_checkpoint(
        checkpoint=args.checkpoint,
        environment=args.env.name if args.env else None,
        policy=policy,
        variables=variables,
    )
    return ServeConfig(
        environment=choice.environment,
        checkpoint=choice.checkpoint,
        openpi_config=choice.config,
        backend=args.backend,
        default_prompt=args.default_prompt,
        num_steps=args.num_steps,
        precision=args.precision,
        engine_dir=args.engine_dir,
        calibration=args.calibration,
        device=args.device,
        devices=_devices(args.devices),
        batch_sizes=_batch_sizes(args.batch_sizes),
        tokenizer=args.tokenizer,
        norm_stats=args.norm_stats,
        host=args.host,
        port=args.port,
        metrics_port=args.metrics_port,
        access=AccessConfig(
            api_key=args.api_key if args.api_key is not None else variables.get(API_KEY_VARIABLE),
            api_key_file=args.api_key_file,
            require_key=args.require_key,
            tls_certificate=args.tls_cert,
            tls_key=args.tls_key,
            tls_client_ca=args.tls_client_ca,
            allowed_origins=_names(args.allow_origin),
            max_connections=args.max_connections,
            max_requests_per_s=args.max_requests_per_second,
        ),
        max_message_bytes=args.max_message_bytes,
        max_waiting=args.max_waiting,
        session_ttl_s=args.session_seconds,
        hang_s=args.hang_seconds,
        action_limits=args.action_limits,
        status_page=args.status_page,
        record_dir=args.record,
        record_file_bytes=args.record_file_bytes,
        drain_s=args.drain_seconds,
        keep_connection_on_error=args.keep_connection_on_error,
        debug=args.debug,
        allow_low_fidelity=args.allow_low_fidelity,
        token_pruning=pruning_of_options(
            args.keep_tokens, args.keep_ratio, args.pruning_mode, args.pruning_positions
        ),
    )


def _devices(listed: str | None) -> tuple[str, ...]:
    if listed is None:
        return ()
    names = [name.strip() for name in listed.split(",")]
    if not all(names):
        raise ConfigError(f"--devices must be names with commas in between, such as 0,1, not '{listed}'")
    return tuple(f"cuda:{name}" if name.isdecimal() else name for name in names)


def _names(listed: str | None) -> tuple[str, ...]:
    return () if listed is None else tuple(name.strip() for name in listed.split(","))


def _batch_sizes(listed: str | None) -> tuple[int, ...]:
    sizes = [] if listed is None else [size.strip() for size in listed.split(",")]
    if not all(size.isdecimal() for size in sizes):
        raise ConfigError(
            f"--batch-sizes must be numbers with commas in between, such as 1,2,4, not '{listed}'"
        )
    return tuple(map(int, sizes)) or (1,)


def _record_somewhere(arguments: Sequence[str]) -> list[str]:
    """Understand the switch that openpi has: --record alone means the usual directory."""
    given = [argument for argument in arguments if argument != "--no-record"]
    for index in range(len(given) - 1, -1, -1):
        following = given[index + 1] if index + 1 < len(given) else "--"
        if given[index] == "--record" and following.startswith(("--", "policy:")):
            given.insert(index + 1, RECORD_DIRECTORY)
    return given


def _subcommand_last(arguments: Sequence[str]) -> list[str]:
    """Move the subcommand and its options to the end, so that other options may stand anywhere."""
    first: list[str] = []
    subcommand: list[str] = []
    options: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("policy:checkpoint", "policy:default"):
            subcommand.append(argument)
        elif argument.startswith("--policy."):
            options.append(argument)
            if "=" not in argument:
                options.extend([value for value in [next(rest, None)] if value is not None])
        else:
            first.append(argument)
    return [*first, *subcommand, *options]


def main() -> None:
    """Entry point of `serve_policy`."""
    args = parse(sys.argv[1:])
    logs.configure(logging.DEBUG if args.debug else logging.INFO)
    try:
        sys.exit(uvloop.run(serve_policy(serve_config(args, dict(os.environ)))))
    except ConfigError as error:
        print(f"serve_policy: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
