"""Ray Serve's REST API, as far as deploying pools needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import aiohttp

from pointsman_serving.engines.serve_listing import PoolStatus, read_serve_listing

if TYPE_CHECKING:
    from collections.abc import Mapping

APPLICATIONS_PATH = "/api/serve/applications/"
REQUEST_TIMEOUT_SECONDS = 60.0


class ServeApiError(RuntimeError):
    """Ray refused a request, or did not answer it."""


class ServeApi:
    """One Ray cluster's Serve; use as an async context manager, or call :meth:`close`."""

    def __init__(self, dashboard_url: str, *, token: str) -> None:
        """Talk to ``dashboard_url``, such as ``http://127.0.0.1:8265``, with Ray's token."""
        self._url = dashboard_url.rstrip("/") + APPLICATIONS_PATH
        self._headers = {"authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def deploy(self, config: Mapping[str, object]) -> None:
        """Make a whole Serve configuration the wanted one; returns before it is reached.

        Applications that are not in it are deleted once their requests are done.

        Raises:
            ServeApiError: Ray found the configuration wrong, or is not there.
        """
        await self._request("PUT", json=config)

    async def details(self) -> dict[str, Any]:
        """Everything that Serve says of itself.

        Raises:
            ServeApiError: Ray is not there, or does not take the token.
        """
        details = await self._request("GET")
        return details if isinstance(details, dict) else {}

    async def status(self) -> dict[str, PoolStatus]:
        """The pools' applications by name.

        Raises:
            ServeApiError: Ray is not there, does not take the token, or answers something else.
        """
        try:
            return read_serve_listing(await self.details())
        except ValueError as error:
            raise ServeApiError(
                f"Ray answered GET {self._url} in another shape: {error}"
            ) from error

    async def _request(self, method: str, *, json: Mapping[str, object] | None = None) -> object:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS),
            )
        try:
            async with self._session.request(method, self._url, json=json) as response:
                if response.status == 200:
                    return await response.json(content_type=None) if method == "GET" else None
                text = (await response.text()).strip()
                raise ServeApiError(
                    f"Ray answered {method} {self._url} with {response.status}: {text or 'no text'}"
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServeApiError(f"Ray did not answer {method} {self._url}: {error!r}") from error
