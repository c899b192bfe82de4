"""How torch's threads wait for each other, which the package sets when it is imported."""

import os
import subprocess
import sys

import pytest

import lit_dola

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("load", "given", "expected"),
    [
        (0.0, {}, {"GOMP_SPINCOUNT": "10000"}),
        (4.0, {}, {"GOMP_SPINCOUNT": "10000"}),  # as after an earlier run of ours
        (8.0, {}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (8.0, {"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        (0.0, {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_waiting_threads(load, given, expected, monkeypatch):
    environment = dict(given)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    lit_dola._choose_wait_policy()
    assert environment == expected


@pytest.mark.parametrize("module", ["lit_dola", "benchmarks", "recipes"])
def test_it_is_set_before_torch_is_imported(module):
    code = f"import sys, os, {module}; print('torch' in sys.modules, *map(os.getenv, {VARIABLES}))"
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith("False ")
    assert done.stdout != "False None None\n"
