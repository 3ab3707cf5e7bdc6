"""Secrets in tracked files, and known faults of the pinned packages. Exit code 1 if there are any.

The packages are asked for at PyPI's database of vulnerabilities. Where a network or a mirror does not have it, that
check is skipped, and a line says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BASELINE, CONSTRAINTS = ".secrets.baseline", "constraints.txt"


def secrets() -> bool:
    """Whether no tracked file holds what looks like a secret, beside those in the baseline."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        print("secrets: skipped, this is no git checkout")
        return True
    files = [name for name in listed.stdout.split("\0") if name and name != BASELINE]
    hook = [sys.executable, "-m", "detect_secrets.pre_commit_hook", "--baseline", BASELINE, *files]
    found = subprocess.run(hook, cwd=ROOT)
    print(f"secrets: {len(files)} files, {'none' if not found.returncode else 'see above'}")
    return not found.returncode


def audit() -> bool:
    """Whether no pinned package has a known vulnerability, as far as there is somebody to ask."""
    # The pins are asked about as they stand: nothing is resolved or installed.
    command = [sys.executable, "-m", "pip_audit", "--requirement", CONSTRAINTS, "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"audit: skipped, PyPI's database of vulnerabilities is out of reach ({reason[:200]})")
        return True
    asked = [package for package in packages if "skip_reason" not in package]
    faults = [(package, fault) for package in asked for fault in package["vulns"]]
    for package, fault in faults:
        fixed = ", ".join(fault["fix_versions"]) or "no release yet"
        print(f"audit: {package['name']} {package['version']}: {fault['id']}, mended in {fixed}")
    if not asked:
        print("audit: skipped, the package index here has no database of vulnerabilities")
    else:
        print(f"audit: {len(asked)} of {len(packages)} pinned packages were asked for, {len(faults)} known faults")
    return not faults


if __name__ == "__main__":
    results = [secrets(), audit()]
    sys.exit(0 if all(results) else 1)
