"""``python -m bench.run``: measures pyconv against torch and writes JSON (the truth) and Markdown.

Both sides run in one process under one allocator setting, which is why the process starts itself afresh.
``docs/benchmarks.md`` says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench import machine, report
from bench.contenders import (
    Contender,
    OperandSets,
    check_same,
    difference,
    in_layout,
    other_lines,
    our_contender,
    torch_contender,
)
from bench.problems import CALL_PASSES, PASSES, SHAPES, Case, read_cases
from pyconv import selection
from pyconv.problem import LAYOUTS, Layout
from pyconv.registry import Kernel
from pyconv.timing import Side, Turn, device_turn, interleave, waiting_turn, wall_turn

_DEFAULT_SHAPES = ("call_overhead", "first_bar_conv", "first_bar_pool")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    add = parser.add_argument
    add("--shapes", nargs="+", metavar="FILE", help="files, or names under bench/shapes (default: the bars')")
    add("--passes", nargs="+", choices=PASSES, default=[], help="instead of what the files say")
    add("--layout", choices=(*LAYOUTS, "both"), default="both")
    add("--seconds", type=float, help="time for each pass of a problem (default 4; 0.4 with --quick)")
    add("--quick", action="store_true", help="a rough look: little time and at least 3 rounds, not 7")
    add("--threads", type=int, help="torch.set_num_threads, for both sides")
    add("--all-kernels", action="store_true", help="every line of the table that can do the problem")
    add("--kernels", nargs="+", default=[], metavar="NAME", help="force these, as pyconv.use does")
    add("--out", type=Path, metavar="FILE", help="JSON file (default: bench/results/<cpu>-<threads>t.json)")
    add("--compare", nargs=2, type=Path, metavar="JSON", help="compare two results and measure nothing")
    return parser


def _shapes_file(name: str) -> Path:
    for path in (Path(name), SHAPES / f"{name}.txt", SHAPES / name):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in SHAPES.glob("*.txt")))
    raise ValueError(f"--shapes: no file {name!r}; there are {known}")


def measure(
    case: Case,
    layouts: Sequence[Layout],
    *,
    seconds: float,
    least_rounds: int,
    all_kernels: bool = False,
    device: str = "cpu",
    also: Callable[[Kernel], bool] | None = None,
) -> dict[str, Any]:
    """One row: a pass of a problem, every contender in every layout in one interleaved measurement.

    Besides torch's kernel and what selection picks, ``also`` says which lines; ``all_kernels`` means all.

    A contender that cannot run or computes something else is left out and named in the row's ``errors``.
    """
    turn = _turn_on(device, case.pass_)
    sides, contenders, errors = {}, {}, {}
    differences: dict[str, float] = {}
    sets = 0
    with torch.set_grad_enabled(case.pass_ in ("call_grad", "call_step")):
        for layout in layouts:
            problem = in_layout(case.problem, layout)
            operands = OperandSets(problem, case.pass_, device)
            sets = len(operands.sets)
            baseline = torch_contender(problem, case.pass_, device)
            reference = baseline.call(*operands.first(baseline.takes))
            tried: list[Contender] = [baseline, our_contender(problem, case.pass_, device)]
            wanted = also or (lambda kernel: all_kernels)
            tried += other_lines(problem, case.pass_, device, wanted)
            for contender in tried:
                try:
                    error = difference(contender.call(*operands.first(contender.takes)), reference)
                    check_same(problem, error)
                except (RuntimeError, NotImplementedError) as why:
                    errors[contender.name] = str(why).splitlines()[0]
                    continue
                differences[contender.name] = error
                contenders[contender.name] = contender
                sides[contender.name] = Side(contender.name, contender.call, operands.pick(contender.takes))
            del reference
        timings = interleave(list(sides.values()), seconds=seconds, least_rounds=least_rounds, turn=turn)
    flops, bytes_ = 0, 0
    if case.pass_ not in CALL_PASSES:
        flops, bytes_ = case.problem.flops(case.pass_), case.problem.bytes(case.pass_)
    return {
        "suite": case.suite,
        "problem": str(case.problem),
        "pass": case.pass_,
        "flops": flops,
        "bytes": bytes_,
        "operand_sets": sets,
        "inner": timings.inner,
        "load": round(timings.load, 2),
        "sides": [
            {
                "library": contender.library,
                "layout": contender.layout,
                "kernel": contender.kernel,
                "chosen": contender.chosen,
                "difference_from_torch": differences[name],
                "faults_per_call": round(timings.faults[name], 3),
                "ns": [round(value, 1) for value in timings.ns[name]],
            }
            for name, contender in contenders.items()
        ],
        "errors": errors,
    }


def _turn_on(device: str, pass_: str) -> Turn:
    """How a turn is timed: by the device's own clock, unless it is the call that is measured."""
    if device == "cpu":
        return wall_turn
    return waiting_turn if pass_ in CALL_PASSES else device_turn


