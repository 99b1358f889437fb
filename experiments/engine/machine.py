"""What this machine is, to stand beside every time that is measured on it.

The units of a processor decide which program is the fastest: the ratio of two programs on a
processor with a bfloat16 matrix unit says nothing about one without.
"""

import os
import pathlib
import platform

# the names of Linux for units that compute with many numbers at once, and the usual names
_UNITS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX512_BF16",
    "amx_bf16": "AMX bfloat16",
    "asimd": "Neon",
    "sve": "SVE",
    "bf16": "BF16",
    "sme": "SME",
}


def description(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> str:
    """The processor with its vector and matrix units, and the number of its cores.

    Args:
      cpuinfo: Where Linux describes the processor. On other systems, which have no such
        file, the description has no units.
    """
    fields: dict[str, str] = {}
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    flags = (fields.get("flags") or fields.get("Features", "")).split()
    units = ", ".join(unit for flag, unit in _UNITS.items() if flag in flags)
    return f"{name}{units and f' with {units}'}, {os.cpu_count()} cores"
