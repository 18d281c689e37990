"""docs/nightly.md and the files in docs/recipes: what they say is so, and what they start works."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import dataclass, fields
from datetime import timedelta
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families
from psycopg.conninfo import conninfo_to_dict

import cli
from pipeline import errors
from pipeline.commands.live import EXIT_CODES
from pipeline.commands.outcome import exit_code_of
from pipeline.durations import parse_duration
from pipeline.metrics import write_metrics
from pipeline.records import ProductChanges, RunSummary
from tests.fixtures.summary import run_summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fixtures.catalogs import ShopCatalog

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes"
PAGE = (ROOT / "docs" / "nightly.md").read_text(encoding="utf-8")

CATVEC, CATALOG = "/opt/catvec/bin/catvec", "/srv/shop/catalog.csv"
"""where the recipes have what they start, and what they give it"""

DRAIN_S = 10
"""within this SIGTERM ends a run, says the page"""


def read(name: str) -> str:
    return (RECIPES / name).read_text(encoding="utf-8")


def table(after: str) -> list[list[str]]:
    """The cells of the first table below a heading or word, without its head."""
    lines = PAGE.partition(after)[2].splitlines()
    rows = takewhile(is_row, dropwhile(lambda line: not is_row(line), lines))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows][2:]


def is_row(line: str) -> bool:
    return line.startswith("|")


def codes(text: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`]+)`", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The crontab: its settings, the five fields and the command of its one line."""

    settings: dict[str, str]
    times: list[str]
    command: str


def crontab() -> Job:
    lines = [line for line in read("crontab").splitlines() if line and not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines[:-1])
    *times, command = lines[-1].split(None, 5)
    return Job(settings=settings, times=times, command=command)


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(read(name))
    return parser


def cronjob() -> Any:
    return yaml.safe_load(read("cronjob.yaml"))


