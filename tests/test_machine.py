"""Tests of the description of the machine."""

import os

import pytest

from experiments.engine import machine

pytestmark = pytest.mark.quick

CORES = f"{os.cpu_count()} cores"
X86 = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu avx2 avx512f amx_bf16 avx512_bf16

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"


@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        (X86, "Some CPU @ 2.00GHz with AVX2, AVX-512, AVX512_BF16, AMX bfloat16,", CORES),
        (ARM, "", f" with Neon, SVE, BF16, {CORES}"),
        ("model name : Plain\n", f"Plain, {CORES}", CORES),
        ("", "", CORES),
    ],
)
def test_processor_and_units_are_named(tmp_path, text, begins, ends):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    found = machine.description(path)
    assert found.startswith(begins)
    assert found.endswith(ends)
    assert "\n" not in found


def test_a_system_without_the_file_is_described_too(tmp_path):
    found = machine.description(tmp_path / "nothing")
    assert found.endswith(CORES)
    assert found != CORES
    assert machine.description()
