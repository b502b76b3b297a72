"""A photo of several people: the visitor is told, and chooses the face that will move."""

import pytest
from support.browser_tools import artefacts, live, needs_browser, visiting
from support.server_fakes import group_jpeg, portrait_jpeg

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
GREEN, PURPLE = (20, 140, 40), (110, 20, 120)


def upload(page, photo):
    page.click("#add")
    image = {"name": "us.jpg", "mimeType": "image/jpeg", "buffer": photo}
    page.set_input_files("#file", image)
    page.check("#consent")
    page.click("#upload-next")
    page.wait_for_selector("#upload[data-step=crop]")


def test_a_click_on_a_face_chooses_it(browser, server):
    with visiting(browser, server, **PHONE) as page:
        live(page)
        upload(page, group_jpeg([GREEN, PURPLE]))
        assert "There are 2 faces" in page.inner_text("#crop-text")
        faces = page.get_by_role("group", name="Faces in the photo").get_by_role("button")
        assert [one.get_attribute("aria-pressed") for one in faces.all()] == ["true", "false"]
        picture = page.locator("#preview-image").bounding_box()
        for number, face in enumerate(faces.all()):
            box = face.bounding_box()
            middle = (box["x"] + box["width"] / 2 - picture["x"]) / picture["width"]
            assert abs(middle - (0.25, 0.75)[number]) < 0.06
        page.screenshot(path=artefacts() / "several-faces.png")
        with (
            page.expect_response(lambda answer: answer.request.method == "DELETE"),
            page.expect_response(lambda answer: answer.request.method == "POST") as chosen,
        ):
            faces.nth(1).click()  # what was made of the other face is forgotten
        body = chosen.value.json()
        assert body["warnings"] == [] and len(body["faces"]) == 2
        assert body["face"][0] > 0.4 * body["width"], "the right one is framed"
        page.wait_for_selector("#upload[data-step=crop]")
        assert [one.get_attribute("aria-pressed") for one in faces.all()] == ["false", "true"]
        page.click("#upload-next")
        page.wait_for_selector("label.avatar:has-text('us') input:checked", state="attached")


def test_the_mark_of_a_face_at_the_edge_stays_inside_the_picture(browser, server):
    with visiting(browser, server) as page:
        live(page)
        upload(page, portrait_jpeg(GREEN, (240, 480)))
        picture, mark = (
            page.locator(f"#{name}").bounding_box() for name in ("preview-image", "crop")
        )
        assert mark["width"] > 0.9 * picture["width"], "the box is wider than this picture"
        assert mark["x"] >= picture["x"] - 1 and mark["y"] >= picture["y"] - 1
        right, bottom = (p["x"] + p["width"] for p in (mark, picture))
        assert right <= bottom + 1
        ends = [p["y"] + p["height"] for p in (mark, picture)]
        assert ends[0] <= ends[1] + 1
