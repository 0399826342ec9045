from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources

import cv2
import httpx
import numpy as np
import pytest

from edge.bundle import Bundle
from edge.heatmap import overlay
from edge.passport import passport, render
from edge.service import Picture
from edge.web import routes
from tests.page_service import PageService, page_app, served

STATIC = resources.files("edge.web").joinpath("static")


@pytest.fixture
def service(tiny_bundle: Bundle) -> PageService:
    return PageService(tiny_bundle)


@pytest.fixture
def client(service: PageService) -> Iterator[httpx.Client]:
    with served(page_app(service)) as address, httpx.Client(base_url=address, trust_env=False) as client:
        yield client


def decoded(content: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


class Links(HTMLParser):
    """What a page loads, and whether anything of it is inline."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        names = dict(attributes)
        self.links += [value for name, value in attributes if name in ("src", "href") and value]
        self.inline += [name for name in names if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.inline.append(tag)


def test_everything_that_the_page_loads_is_one_of_its_files(client: httpx.Client) -> None:
    page = Links()
    page.feed(client.get("/").text)
    assert page.inline == []
    loaded = {link for link in page.links if not link.startswith("#")}
    for name in [entry.name for entry in STATIC.iterdir() if entry.name.endswith(".js")]:
        loaded |= {f"page/{found}" for found in re.findall(r'from "\./(.+)"', STATIC.joinpath(name).read_text())}
    assert len(loaded) > 8
    for link in loaded:
        assert client.get(f"/{link}").status_code == 200, link
    unused = {entry.name for entry in STATIC.iterdir()} - {link.removeprefix("page/") for link in loaded}
    assert unused == {"index.html"}


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/base.css", "/page/icon.svg", "/v1/page"])
def test_every_answer_says_what_a_browser_may_do_with_it(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == ("no-store" if path.startswith("/v1") else "no-cache")


@pytest.mark.parametrize("path", ["/page/nothing.js", "/page/..%2Froutes.py", "/page/index.html"])
def test_there_are_no_other_files(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_gets_what_it_shows_of_a_study_and_no_more(client: httpx.Client, service: PageService) -> None:
    label = service.bundle.labels[2]
    first = service.finish({label: 0.75})
    refused = service.finish(reason="it is no image: send a radiograph")
    page = client.get("/v1/page").json()
    assert [study["id"] for study in page["studies"]] == [refused, first]
    assert page["studies"][1]["findings"][label] == {"probability": 0.75, "positive": True}
    assert page["studies"][0]["reason"] == "it is no image: send a radiograph"
    expected = [
        "id",
        "state",
        "received",
        "origin",
        "source",
        "reason",
        "findings",
        "guard",
        "time",
        "bundle",
        "gate",
        "total_ms",
    ]
    assert list(page["studies"][0]) == expected
    assert page["bundle"]["notice"] == service.bundle.notice
    assert page["status"]["counts"] == {"done": 1, "refused": 1}


def test_a_run_without_a_result_has_only_its_state(client: httpx.Client, service: PageService) -> None:
    service.receive_only("a" * 32, state="running")
    (study,) = client.get("/v1/page").json()["studies"]
    assert (study["state"], study["findings"], study["total_ms"]) == ("running", None, None)


def test_the_page_gets_the_last_studies_only(client: httpx.Client, service: PageService) -> None:
    ids = [service.finish() for _ in range(routes.STUDIES + 5)]
    studies = client.get("/v1/page").json()["studies"]
    assert [study["id"] for study in studies] == ids[: -routes.STUDIES - 1 : -1]


def test_an_overlay_is_the_map_of_the_named_finding_over_the_image(client: httpx.Client, service: PageService) -> None:
    id = service.finish()
    picture = service.pictures[id]
    assert picture.cam is not None
    for number in (0, 3):
        answer = client.get(f"/v1/images/{id}/overlay.png", params={"finding": picture.labels[number]})
        assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/png", "no-store")
        np.testing.assert_array_equal(decoded(answer.content), overlay(picture.pixels, picture.cam[number]))
    np.testing.assert_array_equal(decoded(client.get(f"/v1/images/{id}/picture.png").content), picture.pixels)


def test_the_labels_of_the_bundle_that_made_the_maps_count(client: httpx.Client, service: PageService) -> None:
    id = service.finish()
    cam = np.zeros((1, 4, 4), np.float32)
    service.pictures[id] = Picture(np.zeros((8, 8), np.uint8), cam, ("Another_Finding",))
    assert client.get(f"/v1/images/{id}/overlay.png?finding=Another_Finding").status_code == 200
    missing = client.get(f"/v1/images/{id}/overlay.png", params={"finding": service.bundle.labels[0]})
    assert missing.status_code == 422
    assert "expected one of Another_Finding" in missing.json()["detail"]


def test_a_drawn_picture_is_kept_but_does_not_outlive_its_run(client: httpx.Client, service: PageService) -> None:
    id = service.finish()
    path = f"/v1/images/{id}/picture.png"
    drawn = client.get(path).content
    del service.pictures[id]
    assert client.get(path).content == drawn
    del service.runs[id]
    assert client.get(path).status_code == 404


def test_a_picture_that_comes_later_is_found(client: httpx.Client, service: PageService) -> None:
    id = service.finish()
    picture = service.pictures.pop(id)
    path = f"/v1/images/{id}/picture.png"
    assert client.get(path).status_code == 409
    assert "no picture of this image is kept" in client.get(path).text
    service.pictures[id] = picture
    assert client.get(path).status_code == 200


def test_no_map_where_the_network_has_none(client: httpx.Client, service: PageService) -> None:
    id = service.finish()
    service.pictures[id] = Picture(service.pictures[id].pixels, None, service.bundle.labels)
    answer = client.get(f"/v1/images/{id}/overlay.png", params={"finding": service.bundle.labels[0]})
    assert answer.status_code == 409
    assert "has no class activation maps" in answer.text


def test_no_picture_of_a_refused_or_unknown_image(client: httpx.Client, service: PageService) -> None:
    refused = service.finish(reason="no image")
    for id, status in ((refused, 409), ("0" * 32, 404), ("..%2F..%2Fetc%2Fpasswd", 404)):
        assert client.get(f"/v1/images/{id}/picture.png").status_code == status


def test_the_passport_says_what_the_command_prints(client: httpx.Client, service: PageService) -> None:
    found = client.get("/v1/page/passport").json()
    assert found["sha256"] == service.bundle.sha256
    words = " ".join(f"{section['heading']} {' '.join(section['lines'])}" for section in found["sections"])
    assert words.split() == render(passport(service.bundle)).split()


def test_a_passport_that_cannot_be_put_into_words_says_so(client: httpx.Client, service: PageService) -> None:
    manifest = {**service.bundle.manifest, "gate": {"verdict": "pass", "figures": {"findings": 7}}}
    service.bundle = Bundle(service.bundle.directory, manifest, service.bundle.sha256)
    (section,) = client.get("/v1/page/passport").json()["sections"]
    assert section["heading"] == "Unreadable"
    assert "read it with --json" in section["lines"][0]


def test_data_and_pictures_are_behind_the_token_and_the_page_itself_is_not(service: PageService) -> None:
    id = service.finish()
    pictures = [f"v1/images/{id}/picture.png", f"v1/images/{id}/overlay.png?finding=Mass"]
    with served(page_app(service, "secret")) as address, httpx.Client(base_url=address, trust_env=False) as client:
        for path in ["v1/page", "v1/page/passport", *pictures]:
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers={"Authorization": "Bearer secret"}).status_code == 200, path
        assert client.get("/").status_code == 200
