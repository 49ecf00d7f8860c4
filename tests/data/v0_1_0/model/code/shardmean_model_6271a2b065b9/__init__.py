"""Images, shards, networks and averaging: all that runs without Spark, Airflow or a tracking server.

Modules in here import each other relatively, because the few that serving needs are shipped inside
every logged model under another package name (see `packaging.py`).
"""
