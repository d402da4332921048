"""Distillation of random memberships of random networks: how many results are invalid, and how far outputs differ.

A case is a network of two to four layers of nodes with random weights and statistics of normalization, linear or with
convolutions, with one to six clusters and memberships from sparse to dense, distilled with a random threshold and with
or without merging small groups. Checks: every group has inputs and reaches a class, every class occurs once, the
architecture survives a round trip through JSON, its hash does not depend on the order of clusters and groups, and it
costs no more than the dense network; the branched network, both in training form and in inference form (batch
normalization folded in), gives the logits of the masked one within 1e-10 in float64 and 1e-4 in float32. The checks are
those of ``tests/nas_blockout/structure/test_random_memberships.py``, on new cases.

Run: ``python -m benchmarks.memberships [--cases 10000] [--seed 0]``; prints a Markdown table; exits with 1 if any case
is invalid or unequal.
"""

import argparse
import random
import sys
import time
from collections import Counter

import torch

from nas_blockout.backbones import dense_of
from nas_blockout.backbones.branched import macs_of
from nas_blockout.structure.distill import TOLERANCE, distill, harden
from tests.nas_blockout.structure.test_random_memberships import (
    Case,
    check_structure,
    differences,
    masked_network,
    plan_of,
)


def drawn(generator: random.Random) -> Case:
    """Return a random case from the same ranges as those of the test."""
    return Case(
        seed=generator.randrange(1_000_000),
        linear=generator.random() < 0.5,
        widths=tuple(generator.randint(1, 12) for _ in range(generator.randint(2, 4))),
        clusters=generator.randint(1, 6),
        masked=generator.choice(["head", "all"]),
        normalize=generator.random() < 0.5,
        prior=generator.uniform(-3, 3),
        spread=generator.uniform(0.1, 4),
        threshold=generator.uniform(0.01, 0.99),
        min_group_size=generator.randint(1, 4),
    )


def examined(case: Case) -> dict[tuple[str, str, str], float]:
    """Return the largest differences of a case, by kind of network, form and precision.

    Raises:
        AssertionError: What is distilled is no valid architecture.
    """
    plan, shape = plan_of(case)
    model = masked_network(case, plan, shape[0])
    p = {name: value.detach() for name, value in model.probabilities().items()}
    distilled = distill(p, harden(p, case.threshold), min_group_size=case.min_group_size)
    check_structure(distilled)
    assert macs_of(distilled.architecture, plan, shape[0]) <= macs_of(dense_of(plan), plan, shape[0])
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(case.seed), dtype=torch.float64)
    kind = "linear" if case.linear else "convolution"
    return {
        (kind, form, str(dtype).removeprefix("torch.")): difference
        for dtype in TOLERANCE
        for form, difference in differences(model.to(dtype), distilled, plan, x.to(dtype)).items()
    }


def main() -> int:
    """Check all cases and print the results; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator, began = random.Random(options.seed), time.process_time()
    bounds = {str(dtype).removeprefix("torch."): bound for dtype, bound in TOLERANCE.items()}
    worst: dict[tuple[str, str, str], float] = {}
    counts: Counter[str] = Counter()
    for number in range(options.cases):
        case = drawn(generator)
        counts["linear" if case.linear else "convolution"] += 1
        try:
            differences = examined(case)
        except AssertionError as error:
            counts["invalid"] += 1
            print(f"invalid: {case}: {error}", file=sys.stderr)
            continue
        unequal = {key: value for key, value in differences.items() if not value <= bounds[key[2]]}
        counts["unequal"] += bool(unequal)
        if unequal:
            print(f"unequal: {case}: {unequal}", file=sys.stderr)
        worst |= {key: max(value, worst.get(key, 0.0)) for key, value in differences.items()}
        if number % 1000 == 999:
            print(f"{number + 1} cases", file=sys.stderr, flush=True)
    seconds = time.process_time() - began
    print(
        f"{options.cases:,} cases, seed {options.seed}: {counts['linear']} linear, {counts['convolution']} convolution;"
    )
    print(f"{counts['invalid']} invalid, {counts['unequal']} unequal; {seconds:.0f} s of CPU time,")
    print(f"torch {torch.__version__}\n\n| network | form | precision | largest difference | tolerance |")
    print("|---|---|---|---|---|")
    for kind, form, precision in sorted(worst):
        difference = worst[kind, form, precision]
        print(f"| {kind} | {form} | {precision} | {difference:.1e} | {bounds[precision]:.0e} |")
    return int(bool(counts["invalid"] or counts["unequal"]))


if __name__ == "__main__":
    sys.exit(main())
