"""The screenshots of the README: an Airflow run of the demo and the report of its DataSet.

Run it while `make up` runs, after `make demo`:

.venv/bin/python docs/screenshots/make.py [--airflow http://127.0.0.1:8080] [--home .shardmean]

Needs Chromium (Debian's package chromium).
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import urllib.request
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent
SIZE = {"width": 1280, "height": 800}
BROWSER_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DAG = "digits_train"


def main() -> None:
    """Log in, open the newest run of the training, then the report; save both in 128 colors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--airflow", default="http://127.0.0.1:8080")
    parser.add_argument("--home", type=Path, default=Path(".shardmean"))
    given = parser.parse_args()
    passwords = given.home / "airflow" / "simple_auth_manager_passwords.json.generated"
    password = json.loads(passwords.read_text())["admin"]
    report = max((given.home / "datasets" / "digits" / "reports").glob("*.html"), key=lambda file: file.stat().st_mtime)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_OPTIONS)
        page = browser.new_page(viewport=SIZE)
        page.goto(given.airflow)
        page.fill("input[name=username]", "admin")
        page.fill("input[name=password]", password)
        page.click("button[type=submit]")
        page.wait_for_url("**/")
        page.goto(f"{given.airflow}/dags/{DAG}/runs/{quote(newest_run(given.airflow, password), safe='')}/")
        page.wait_for_timeout(6000)  # its graph is drawn after the page has loaded
        save(page, "airflow.png")
        page.goto(report.absolute().as_uri())
        save(page, "report.png")
        browser.close()


def newest_run(airflow: str, password: str) -> str:
    """The id of the training's newest run that succeeded."""
    token = ask(f"{airflow}/auth/token", {"username": "admin", "password": password}, "")["access_token"]
    runs = ask(f"{airflow}/api/v2/dags/{DAG}/dagRuns?state=success&order_by=-run_after", None, token)["dag_runs"]
    return str(runs[0]["dag_run_id"])


def ask(url: str, body: dict[str, str] | None, token: str) -> dict:
    """Airflow's answer, as JSON."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


def save(page: Page, name: str) -> None:
    """The page as a small PNG."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(128).save(FOLDER / name, optimize=True)


if __name__ == "__main__":
    main()
