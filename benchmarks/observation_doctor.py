"""What examining an observation costs, beside reading and checking it.

Run from the repository root: `python -m benchmarks.observation_doctor [--out FILE]`. All three are measured
in turn, on real LIBERO observations with two 224x224 images, so that the ratio holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import time

from vlad_configs.environments import ENVIRONMENTS
from vlad_engines.fidelity.observations import recorded_observations
from vlad_server import wire
from vlad_server.doctor.doctor import SAMPLED
from vlad_server.doctor.examination import History, examine

OBSERVATIONS = pathlib.Path(__file__).parents[1] / "examples" / "data" / "libero_observations.npz"


def measure(rounds: int) -> dict[str, float]:
    """Medians in microseconds, and their ratio."""
    robot = ENVIRONMENTS["LIBERO"]
    messages = [wire.encode(observation) for observation in recorded_observations(OBSERVATIONS, robot)]
    history = History()
    decode, check, examination = [], [], []
    for number in range(rounds):
        message = messages[number % len(messages)]
        started = time.perf_counter()
        observation = wire.decode(message)
        decoded = time.perf_counter()
        robot.check(observation, prompt_optional=False)
        checked = time.perf_counter()
        examine(robot, observation, history)
        examined = time.perf_counter()
        decode.append(decoded - started)
        check.append(checked - decoded)
        examination.append(examined - checked)
    medians = [1e6 * statistics.median(times[rounds // 10 :]) for times in (decode, check, examination)]
    return {
        "decode_us": round(medians[0], 1),
        "check_us": round(medians[1], 1),
        "examine_us": round(medians[2], 1),
        "examine_over_decode_and_check": round(medians[2] / (medians[0] + medians[1]), 2),
        "examine_us_per_request_when_sampled": round(medians[2] / SAMPLED, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20000)
    parser.add_argument("--out", type=pathlib.Path, help="write the result as JSON")
    args = parser.parse_args()
    machine = {"cpu_count": os.cpu_count(), "arch": platform.machine(), "python": platform.python_version()}
    result = {
        "command": "python -m benchmarks.observation_doctor",
        "machine": machine,
        "result": measure(args.rounds),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
