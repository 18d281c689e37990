"""catvec every night, for Airflow 3; docs/nightly.md has the words to it.

The worker's environment has CATVEC_DATABASE_URL and PGPASSWORD, which Airflow hands on and shows nowhere.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="catvec_nightly",
    schedule="15 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # a run brings everything up to date: there are no nights to make up for
    max_active_runs=1,
):
    BashOperator(
        task_id="run",
        bash_command="/opt/catvec/bin/catvec run /srv/shop/catalog.csv --max-runtime 3h --json",
        skip_on_exit_code=75,  # another run does the work
        retries=2,
        retry_delay=timedelta(minutes=30),
        execution_timeout=timedelta(hours=4),  # beyond --max-runtime, for what does not end in order
        do_xcom_push=True,  # the last line of the output, which is the JSON of the run
    )
