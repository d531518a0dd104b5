"""Builds the wheel: compiles the C library by the Makefile, and adds the story model.

The wheel contains no code for a particular Python, so that one wheel (py3-none-PLATFORM) serves all versions. The
compiler is CXX, else g++. With zig it may link against an old glibc, and the wheel then runs on all newer ones:

    CXX="zig c++ -target x86_64-linux-gnu.2.17" pip wheel apps/python --no-deps
"""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parents[2]
CXX = os.environ.get("CXX", "g++")
TARGET = re.search(r"-target (\w+)-linux-gnu\.2\.(\d+)", CXX)


class BuildLibrary(build_py):
    """Adds the shared library and the model to the package."""

    def run(self):
        super().run()
        if not (ROOT / "run.cpp").exists():
            raise SystemExit(f"{ROOT}/run.cpp: not found; build the wheel in a copy of the whole project")
        package = Path(self.build_lib).resolve() / "pocketllama"
        build = "build-" + re.sub(r"\W+", "-", TARGET[0]).strip("-") if TARGET else "build"
        library = f"WHEEL_LIBRARY={package / 'libpocketllama.so'}"
        subprocess.run(["make", "-C", str(ROOT), "wheel-library", f"CXX={CXX}", f"BUILD={build}", library], check=True)
        shutil.copy(ROOT / "models/stories.bin", package)
        (package / "py.typed").touch()


class PlatformWheel(bdist_wheel):
    """Names the platform of the wheel, and no version of Python."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        platform = f"manylinux_2_{TARGET[2]}_{TARGET[1]}" if TARGET else re.sub(r"\W", "_", sysconfig.get_platform())
        return "py3", "none", platform


class PlatformDistribution(Distribution):
    """Contains compiled code."""

    def has_ext_modules(self):
        return True


setup(
    version=re.search(r'kVersion = "(.*?)"', (ROOT / "run.cpp").read_text(encoding="utf-8"))[1],
    cmdclass={"build_py": BuildLibrary, "bdist_wheel": PlatformWheel},
    distclass=PlatformDistribution,
)
