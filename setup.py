"""Carries the top-level folders of data into the wheel; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """Copies ``topologies/*.toml`` to ``moesim/topologies``, where an installed moesim looks for presets."""

    def run(self) -> None:
        """Build, then copy; an editable install reads the folder of the checkout."""
        super().run()
        if not self.editable_mode:
            for path in sorted(Path("topologies").glob("*.toml")):
                target = Path(self.build_lib, "moesim", path)
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": BuildWithData})
