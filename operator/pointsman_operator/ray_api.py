"""Ray's REST API of a RayCluster's head."""

from __future__ import annotations

import aiohttp

_PATH = "/api/serve/applications/"
_MOST_BYTES = 32 * 1024 * 1024


class RayError(Exception):
    """A head did not give its list of applications; the message says why.

    Args:
        message: why.
        unauthorized: the token is not the one that the cluster was started with.
    """

    def __init__(self, message: str, *, unauthorized: bool = False) -> None:
        super().__init__(message)
        self.unauthorized = unauthorized


class RayApi:
    """Asks Ray heads, over one pool of connections.

    Args:
        timeout_seconds: for one question.
    """

    def __init__(self, *, timeout_seconds: float = 3.0) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def fetch_applications(self, dashboard_url: str, token: str) -> object:
        """The document of ``GET /api/serve/applications/``.

        Raises:
            RayError: no answer, or another one.
        """
        if self._session is None:
            # Heads come and go: an idle connection to one is worth little, and costs a descriptor.
            connector = aiohttp.TCPConnector(limit=64, keepalive_timeout=15.0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        url = dashboard_url.rstrip("/") + _PATH
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                if response.status in (401, 403):
                    raise RayError(
                        f"{url}: {response.status}, the token is not the head's", unauthorized=True
                    )
                if response.status != 200:
                    raise RayError(f"{url}: status {response.status}")
                if (response.content_length or 0) > _MOST_BYTES:
                    raise RayError(f"{url}: {response.content_length} bytes, which is too long")
                return await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise RayError(f"{url}: {type(error).__name__} {error}".rstrip()) from error
