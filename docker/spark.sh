#!/bin/sh
# Runs a Spark master or worker of the pip package in the foreground: docker/spark.sh master|worker [OPTIONS]
set -eu
role=$1; shift
SPARK_HOME=$(python -c 'import pathlib, pyspark; print(pathlib.Path(pyspark.__file__).parent)')
export SPARK_HOME PYSPARK_PYTHON="${PYSPARK_PYTHON:-$(command -v python)}"
case $role in
  master) exec "$SPARK_HOME/bin/spark-class" org.apache.spark.deploy.master.Master \
            --host "$(hostname)" --port 7077 --webui-port 8081 "$@" ;;
  worker) exec "$SPARK_HOME/bin/spark-class" org.apache.spark.deploy.worker.Worker \
            --work-dir "${TMPDIR:-/tmp}/spark-work" "${SPARK_MASTER:-spark://spark-master:7077}" "$@" ;;
  *) echo "usage: docker/spark.sh master|worker" >&2; exit 2 ;;
esac
