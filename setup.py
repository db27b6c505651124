"""Build the compiled modules; everything else stands in pyproject.toml.

TTMEM_BUILD=debug turns every check on, the engine's self-check after each operation among them; asan, ubsan and tsan
build with that sanitizer.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

MODES = {
    "release": ["-O2", "-DNDEBUG"],
    "debug": ["-O0", "-g3", "-UNDEBUG", "-DTTM_DEBUG=1"],
    "asan": ["-O1", "-g", "-UNDEBUG", "-fsanitize=address", "-fno-omit-frame-pointer"],
    "ubsan": ["-O1", "-g", "-UNDEBUG", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"],
    "tsan": ["-O1", "-g", "-UNDEBUG", "-fsanitize=thread"],
}
mode = os.environ.get("TTMEM_BUILD", "release")
flags = [
    *MODES[mode],
    "-std=c11",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unused-parameter",
    "-Wno-sign-compare",
]
checked = mode != "release"
package = Path("ttmem")

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"ttmem.{source.stem}",
                [str(source)],
                depends=[str(p) for pattern in ("*.h", "*.pxd") for p in sorted(package.glob(pattern))],
                extra_compile_args=flags,
                extra_link_args=[flag for flag in flags if flag.startswith("-fsanitize=")],
            )
            for source in sorted(package.glob("*.pyx"))
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": checked,
            "wraparound": False,
            "initializedcheck": checked,
            "cdivision": not checked,
            "overflowcheck": False,
            "embedsignature": True,
            "freethreading_compatible": True,
        },
    ),
)
