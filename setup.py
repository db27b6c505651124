"""Build the compiled modules; everything else stands in pyproject.toml.

TTMEM_BUILD=debug turns every check on, the engine's self-check after each operation among them; sanitize builds with the
address and undefined behaviour sanitizers, tsan with the thread sanitizer, fuzz with clang for a coverage-guided fuzzer.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

MODES = {
    "release": ["-O2", "-DNDEBUG"],
    "debug": ["-O0", "-g3", "-UNDEBUG", "-DTTM_DEBUG=1"],
    "sanitize": [
        "-O1",
        "-g",
        "-UNDEBUG",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    ],
    "tsan": ["-O1", "-g", "-UNDEBUG", "-fsanitize=thread", "-Wno-tsan"],
    "fuzz": ["-O1", "-g", "-UNDEBUG", "-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all"],
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
                # Where it does not compile, ttmem.ttnn does without.
                optional=source.stem == "_ttnn_hook",
                extra_link_args=[flag for flag in flags if flag.startswith("-fsanitize=")],
            )
            for source in sorted(package.glob("*.pyx"))
        ],
        # The other modes' C differs: what was built in place must not pass for theirs.
        build_dir=None if mode == "release" else f"build/{mode}",
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
