# ruff: noqa: INP001, S603, S607 (a script of its own, which runs the base image's programs)
"""What is in the image, as CycloneDX 1.6 JSON on stdout: the packages of the base and of the venv, and pg_dump's.

    python sbom.py /opt/venv/lib/python3.13/site-packages

Only the standard library is used, and nothing in it depends on the time: the same image gives the same bytes.
"""

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote


def component(kind: str, name: str, version: str, purl: str) -> dict[str, str]:
    """One entry; `purl` names the package in any tool that looks for advisories."""
    return {"type": kind, "name": name, "version": version, "bom-ref": purl, "purl": purl}


def debian() -> list[dict[str, str]]:
    """The packages that dpkg knows."""
    wanted = "${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n"
    told = subprocess.run(["dpkg-query", "-W", "-f", wanted], check=True, capture_output=True, text=True).stdout
    rows = [line.split("\t") for line in told.splitlines() if line.startswith("ii")]
    return [
        component("library", name, version, f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={arch}")
        for _, name, version, arch in rows
    ]


def python(place: str) -> list[dict[str, str]]:
    """The distributions in a directory of packages."""
    found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions(path=[place])}
    return [
        component("library", name, version, f"pkg:pypi/{name}@{quote(version, safe='')}")
        for name, version in sorted(found.items())
    ]


def programs() -> list[dict[str, str]]:
    """PostgreSQL's client programs, which are copied from their package."""
    told = subprocess.run(["pg_dump", "--version"], check=True, capture_output=True, text=True).stdout.split()
    return [component("application", "postgresql-client", told[2], f"pkg:generic/postgresql@{quote(told[2], safe='')}")]


def main() -> None:
    """Print it."""
    place = Path(sys.argv[1])
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "orchestrator", "bom-ref": "orchestrator"}},
        "components": [*debian(), *python(str(place)), *programs()],
    }
    json.dump(bom, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
