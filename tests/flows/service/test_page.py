"""Links from a run's page: the texts of each tree, the report, and events and assets of the published version."""

import re

import httpx

from tests.flows.service.conftest import RUN_LIMIT_S, Formed, Prefect, wait_for


def test_a_tree_has_its_texts_the_report_opens_and_the_version_has_an_event_and_an_asset(
    prefect: Prefect, formed: Formed
) -> None:
    left = prefect.artifacts(formed.run["id"])
    (key,) = (key for key in left if key.startswith("formed-tree-"))
    assert "\n## 2.1.0 refiner: ok" in left[key]["data"]
    assert "\n`````text\n```\n<script>" in left[key]["data"]  # a fence that the text cannot end
    assert "[user]\n" in left[key]["data"]
    # The server learns of task runs from their events, a little later than of the run.
    wait_for(lambda: f"texts: artifact {key}" in refiner_messages(prefect, formed.run["id"]))

    found = re.search(r"\[report, with the trees\]\((http://\S+)\)", left["formed-report"]["data"])
    assert found is not None
    page = httpx.get(found[1], timeout=RUN_LIMIT_S)
    assert page.text == (prefect.newest("formed").path / "report.html").read_text()
    assert page.headers["content-security-policy"].startswith("sandbox allow-scripts;")
    forged = re.sub("[0-9a-f]{32}", "0" * 32, found[1])
    assert httpx.get(forged, timeout=RUN_LIMIT_S).status_code == httpx.codes.NOT_FOUND

    wait_for(lambda: events(prefect, "malt.version.published", "malt.datasets.formed") == ["formed@v1"])
    wait_for(lambda: len(events(prefect, "prefect.asset.materialization.succeeded", "malt://datasets/formed")) == 1)


def refiner_messages(prefect: Prefect, flow_run_id: str) -> list[str]:
    """Return the state messages of the refiner's task runs."""
    runs = prefect.task_runs(flow_run_id)
    return [each["state"]["message"] for each in runs if each["name"].startswith("refiner ")]


def events(prefect: Prefect, name: str, resource: str) -> list[str]:
    """Return the resource names of some events."""
    wanted = {"filter": {"event": {"name": [name]}, "resource": {"id": [resource]}}}
    found = prefect.post("/events/filter", wanted).raise_for_status().json()["events"]
    return [each["resource"].get("prefect.resource.name", "") for each in found]
