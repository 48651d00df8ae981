# SPDX-License-Identifier: Apache-2.0
"""Package definition: a normal ament_python package that pip installs as well."""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = "lidargen_ros"


def tree(folder):
    """Files below ``folder`` as (install folder, files) pairs for ``share/lidargen_ros``."""
    pairs = []
    for path in sorted(Path(folder).rglob("*")):
        if path.is_dir():
            files = sorted(str(f) for f in path.iterdir() if f.is_file())
            if files:
                pairs.append((f"share/{NAME}/{path.as_posix()}", files))
    return pairs


# Heavy or optional things are extras; what stands here is all that the runtime needs.
RUNTIME = [
    "numpy>=1.26",
    "scipy>=1.11",
    "opencv-python-headless>=4.9",
    "onnxruntime>=1.17",
    "rosbags>=0.11",
    "rich>=13",
    "typer>=0.12",
    "PyYAML>=6",
    "huggingface_hub>=0.30",
]
TORCH = ["torch>=2.6", "einops>=0.8", "safetensors>=0.4"]
EXTRAS = {
    "torch": TORCH,
    "train": [*TORCH, "tensorboard>=2.16", "av>=12"],
    "export": [*TORCH, "onnx>=1.16", "onnxscript>=0.2"],
    "tensorrt": ["cuda-bindings>=12.6"],  # TensorRT itself comes with JetPack or from NVIDIA's index
    "tensorrt-rtx": ["tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs", "cuda-bindings>=13"],
    "gpu": ["nvidia-ml-py>=12"],  # GPU memory and temperature in the node's diagnostics
    "pandaset": ["pandas>=2"],
    "ray": ["ray>=2.30"],
    "view": ["rerun-sdk>=0.23"],
    "odometry": ["kiss-icp>=1.2"],
    "ros": [
        "ros-kilted-rclpy[fastrtps]; platform_machine == 'x86_64'",
        "ros-sensor-msgs; platform_machine == 'x86_64'",
        "ros-diagnostic-msgs; platform_machine == 'x86_64'",
        "ros-std-srvs; platform_machine == 'x86_64'",
    ],
}

setup(
    name=NAME,
    version="0.1.0",
    description="A LiDAR for vehicles that only have cameras: ROS 2 node, replay, training, export",
    license="Apache-2.0",
    maintainer="lidargen_ros developers",
    maintainer_email="maintainers@lidargen-ros.invalid",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*", "training", "training.*", "export"]),
    package_data={NAME: ["py.typed", "bundles/*/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{NAME}/config", sorted(glob("config/*.*"))),
        *tree("config"),
    ],
    install_requires=["setuptools", *RUNTIME],
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "lidargen = lidargen_ros.cli:main",
            "lidargen_node = lidargen_ros.ros.node:main",
            "lidargen_player = lidargen_ros.ros.player:main",
            "lidargen_recorder = lidargen_ros.ros.recorder:main",
        ],
    },
)