def _rows(cases: Sequence[Case], layouts: Sequence[Layout], **how: Any) -> Iterator[dict[str, Any]]:
    for number, case in enumerate(cases, start=1):
        # A call costs the same in either layout; one is enough.
        used = layouts[:1] if case.pass_ in CALL_PASSES else layouts
        row = measure(case, used, **how)
        print(f"[{number}/{len(cases)}] {report.progress(row)}", file=sys.stderr, flush=True)
        yield row


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Runs what the options ask for. Raises ``ValueError`` for options that make no sense."""
    cases: list[Case] = []
    for name in options.shapes or _DEFAULT_SHAPES:
        cases += read_cases(_shapes_file(name), options.passes)
    if not cases:
        raise ValueError("nothing to measure: no problem of these files has such a pass")
    if options.threads:
        torch.set_num_threads(options.threads)
    layouts = LAYOUTS if options.layout == "both" else (options.layout,)
    seconds = options.seconds or (0.4 if options.quick else 4.0)
    repeats = 3 if options.quick else 7
    dtypes = sorted({case.problem.dtype for case in cases})
    before = machine.ceilings(dtypes, repeats)
    with selection.use(*options.kernels) if options.kernels else contextlib.nullcontext():
        forced = list(selection.forced())
        rows = list(
            _rows(
                cases,
                layouts,
                seconds=seconds,
                least_rounds=3 if options.quick else 7,
                all_kernels=options.all_kernels,
            )
        )
    after = machine.ceilings(dtypes, repeats)
    return {
        "format": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "allocator": machine.allocator(),
        "settings": {
            "seconds": seconds,
            "quick": options.quick,
            "threads": torch.get_num_threads(),
            "forced_kernels": forced,
        },
        "ceilings": {name: max(before[name], after[name]) for name in before},
        "rows": rows,
    }


def _default_out(options: argparse.Namespace) -> Path:
    """The machine's file; for anything but a whole run another one, which git ignores."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(machine.describe()["cpu"]).lower()).strip("-")
    part = options.quick or options.shapes or options.passes or options.kernels or options.layout != "both"
    name = f"{slug}-{torch.get_num_threads()}t{'-rough' if part else ''}.json"
    return machine.ROOT / "bench" / "results" / name


def run(arguments: Sequence[str]) -> int:
    """The command without its restart: 0, or 1 where a kernel could not run or computed something wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.compare:
        first, second = (json.loads(path.read_text()) for path in options.compare)
        print(report.compare(first, second, [path.stem for path in options.compare]))
        return 0
    try:
        result = benchmark(options)
    except ValueError as error:
        parser.error(str(error))
    out = options.out or _default_out(options)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.dump(result))
    page = report.markdown(result)
    out.with_suffix(".md").write_text(page)
    print(page)
    print(f"Written: {out} and {out.with_suffix('.md')}")
    failed = sum(len(row["errors"]) for row in result["rows"])
    if failed:
        print(f"{failed} measurements failed; the rows say why.", file=sys.stderr)
    return 1 if failed else 0


def main() -> None:
    machine.restart_with_allocator_setting("bench.run", sys.argv[1:])
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
