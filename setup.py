"""The package: what is installed, what it needs, and the `sgp-fast` command.

`kernels/` and `bench/` stand beside `sgp_fast/` in a checkout and are installed inside it, as `sgp_fast.kernels` and
`sgp_fast.bench`, in wheels and editable installs alike. Tools are configured in pyproject.toml.
"""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = runpy.run_path(str(ROOT / "sgp_fast" / "_version.py"))["__version__"]
README = ROOT / "README.md"

# Folders beside sgp_fast/ that are installed inside it.
MAPPED = {"sgp_fast.kernels": "kernels", "sgp_fast.bench": "bench"}

# Listed rather than found: the links sgp_fast/kernels and sgp_fast/bench, which make a bare checkout work, would be
# followed in a checkout and be missing in an archive.
PACKAGES = ["sgp_fast"]
PACKAGES += [
    f"sgp_fast.{name}" for name in find_packages("sgp_fast", exclude=["kernels", "kernels.*", "bench", "bench.*"])
]
for package, folder in MAPPED.items():
    PACKAGES += [package, *(f"{package}.{name}" for name in find_packages(folder))]

# Lower bounds are the versions that the tests run with, upper bounds the next release that may break them.
EXTRAS = {
    # D4RL HDF5 files, Minari data sets, parquet tables. Pillow is Minari's, which does not declare it.
    "data": ["h5py>=3.16,<4", "minari>=0.5.4,<0.6", "pillow>=13,<14", "pyarrow>=26,<27"],
    # Environments to collect data in and to evaluate in.
    "mujoco": ["gymnasium[mujoco]>=1.4,<2", "mujoco>=4.0,<5", "h5py>=3.16,<4"],
    "train": ["lightning-fabric>=2.6,<3", "tqdm>=4.70,<5"],
    "tensorboard": ["tensorboard>=2.21,<3"],
    "cli": ["tyro>=1.0,<2", "rich>=15,<16", "tqdm>=4.70,<5"],
    "report": ["matplotlib>=3.11,<4", "jinja2>=3.1,<4"],
    # Intervals and the schema of results; the small set of benchmarks for pytest; the GPU driver's counter of energy.
    "bench": [
        "jsonschema>=4.26,<5",
        'nvidia-ml-py>=13.615,<14; platform_system!="Darwin"',
        "pytest-benchmark>=5.3,<6",
        "scipy>=1.17,<2",
    ],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
EXTRAS["dev"] = [
    *EXTRAS["all"],
    "hypothesis>=6.170,<7",
    "pyright[nodejs]>=1.1.414,<1.2",
    "pytest>=9.2,<10",
    "pytest-xdist>=3.8,<4",
    "ruff>=0.17.5,<0.18",
    "setuptools>=77",
]
# The strongest peer on a CPU, and the planners of other libraries; only benchmarks that compare with them need them.
EXTRAS["jax"] = ["jax>=0.10,<0.11"]
EXTRAS["peers"] = ["pytorch-mppi>=0.9.1,<0.10", "torchrl>=0.14.1,<0.15"]
# Apart, since its torchvision may bring another torch. It imports the last two without naming them.
EXTRAS["worldmodel"] = ["stable-worldmodel>=0.1.1,<0.2", "opencv-python-headless>=4.10", "imageio>=2.38,<3"]
# What d4rl 1.1 needs to read its files. d4rl itself cannot be named here: its requirements pull mujoco-py, which wants
# MuJoCo binaries that are no longer distributed. It comes afterwards, without them: pip install --no-deps d4rl==1.1
EXTRAS["d4rl"] = ["gym>=0.24,<0.25", "h5py>=3.16,<4", "tqdm>=4.70,<5"]

setup(
    name="sgp-fast",
    version=VERSION,
    description="Score-guided planning, thousands of plans at once.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The sgp_fast authors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=PACKAGES,
    package_dir=MAPPED,
    include_package_data=False,
    package_data={
        "sgp_fast": ["py.typed", "configs/*.toml"],
        "sgp_fast.bench": ["*.md", "gpu_session.sh", "schema.json", "results/*.md", "results/*.jsonl", "results/*/*.jsonl"],
        "sgp_fast.bench.page": ["*.html.j2"],
        "sgp_fast.data": ["actors/*.safetensors"],
        "sgp_fast.kernels.cpu": ["*.cpp", "*.h"],
        "sgp_fast.report": ["*.html.j2"],
    },
    install_requires=[
        "torch>=2.11",
        'triton>=3.6,<4; platform_system=="Linux"',
        "numpy>=1.26",
        "safetensors>=0.5",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["sgp-fast = sgp_fast.cli:main"]},
    zip_safe=False,
)
