"""How setuptools builds the package: bf16.c becomes a plain shared library, so one wheel serves every Python.

Named in `[tool.setuptools.cmdclass]`; nothing else imports it. With SHADOWFT_PURE=1, or when the compiler fails, the
wheel has no library and is `py3-none-any`.
"""

import os
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class Library(build_ext):
    """Builds a shared library that ctypes loads: its name has no ABI of Python in it."""

    def run(self) -> None:
        """Build nothing for a pure wheel."""
        if os.environ.get("SHADOWFT_PURE") != "1":
            super().run()

    def get_ext_filename(self, fullname: str) -> str:
        """Return `package/name.so` for `package.name`."""
        return f"{fullname.replace('.', os.sep)}.so"


class Wheel(bdist_wheel):
    """Tags the wheel by what is in it: any Python 3, and this platform only if the library was built."""

    def run(self) -> None:
        """Build first, because the compiler may fail; anew, because setuptools packs all that an earlier build left."""
        self.reinitialize_command("clean", all=True)
        self.run_command("clean")
        self.run_command("build")
        if not any(Path(self.get_finalized_command("build").build_lib).rglob("*.so")):
            self.root_is_pure, self.distribution.ext_modules = True, []
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, ABI and platform."""
        return "py3", "none", super().get_tag()[2]
