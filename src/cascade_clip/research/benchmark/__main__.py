"""One benchmark in its own process: takes the JSON of `Work`, or `peak`; prints a line of JSON."""

import json
import sys

import torch

from cascade_clip.research.benchmark.work import Work, matmul_peak, time_work


def main(argument: str) -> None:
    """Do the work."""
    if argument == "peak":
        found = {"fp32": matmul_peak(torch.float32), "bf16": matmul_peak(torch.bfloat16)}
    else:
        found = time_work(Work(**json.loads(argument)))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
