"""Each error has one stable code, and each code one problem document."""

import json
import re
from pathlib import Path

import pytest

from letstalk_rt.errors import (
    AtCapacity,
    ImageDamagedError,
    NoFaceError,
    NotAnImageError,
    PortraitError,
    TooManyPixelsError,
)
from letstalk_server import errors
from letstalk_server.http.problem_details import (
    PROBLEM_TYPES,
    HttpError,
    MethodNotAllowedError,
    problem_details,
)
from letstalk_server.protocol.server_messages import Fail

DOCS = Path(__file__).parents[2] / "docs" / "protocol.md"
PORTRAIT_CODES = {
    PortraitError: "bad-portrait",
    NotAnImageError: "not-an-image",
    ImageDamagedError: "image-damaged",
    TooManyPixelsError: "too-many-pixels",
    NoFaceError: "no-face",
}


def tree(root):
    """All errors below `root`."""
    for error in root.__subclasses__():
        yield error
        yield from tree(error)


WITH_CODE = [error for error in tree(errors.ServerError) if "code" in vars(error)]


def test_each_code_belongs_to_one_error_and_has_a_problem_type():
    codes = [error.code for error in WITH_CODE] + list(PORTRAIT_CODES.values())
    assert sorted(codes) == sorted(PROBLEM_TYPES)


def test_the_errors_of_the_domain_are_drawn_in_their_tree():
    drawn = re.findall(r"-- (\w+Error)(?: +([a-z-]+))?", errors.__doc__)
    assert dict(drawn) == {
        error.__name__: vars(error).get("code", "")
        for error in tree(errors.ServerError)
        if not issubclass(error, HttpError)
    }


@pytest.mark.parametrize("error", WITH_CODE)
def test_an_error_without_a_word_of_http_becomes_a_document(error):
    problem_type = PROBLEM_TYPES[error.code]
    answer = problem_details(error("Do it otherwise.")).response()
    assert answer.status_code == problem_type.status
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body) == {
        "type": f"urn:letstalk:problem:{error.code}",
        "title": problem_type.title,
        "status": problem_type.status,
        "code": error.code,
        "detail": "Do it otherwise.",
    }


def test_headers_are_those_that_the_status_asks_for():
    missing = problem_details(errors.TokenMissingError("Send one."))
    assert missing.headers == {"www-authenticate": 'Bearer realm="letstalk"'}
    assert problem_details(errors.NotReadyError("Later.")).headers == {"retry-after": "10"}
    often = problem_details(errors.TooManyRequestsError("Later.", retry_after_s=2))
    assert often.headers == {"retry-after": "2"}
    method = problem_details(MethodNotAllowedError("GET only.", {"allow": "GET"}))
    assert method.headers == {"allow": "GET"}
    assert problem_details(errors.BadOfferError("No.")).headers == {}


def test_errors_of_portraits_are_told_apart_by_their_type():
    class Blurred(NoFaceError):
        pass

    codes = PORTRAIT_CODES | {Blurred: "no-face"}
    for error, code in codes.items():
        details = problem_details(error("Use another picture."))
        assert details.problem_type is PROBLEM_TYPES[code] and details.problem_type.status == 422


def test_a_message_carries_the_same_code_and_words():
    error = errors.FloorTakenError("Another connection speaks now.")
    assert Fail.of(error) == Fail("floor-taken", "Another connection speaks now.", False)
    assert Fail.of(error, fatal=True).fatal


def test_the_sdk_recognises_a_server_that_is_full():
    with pytest.raises(AtCapacity):
        raise errors.AtCapacityError("All places are taken.")


def test_the_docs_give_each_code_its_status():
    text = DOCS.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}) \| ((?:`[a-z-]+`(?:, )?)+) \|", text, re.M)
    listed = {code: int(status) for status, codes in rows for code in re.findall(r"`(.+?)`", codes)}
    (in_messages,) = re.findall(r"Only in messages: ([^.]+)\.", text)
    told_only = set(re.findall(r"`(.+?)`", in_messages))
    assert not told_only & set(listed)
    assert set(listed) | told_only == set(PROBLEM_TYPES)
    for code, status in listed.items():
        assert PROBLEM_TYPES[code].status == status, code
