"""What the package promises of faults, bad inputs and hostile inputs, row by row, each with its figure.

    python benchmarks/faults.py                     # everything: 10 to 15 minutes
    python benchmarks/faults.py --rows F1 F2 H4     # some rows; what was measured of others is kept
    python benchmarks/faults.py --list

A row is proven by tests that inject the real fault: processes killed and signalled, disks that are full, files cut
and flipped, files made to harm. They are tests of the package, run here in full (``slow`` ones, too) and counted;
figures are what they recorded. A row passes if all its tests passed, none was skipped, and there were as many
cases as it asks for. The table is ``faults.yaml``, with the reason for every row that is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).parent / "faults.yaml"
RESULT = Path(__file__).parent / "results" / "faults.json"


class Row(NamedTuple):
    """One promise."""

    number: str
    fault: str
    promise: str
    asked: int
    """How many at least,"""
    unit: str
    """of ``cases``, or of what the tests recorded."""
    tests: tuple[str, ...]
    """``file::test``, or ``file::test[part]`` for the cases whose parameters hold ``part``."""


def read_table() -> tuple[list[Row], dict[str, str]]:
    """Read the rows, and the reasons for those that are left out."""
    table = yaml.safe_load(TABLE.read_text())
    rows = []
    for number, row in table["rows"].items():
        asked, _, unit = row["asked"].partition(" ")
        tests = [test.partition(" ") for test in row["tests"]]
        names = tuple(f"{table['files'][file]}::{_python_name(test)}" for file, _, test in tests)
        rows.append(Row(number, row["fault"], row["promise"], int(asked), unit, names))
    return rows, table["left_out"]


def _python_name(test: str) -> str:
    return test if "::" in test else f"test_{test}"


class Case(NamedTuple):
    """One test that ran."""

    test: str
    passed: bool
    skipped: bool
    figures: dict[str, float]


def pytest(*words: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on tests of any length."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "slow or not slow", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def list_tests(files: Iterable[str]) -> list[str]:
    """Name every case of some files, as pytest does."""
    done = pytest("--collect-only", "-q", *sorted(set(files)))
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return [line for line in done.stdout.splitlines() if "::" in line]


def cases_of(row: Row, tests: Sequence[str]) -> list[str]:
    """Choose a row's cases: ``file::test``, or ``file::test[part]`` for those whose parameters hold ``part``."""
    chosen = []
    for wanted in row.tests:
        name, _, part = wanted.partition("[")
        part = part.removesuffix("]")
        found = [test for test in tests if test.partition("[")[0] == name and part in test.partition("[")[2]]
        if not found:
            raise SystemExit(f"{row.number}: there is no test {wanted}")
        chosen += found
    return chosen


def run_tests(tests: Sequence[str]) -> dict[str, Case]:
    """Run cases and read what they recorded."""
    with tempfile.TemporaryDirectory() as folder:
        report, listed = Path(folder) / "report.xml", Path(folder) / "tests"
        listed.write_text("\n".join(tests))
        done = pytest("-q", "--timeout=900", "-o", "junit_family=xunit1", f"--junitxml={report}", f"@{listed}")
        if not report.exists():
            raise SystemExit(done.stdout + done.stderr)
        cases = [read_case(element) for element in ET.parse(report).iter("testcase")]
    if done.returncode:
        print(done.stdout[-6000:], file=sys.stderr)
    return {case.test: case for case in cases}


def read_case(element: ET.Element) -> Case:
    """Read one case of a JUnit report."""
    module = element.get("classname", "").replace(".", "/")
    parts = module.split("/Test")  # a class of tests stands behind its file
    test = "::".join([f"{parts[0]}.py", *(f"Test{part}" for part in parts[1:]), element.get("name", "")])
    bad = {child.tag for child in element}
    figures = {
        item.get("name", ""): float(item.get("value", "nan"))
        for item in element.iter("property")
        if item.get("name")
    }
    return Case(test, bad.isdisjoint({"failure", "error", "skipped"}), "skipped" in bad, figures)


def judge(row: Row, cases: Sequence[Case]) -> dict[str, Any]:
    """Say whether a row's promise was kept, and with which figures."""
    counted = len(cases) if row.unit == "cases" else sum(case.figures.get(row.unit, 0) for case in cases)
    passed = sum(case.passed for case in cases)
    kept = passed == len(cases) and counted >= row.asked
    return {
        "fault": row.fault,
        "promise": row.promise,
        "verdict": "pass" if kept else "fail",
        "asked": row.asked,
        "of": row.unit,
        "counted": round(counted),
        "cases": len(cases),
        "passed": passed,
        "skipped": sum(case.skipped for case in cases),
        "figures": figures_of(row, cases),
    }


def figures_of(row: Row, cases: Sequence[Case]) -> dict[str, float]:
    """Put together what the cases recorded: counts added up, the 95th percentile of times, means of shares."""
    found: dict[str, float] = {}
    for name in sorted({name for case in cases for name in case.figures}):
        values = [case.figures[name] for case in cases if name in case.figures]
        if name.startswith("share"):
            found[f"mean {name}"] = round(statistics.mean(values), 3)
        elif any(word in name for word in ("second", "ms ", "MB", "%")):
            found[f"largest {name}"] = max(values)
            if "exit" in name and len(values) > 1:
                found[f"95th percentile of {name}"] = round(statistics.quantiles(values, n=20)[-1], 3)
        else:
            found[name] = sum(values)
    return found


def show(number: str, result: dict[str, Any]) -> None:
    """Print one row."""
    figures = "; ".join(f"{name} {value:g}" for name, value in result["figures"].items())
    counted = f"{result['counted']}/{result['asked']} {result['of']}"
    print(f"{number:5} {result['verdict']:4} {result['fault']:48.48} {counted:20} {figures}", flush=True)


def main() -> None:
    """Run rows, print and keep what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="F1 F2 …; default: all")
    parser.add_argument("--list", action="store_true", help="print rows and their tests, and run nothing")
    told = parser.parse_args()
    every_row, left_out = read_table()
    rows = [row for row in every_row if not told.rows or row.number in told.rows]
    if told.list:
        for row in rows:
            print(row.number, row.fault, *row.tests, sep="\n    ")
        return
    tests = list_tests(test.partition("::")[0] for row in rows for test in row.tests)
    chosen = {row.number: cases_of(row, tests) for row in rows}
    begun = time.monotonic()
    cases = run_tests(sorted({test for of_row in chosen.values() for test in of_row}, key=tests.index))
    results = {row.number: judge(row, [cases[test] for test in chosen[row.number]]) for row in rows}
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    every = kept.get("rows", {}) | results
    ordered = {row.number: every[row.number] for row in every_row if row.number in every}
    for number, result in results.items():
        show(number, result)
    for number, reason in left_out.items():
        print(f"{number:5} left out: {reason}")
    failed = [number for number, result in ordered.items() if result["verdict"] != "pass"]
    print(f"{len(results)} rows in {time.monotonic() - begun:.0f} s; of all measured, failed: {failed or 'none'}")
    content = {
        "rows": ordered,
        "left_out": left_out,
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "cores": os.cpu_count(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
