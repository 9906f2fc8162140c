"""Makes the environment that the unit runs; ``make install`` calls it.

    .venv/bin/python systemd/environment.py TARGET --final FOLDER [--python INTERPRETER]

copies harmonyd and what it needs at run time (the codecs of its extra ``dicomweb`` too, where they are installed, and
nothing that only tests need) from the virtual environment that runs this
into TARGET, a virtual environment of INTERPRETER that will work at FOLDER. Nothing is downloaded or built. TARGET may
be below a staging folder: only FOLDER is written into it. An older TARGET is replaced at the end, if the new one works.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
EXTRA = "dicomweb"
SCRIPTS = {"harmonyd": "harmonyd.cli", "supervisorctl": "supervisor.supervisorctl"}
"""Programs, and the module whose ``main`` each of them calls."""
SCRIPT = "#!{python} -I\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
ABOUT = "import sys, sysconfig; print(sysconfig.get_config_var('SOABI')); print(*sys.version_info[:3], sep='.')"
DEFAULT_PYTHON = Path("/usr/bin/python3")
HIDDEN = ("/home", "/root", "/run/user")
"""Where the unit, with ProtectHome=yes, sees nothing."""
PLUGINS = "from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))"
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path)
    parser.add_argument("--final", type=Path, required=True)
    parser.add_argument("--python")
    arguments = parser.parse_args()
    interpreter = find(arguments.python) if arguments.python else default_python()
    version = usable_version(interpreter)
    target: Path = arguments.target
    fresh, old = (target.with_name(f".{target.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    make(fresh, arguments.final, interpreter, version)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def make(target: Path, final: Path, interpreter: Path, version: str) -> None:
    packages = target / "lib" / "python{}.{}".format(*version.split(".")) / "site-packages"
    packages.mkdir(parents=True)
    for found in needed("harmonyd"):
        copy_distribution(found, packages)
    shutil.copytree(ROOT / "harmonyd", packages / "harmonyd", ignore=NOT_COPIED)
    make_programs(target, final, interpreter, version)
    compile_all(target, final)


def find(python: str) -> Path:
    """Where an interpreter really is, behind links, which may come to mean another version one day."""
    return Path(shutil.which(python) or sys.exit(f"there is no Python at {python}")).resolve()


def default_python() -> Path:
    """The system's own Python when it can use our packages, else the one that this virtual environment is made of."""
    if DEFAULT_PYTHON.exists() and about(DEFAULT_PYTHON)[0] == about(Path(sys.executable))[0]:
        return DEFAULT_PYTHON.resolve()
    return Path(sys.executable).resolve()


def usable_version(interpreter: Path) -> str:
    """Its version. Ends the program when it cannot use our compiled modules, or when the unit cannot see it."""
    abi, version = about(interpreter)
    here, our_version = about(Path(sys.executable))
    if abi != here:
        sys.exit(
            f"{interpreter} is Python {version}, but the packages in {sys.prefix} are for Python {our_version}: "
            f"make them anew with 'make clean venv PYTHON={interpreter}'"
        )
    if any(interpreter.is_relative_to(folder) for folder in HIDDEN):
        sys.exit(
            f"the unit cannot see {interpreter}, which is in somebody's home: install the system's python3 and "
            "python3-venv, then 'make clean install PYTHON=/usr/bin/python3'"
        )
    return version


def about(interpreter: Path) -> tuple[str, str]:
    """What compiled modules must be built for, and the version."""
    ran = subprocess.run([interpreter, "-I", "-c", ABOUT], check=True, capture_output=True, text=True)
    abi, version = ran.stdout.split()
    return abi, version


def needed(name: str) -> Iterator[Distribution]:
    """What a package requires, directly or not, itself left out."""
    waiting, seen = [name], {name}
    while waiting:
        for other in requirements(distribution(waiting.pop())):
            if other.metadata["Name"].lower() not in seen:
                seen.add(other.metadata["Name"].lower())
                waiting.append(other.metadata["Name"])
                yield other


def requirements(package: Distribution) -> Iterator[Distribution]:
    """The direct requirements, and those of our own extra. What a condition concerns may be left uninstalled."""
    for requirement in package.requires or ():
        match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
        _, _, condition = requirement.partition(";")
        is_ours = package.metadata["Name"] == "harmonyd" and condition.split() == ["extra", "==", f'"{EXTRA}"']
        if match is None or ("extra" in condition and not is_ours):
            continue
        try:
            yield distribution(match[0])
        except PackageNotFoundError:
            if not condition:
                raise


def copy_distribution(package: Distribution, packages: Path) -> None:
    """Copy the files of a package; its scripts, which are elsewhere, are left out."""
    for file in package.files or ():
        path = PurePosixPath(file)
        if ".." not in path.parts and "__pycache__" not in path.parts:
            copy = packages / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(package.locate_file(file)), copy)


def make_programs(target: Path, final: Path, interpreter: Path, version: str) -> None:
    """What makes it a virtual environment, and the programs in it."""
    programs = target / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(interpreter)
    (target / "pyvenv.cfg").write_text(
        f"home = {interpreter.parent}\ninclude-system-site-packages = false\nversion = {version}\n"
    )
    for name, module in SCRIPTS.items():
        script = programs / name
        script.write_text(SCRIPT.format(python=final / "bin" / "python", module=module))
        script.chmod(0o755)


def compile_all(target: Path, final: Path) -> None:
    """Compile ahead, and let Twisted take note of its plugins: the service may not write there. Then try it."""
    python = target / "bin" / "python"
    where = ["-s", str(target), "-p", str(final)]
    subprocess.run([python, "-I", "-m", "compileall", "-q", "-j", "0", *where, str(target / "lib")], check=True)
    subprocess.run([python, "-I", "-c", PLUGINS], check=True)
    subprocess.run([python, "-I", "-m", "harmonyd", "version"], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
