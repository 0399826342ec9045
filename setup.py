"""All of the package's description is in pyproject.toml; this file is where the CUDA plugin's build will hook in."""

from setuptools import setup

setup()
