"""Container, compose file and manifest agree with the command and with each other."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformer_vision.commands.serve import build_parser
from conformer_vision.serve.routes import ROUTES
from container import command_of, health_of, read_steps

FOLDER = Path(__file__).resolve().parents[2] / "docker"
STEPS = read_steps()
DOCKERFILE = [*command_of(STEPS)[2:]]
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICE = COMPOSE["services"]["conformer-vision"]
DEPLOYMENT, KUBERNETES_SERVICE = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
COMMANDS = {"Dockerfile": DOCKERFILE, "compose": SERVICE["command"], "kubernetes": CONTAINER["args"]}


def options(command: list[str]) -> Any:
    """The command's own options; it ends the process where there is a mistake."""
    return build_parser().parse_args(command)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_takes_these_flags(name: str) -> None:
    found = options(COMMANDS[name])
    assert (found.model, found.host, found.port) == ("/model/model.onnx", "0.0.0.0", 8000)
    assert (found.api_key_file is not None) == (name != "Dockerfile")


def test_the_image() -> None:
    names = [step.name for step in STEPS]
    assert command_of(STEPS)[:2] == ["conformer-vision", "serve"]
    (user,) = (step.text for step in STEPS if step.name == "USER")
    assert user == "{runAsUser}:{runAsGroup}".format(**POD["securityContext"]) != "0:0"
    assert names.index("USER") > len(names) - 1 - names[::-1].index("RUN")  # it installs nothing
    assert f"http://127.0.0.1:{options(DOCKERFILE).port}/health" in health_of(STEPS)[-1]
    compile(health_of(STEPS)[-1], "health", "exec")
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    for step in STEPS:
        if step.name == "COPY" and not step.text.startswith("--from"):
            for source in step.words[:-1]:
                assert (FOLDER.parent / source).exists() and f"!{source}" in ignored


def test_the_image_has_the_libraries_of_the_server() -> None:
    root = FOLDER.parent
    (install,) = (step.words for step in STEPS if "--requirement" in step.text)
    named = set(install[install.index("requirements-runtime.txt") + 1 :])
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["serve"]
    assert named == {re.split("[<>=!]", each)[0] for each in extra}
    pinned = {line.partition("==")[0] for line in (root / "constraints.txt").read_text().splitlines()}
    assert named <= pinned and install[install.index("--constraint") + 1] == "constraints.txt"


def test_it_is_killed_only_after_it_could_drain() -> None:
    def seconds(text: str) -> float:
        return float(text.removesuffix("s"))

    assert seconds(SERVICE["stop_grace_period"]) > options(SERVICE["command"]).drain_seconds
    (word, pause) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    drain = options(CONTAINER["args"]).drain_seconds
    assert word == "sleep" and POD["terminationGracePeriodSeconds"] > float(pause) + drain
    readiness = CONTAINER["readinessProbe"]
    assert float(pause) > readiness["periodSeconds"] * readiness["failureThreshold"]


def test_the_probes_ask_routes_that_need_no_key() -> None:
    open_to_all = {route.path for route in ROUTES if not route.needs_key}
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    probes = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/health",
    }
    assert {probe["path"] for probe in probes.values()} <= open_to_all
    assert {ports[probe["port"]] for probe in probes.values()} == {options(CONTAINER["args"]).port}
    (port,) = KUBERNETES_SERVICE["spec"]["ports"]
    assert port["targetPort"] in ports
    assert (
        KUBERNETES_SERVICE["spec"]["selector"].items()
        <= DEPLOYMENT["spec"]["template"]["metadata"]["labels"].items()
    )
    assert (
        DEPLOYMENT["spec"]["selector"]["matchLabels"] == DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    )


def test_files_that_the_commands_name_are_mounted() -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in POD["volumes"]}
    keys = Path(options(CONTAINER["args"]).api_key_file)
    assert {"/model", str(keys.parent)} <= mounts.keys()
    secret = Path(options(SERVICE["command"]).api_key_file)
    assert (
        secret.parent == Path("/run/secrets")
        and secret.name in SERVICE["secrets"]
        and secret.name in COMPOSE["secrets"]
    )
    assert SERVICE["volumes"][0].endswith(":/model:ro")
    assert all(port.startswith("127.0.0.1:") for port in SERVICE["ports"])
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] and SERVICE["read_only"]
