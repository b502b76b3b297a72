"""The pages: the browser client at `/`, the overlay at `/overlay`.

Their files are in `client_examples/`, or in the package when installed from a wheel. Their relative
links work wherever the folders are served side by side, so any web server can serve them.
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

HEADERS = {
    "cache-control": "no-cache",
    "access-control-allow-origin": "*",
    "cross-origin-resource-policy": "cross-origin",
}
"""The files are public, other sites may import them, and browsers revalidate them."""


def routes() -> list[BaseRoute]:
    """Return the routes of the pages and their files."""
    names = sorted(path.name for path in folder("browser").iterdir() if path.is_file())
    return [
        Route("/", _page),
        *[Route(f"/{name}", _page) for name in names],
        Mount("/browser", _Files(directory=folder("browser"), html=True), name="browser"),
        Mount("/overlay", _Files(directory=folder("overlay"), html=True), name="overlay"),
    ]


def folder(name: str) -> Path:
    """Return the folder of a page, in the installed package or in the repository."""
    packaged = Path(__file__).parents[1] / name
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "client_examples" / name


async def _page(request: Request) -> Response:
    name = request.url.path.rpartition("/")[2] or "index.html"
    return FileResponse(folder("browser") / name, headers=HEADERS)


class _Files(StaticFiles):
    """Static files with `HEADERS`."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
