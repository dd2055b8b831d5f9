"""The job files that `hvd-backup template` prints."""

import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hvd_backup.cli import app
from hvd_backup.cluster.templates import FILES, Kind, template

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# The required fields of a MPIJob (kubeflow.org/v2beta1, pkg/apis/kubeflow/v2beta1/types.go) and of
# the pods in it, and those that the job must agree on. A list has the form of its items.
POD = {
    "spec": {
        "containers": [{"name": str, "image": str, "resources": {"limits": dict}}],
    }
}
JOB = {
    "apiVersion": "kubeflow.org/v2beta1",
    "kind": "MPIJob",
    "metadata": {"name": str},
    "spec": {
        "slotsPerWorker": int,
        "runPolicy": {"cleanPodPolicy": {"All", "Running", "None"}, "backoffLimit": int},
        "mpiReplicaSpecs": {
            "Launcher": {"replicas": 1, "template": POD},
            "Worker": {"replicas": int, "template": POD},
        },
    },
}


def differences(value, form, where="job"):
    """Where `value` is not of that form."""
    if isinstance(form, type):
        return [] if isinstance(value, form) else [f"{where}: {value!r} is no {form.__name__}"]
    if isinstance(form, set):
        return [] if value in form else [f"{where}: {value!r} is none of {sorted(form)}"]
    if isinstance(form, list):
        if not isinstance(value, list) or not value:
            return [f"{where}: no list with items"]
        pairs = [(f"{where}[{i}]", item, form[0]) for i, item in enumerate(value)]
    elif isinstance(form, dict):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} has no fields"]
        pairs = [(f"{where}.{key}", value.get(key), part) for key, part in form.items()]
    else:
        return [] if value == form else [f"{where}: {value!r} is not {form!r}"]
    return [text for where, item, part in pairs for text in differences(item, part, where)]


@pytest.mark.parametrize("kind", list(Kind))
def test_every_template_is_printed_as_it_is_and_says_what_to_edit(kind):
    result = CliRunner().invoke(app, ("template", kind.value))
    assert result.exit_code == 0
    assert result.stdout == template(kind)
    assert template(kind).count("# edit: ") >= 3
    assert "hvd-backup doctor" in template(kind)


def test_an_unknown_template_is_a_friendly_error_that_names_all():
    result = CliRunner().invoke(app, ("template", "cloud"), env={"COLUMNS": "120"})
    assert result.exit_code == 2
    for kind in Kind:
        assert kind.value in result.stderr


@pytest.mark.parametrize("kind", [Kind.SLURM, Kind.MPIRUN, Kind.APPTAINER])
def test_a_script_is_one_that_bash_can_read(kind):
    script = template(kind)
    assert script.startswith("#!/bin/bash\n")
    run = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_slurms_directives_come_before_the_first_command():
    lines = [line for line in template(Kind.SLURM).splitlines() if line]
    first_command = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert directives
    assert max(directives) < first_command
    assert all("#" not in lines[i][1:] for i in directives)


def test_the_kubernetes_job_has_all_required_fields():
    assert differences(yaml.safe_load(template(Kind.KUBERNETES)), JOB) == []


def test_the_check_of_the_kubernetes_job_finds_what_is_wrong():
    job = yaml.safe_load(template(Kind.KUBERNETES))
    job["spec"]["slotsPerWorker"] = "5"
    del job["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["image"]
    found = differences(job, JOB)
    assert [text.partition(":")[0] for text in found] == [
        "job.spec.slotsPerWorker",
        "job.spec.mpiReplicaSpecs.Worker.template.spec.containers[0].image",
    ]


def test_the_kubernetes_job_agrees_with_itself():
    job = yaml.safe_load(template(Kind.KUBERNETES))
    replicas = job["spec"]["mpiReplicaSpecs"]
    launcher = replicas["Launcher"]["template"]["spec"]["containers"][0]
    env = {variable["name"]: variable["value"] for variable in launcher["env"]}
    slots = job["spec"]["slotsPerWorker"] * replicas["Worker"]["replicas"]
    assert int(env["RANKS"]) == slots
    assert 0 < int(env["HVD_BACKUP_WORKERS"]) < slots
    (script,) = launcher["args"]
    subprocess.run(["bash", "-n", "-c", script], check=True)
    worker = replicas["Worker"]["template"]["spec"]
    mounts = {mount["name"] for mount in worker["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in worker["volumes"]}


@pytest.mark.parametrize("kind", [Kind.SLURM, Kind.MPIRUN])
def test_the_examples_are_the_templates(kind):
    assert (EXAMPLES / FILES[kind]).read_text() == template(kind)