def pod() -> Any:
    return cronjob()["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def operator() -> dict[str, ast.expr]:
    """The arguments of the DAG's one BashOperator."""
    tree = ast.parse(read("airflow_dag.py"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    [found] = [call for call in calls if ast.unparse(call.func) == "BashOperator"]
    return {str(keyword.arg): keyword.value for keyword in found.keywords}


def seconds_of(value: ast.expr) -> float:
    """`timedelta(hours=4)` in seconds."""
    assert isinstance(value, ast.Call)
    assert ast.unparse(value.func) == "timedelta"
    return timedelta(**{str(part.arg): ast.literal_eval(part.value) for part in value.keywords}).total_seconds()


def commands() -> dict[str, list[str]]:
    """The words that each recipe gives to catvec."""
    cron = crontab().command.partition(" >")[0]
    service = unit("catvec-nightly.service")["Service"]["ExecStart"]
    [container] = pod()["containers"]
    dag = ast.literal_eval(operator()["bash_command"])
    words = {name: shlex.split(line) for name, line in (("cron", cron), ("systemd", service), ("Airflow", dag))}
    assert {line[0] for line in words.values()} == {CATVEC}
    return {name: line[1:] for name, line in words.items()} | {"Kubernetes": container["args"]}


# ---- what all of them start


@pytest.mark.parametrize(("scheduler", "words"), commands().items())
def test_what_a_recipe_starts_is_a_run_that_ends_in_time(scheduler: str, words: list[str]) -> None:
    application: Any = typer.main.get_command(cli.app)

    given = application.commands[words[0]].make_context(words[0], list(words[1:])).params

    assert (words[0], Path(given["uri"]).name, given["json"]) == ("run", "catalog.csv", True)
    limits = {
        "cron": (5 - 2) * 3600,  # the second start
        "systemd": parse_duration(unit("catvec-nightly.service")["Service"]["TimeoutStartSec"]).total_seconds(),
        "Kubernetes": cronjob()["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"],
        "Airflow": seconds_of(operator()["execution_timeout"]),
    }
    assert limits[scheduler] >= parse_duration(given["max_runtime"]).total_seconds() + 15 * 60


def test_every_recipe_is_named_on_the_page() -> None:
    named = set(re.findall(r"\(recipes/([\w.-]+)\)", PAGE))

    assert named == {path.name for path in RECIPES.iterdir() if not path.name.startswith(("__", "."))}


# ---- exit codes


def exit_codes(*, alarm: str) -> set[int]:
    return {int(row[0]) for row in table("## Exit codes") if row[3] == alarm}


def test_the_page_and_the_readme_name_the_exit_codes_there_are() -> None:
    stated = [int(row[0]) for row in table("## Exit codes")]

    assert stated == [int(code) for code in re.findall(r"(?:: |· |·\n)(\d+) ", str(cli.__doc__))]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("The exit code")[2].partition(".")[0]
    assert sorted(int(code) for code in re.findall(r"\d+", readme)) == stated
    raised = {
        2: errors.ConfigError("x"),
        4: errors.BreakerError("x"),
        75: errors.LockedError("x"),
        130: KeyboardInterrupt(),
        1: errors.StoreError("x"),
    }
    assert {code: exit_code_of(error) for code, error in raised.items()} == {code: code for code in raised}
    assert {0, 3, *raised, *EXIT_CODES.values()} == set(stated)


def test_each_exit_code_is_in_one_group() -> None:
    groups = [exit_codes(alarm=alarm) for alarm in ("no", "yes", "when it stays")]

    assert groups == [{0, 75, 130, 143}, {2, 3}, {1, 4}]


# ---- the summary and the metrics


def test_the_page_has_the_keys_of_the_summary() -> None:
    rows = table("## The summary")

    assert [key for row in rows for key in codes(row[0])] == [entry.name for entry in fields(RunSummary)]
    [products] = [row[1] for row in rows if row[0] == "`products`"]
    assert codes(products) == [entry.name for entry in fields(ProductChanges)]


@pytest.fixture
def metrics(tmp_path: Path) -> dict[str, set[str]]:
    """The metrics of a run and their labels, as they stand in the file."""
    summary = run_summary(failures_by_code={"http_404": 1})
    path = tmp_path / "catvec.prom"
    write_metrics(path, summary=summary, exit_code=0, ended_at=1.0, catalog="default", model="tiny")
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(path.read_text(encoding="utf-8")):
        assert family.type == "gauge"
        found[family.name] = set().union(*(sample.labels for sample in family.samples))
    return found


def test_the_page_has_the_metrics_and_their_labels(metrics: dict[str, set[str]]) -> None:
    stated = {name: {"catalog", "model", *codes(row[1])} for row in table("**Metrics.**") for name in codes(row[0])}

    assert stated == metrics


def test_the_alarms_of_the_page_are_those_of_the_rules(metrics: dict[str, set[str]]) -> None:
    [group] = yaml.safe_load(read("alerts.yml"))["groups"]
    rules = [rule["expr"] for rule in group["rules"]]
    shown = PAGE.partition("**Two alarms**")[2].split("```")[1].strip().splitlines()

    assert len(rules) == len(shown) == 2
    assert all(rule.startswith(line) for rule, line in zip(rules, shown, strict=True))
    assert {name for rule in rules for name in re.findall(r"catvec_\w+", rule)} <= set(metrics)


def test_prometheus_takes_the_rules() -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: package prometheus)")
    check = subprocess.run(["promtool", "check", "rules", RECIPES / "alerts.yml"], capture_output=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr


# ---- cron


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """Runs the line of the crontab as cron would: its own shell, a bare environment, no terminal."""

    home: Path
    environment: dict[str, str]

    def run(self, catalog: Path) -> str:
        """What cron would mail."""
        job = crontab()
        own = str(Path(sys.executable).with_name("catvec"))
        assert (job.command.count(CATVEC), job.command.count(CATALOG)) == (1, 1)
        line = job.command.replace(CATVEC, shlex.quote(own)).replace(CATALOG, shlex.quote(str(catalog)))
        ended = subprocess.run(
            [job.settings["SHELL"], "-c", line],
            env={"PATH": "/usr/bin:/bin", "LOGNAME": "shop", **job.settings, **self.environment},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            check=False,
        )
        return ended.stdout

    @property
    def log(self) -> str:
        return (self.home / "catvec.log").read_text(encoding="utf-8")


@pytest.fixture
def cron(tmp_path: Path, database_url: str, tiny_clip: Path) -> Cron:
    home = tmp_path / "home"
    home.mkdir()
    parts = {name: str(value) for name, value in conninfo_to_dict(database_url).items()}
    host, port, name, user = (parts[key] for key in ("host", "port", "dbname", "user"))
    passwords = home / ".pgpass"
    passwords.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
    passwords.write_text(f"{host}:{port}:{name}:{user}:{parts.get('password', '')}\n", encoding="utf-8")
    environment = {
        "HOME": str(home),
        "CATVEC_DATABASE_URL": f"postgresql://{user}@{host}:{port}/{name}",
        "CATVEC_MODEL": str(tiny_clip),
        "CATVEC_ALLOW_PRIVATE_HOSTS": "1",
    }
    return Cron(home=home, environment=environment)


def test_the_line_of_the_crontab_is_one() -> None:
    job = crontab()
    bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
    for field, (least, most) in zip(job.times, bounds, strict=True):
        assert field == "*" or all(least <= int(part) <= most for part in field.split(","))

    assert "%" not in job.command  # cron takes it for a line end
    assert f"    {' '.join(job.times)}  {job.command}" in PAGE.splitlines()
    assert set(job.settings) <= {"SHELL", "MAILTO", "CATVEC_DATABASE_URL"}


def test_cron_runs_a_night_and_has_nothing_to_mail(cron: Cron, shop_catalog: ShopCatalog) -> None:
    mailed = cron.run(shop_catalog(8))

    log = cron.log
    summary = json.loads(log.splitlines()[-1])
    assert (mailed, list(summary)) == ("", [entry.name for entry in fields(RunSummary)]), log
    assert (summary["finished"], summary["embedded"]) == (True, 8)
    # no bar: it would draw over itself
    assert [sign for sign in log if sign != "\n" and ord(sign) < 32] == []


def test_cron_mails_the_code_and_the_reason(cron: Cron, tmp_path: Path) -> None:
    mailed = cron.run(tmp_path / "nowhere.csv")

    assert mailed.splitlines()[0] == "catvec run ended with 1"
    assert f"error: no such file {str(tmp_path / 'nowhere.csv')!r}" in mailed.splitlines(), mailed


# ---- systemd


def systemd_analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    words = ["systemd-analyze", *(str(argument) for argument in arguments)]
    return subprocess.run(words, env={**os.environ, "TZ": "UTC"}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["catvec-nightly.service", "catvec-nightly.timer", "catvec-alarm.service"])
def test_systemd_takes_the_unit(name: str) -> None:
    verified = systemd_analyze("verify", RECIPES / name)

    # it looks at what the unit depends on, too, and this machine need not have catvec where the recipe has it
    complaints = [line for line in verified.stderr.splitlines() if "catvec-" in line]
    assert [line for line in complaints if f"Command {CATVEC} is not executable" not in line] == []


def test_systemd_starts_the_timer_every_night() -> None:
    calendar = unit("catvec-nightly.timer")["Timer"]["OnCalendar"]

    found = systemd_analyze("calendar", "--iterations=2", "--base-time=2026-03-01 12:00:00 UTC", calendar)

    assert found.returncode == 0, found.stderr
    days = re.findall(r"(?:Next elapse|Iter\. #2): \w+ (\S+ \S+)", found.stdout)
    assert days == ["2026-03-02 02:15:00", "2026-03-03 02:15:00"]


def test_the_service_treats_exit_codes_as_the_page_says() -> None:
    service = unit("catvec-nightly.service")["Service"]

    assert {int(code) for code in service["SuccessExitStatus"].split()} == exit_codes(alarm="no") - {0}
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == exit_codes(alarm="yes")
    assert service["Restart"] == "on-failure"
    assert parse_duration(service["TimeoutStopSec"]).total_seconds() > DRAIN_S
    assert unit("catvec-nightly.service")["Unit"]["OnFailure"] == "catvec-alarm.service"


# ---- Kubernetes


def test_the_cronjob_treats_exit_codes_as_the_page_says() -> None:
    job = cronjob()["spec"]["jobTemplate"]["spec"]
    fails, moves = job["podFailurePolicy"]["rules"]

    assert fails["action"] == "FailJob"
    assert fails["onExitCodes"]["operator"] == "In"
    # 1 alone is tried again, and what a node that goes leaves behind
    assert set(fails["onExitCodes"]["values"]) == {2, 3, 4, 75}
    assert moves == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    # podFailurePolicy needs it, and a container that is started again in its pod would never be judged
    assert pod()["restartPolicy"] == "Never"
    assert fails["onExitCodes"]["containerName"] in [container["name"] for container in pod()["containers"]]


def test_the_cronjob_gives_runs_room_and_keeps_them_apart() -> None:
    found = cronjob()
    kind = (found["apiVersion"], found["kind"], found["spec"]["concurrencyPolicy"])
    assert kind == ("batch/v1", "CronJob", "Forbid")
    assert found["spec"]["startingDeadlineSeconds"] >= 100  # below 10 s the controller may miss every start
    assert pod()["terminationGracePeriodSeconds"] > DRAIN_S
    assert found["spec"]["schedule"] == " ".join(crontab().times)


def test_the_cronjob_fits_the_image() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    [container] = pod()["containers"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod()["volumes"]}
    assert "command" not in container  # the image's own is catvec
    assert 'ENTRYPOINT ["catvec"]' in dockerfile
    assert mounts[re.findall(r"HF_HOME=(\S+)", dockerfile)[0]] == "weights"
    assert f"USER {pod()['securityContext']['runAsUser']}:" in dockerfile
    secrets = [entry for entry in container["env"] if "valueFrom" in entry]
    assert [entry["name"] for entry in secrets] == ["PGPASSWORD"]


# ---- Airflow


def test_the_dag_uses_its_operator_as_airflow_3_has_it() -> None:
    source = read("airflow_dag.py")
    compile(source, "airflow_dag.py", "exec")
    imports = dict(_imports(ast.parse(source)))
    assert imports["BashOperator"] == "airflow.providers.standard.operators.bash"
    assert imports["DAG"] == "airflow.sdk"

    given = operator()

    # of BashOperator and of BaseOperator, as in the reference of apache-airflow-providers-standard 1.9
    own = {"bash_command", "env", "append_env", "output_encoding", "skip_on_exit_code", "cwd", "output_processor"}
    base = {"task_id", "retries", "retry_delay", "execution_timeout", "do_xcom_push"}
    assert set(given) <= own | base
    assert ast.literal_eval(given["skip_on_exit_code"]) == 75
    # the operator would take what ends so for the name of a script
    assert not ast.literal_eval(given["bash_command"]).endswith((".sh", ".bash"))


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((alias.name, str(node.module)) for alias in node.names)
