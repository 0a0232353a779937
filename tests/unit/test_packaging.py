"""The three packages belong to this distribution; the image and the commands name things that exist."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import capture
import models
import netcls

ROOT = Path(__file__).resolve().parents[2]
in_checkout = pytest.mark.skipif(not (ROOT / "Dockerfile").exists(), reason="not run from a checkout")


def test_the_three_packages_lie_side_by_side():
    homes = {Path(str(package.__file__)).resolve().parent.parent for package in (capture, models, netcls)}
    assert len(homes) == 1


def test_the_three_packages_belong_to_this_distribution():
    owners = metadata.packages_distributions()
    for name in ("capture", "models", "netcls"):
        # An editable install names its packages only through its finder, so an absent entry is not a foreign one.
        assert set(owners.get(name, ["netcls"])) == {"netcls"}


def test_the_typing_markers_ship():
    for package in (capture, models, netcls):
        assert (Path(str(package.__file__)).parent / "py.typed").is_file()


def test_the_command_is_an_entry_point():
    scripts = {
        e.name: e.value
        for e in metadata.entry_points(group="console_scripts")
        if e.dist and e.dist.name == "netcls"
    }
    assert scripts == {"netcls": "netcls.cli.main:main"}


@in_checkout
def test_each_copy_source_of_the_image_exists():
    sources = []
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            sources += words[1:-1]
    assert sources
    missing = [source for source in sources if not (ROOT / source).exists()]
    assert not missing


@in_checkout
def test_the_image_runs_the_installed_command_as_nobody_special():
    text = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["/opt/netcls/bin/container-start"]' in text
    assert "PYTHONSAFEPATH=1" in text
    assert re.search(r"^USER netcls$", text, re.MULTILINE)


@in_checkout
def test_tests_is_a_package_all_the_way_down():
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


@in_checkout
def test_ci_runs_exactly_make_test():
    assert "make test" in (ROOT / ".ci/run").read_text().splitlines()
